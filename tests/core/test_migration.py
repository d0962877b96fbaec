"""One moves at a time, nobody at rest, and a stage that lost its seats is filled again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import given, settings

from p2ptrain.core.assignment import HYSTERESIS, SeatView
from p2ptrain.core.migration import (
    ALERT_LOOK_SECONDS,
    ALERT_SECONDS,
    LOOK_SECONDS,
    PAUSE_MOST_SECONDS,
    REST_SECONDS,
    Mover,
)
from p2ptrain.units import PeerId, Stage, Step

DOWNLOAD_SECONDS = 20.0
TICK_SECONDS = 1.0
LAG_SECONDS = 2.0  # until a claim is seen


@dataclass
class Peer:
    name: PeerId
    stage: Stage
    rate: float
    mover: Mover
    target: Stage | None = None
    until: float = 0.0


@dataclass
class Swarm:
    """Peers with a mover each, and a view of one another that is two seconds old."""

    stages: int
    rng: random.Random
    noise: float = 0.0
    peers: list[Peer] = field(default_factory=list)
    moves: int = 0
    now: float = 0.0
    past: list[list[SeatView]] = field(default_factory=list)

    def add(self, stage: int, rate: float = 1.0) -> None:
        name = PeerId(f"peer-{len(self.peers):03}")
        mover = Mover(name, stages=self.stages, rng=self.rng, now=self.now)
        self.peers.append(Peer(name, Stage(stage), rate, mover))

    def view(self) -> list[SeatView]:
        seats = []
        for peer in self.peers:
            rate = peer.rate * (1.0 + self.noise * (2.0 * self.rng.random() - 1.0))
            for stage in {peer.stage, peer.target} - {None}:
                state = "joining" if stage == peer.target else "serving"
                seats.append(
                    SeatView(
                        peer=peer.name,
                        stage=Stage(stage or 0),
                        state=state,  # type: ignore[arg-type]  # one of the two
                        rate=rate,
                        version=Step(3),
                    )
                )
        return seats

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += TICK_SECONDS
            self.past.append(self.view())
            seen = self.past[max(0, len(self.past) - 1 - int(LAG_SECONDS / TICK_SECONDS))]
            for peer in self.peers:
                if peer.target is not None and self.now >= peer.until:
                    peer.stage, peer.target = peer.target, None
                    self.moves += 1
                    peer.mover.ended(moved=True, now=self.now)
                move = peer.mover.look(seen, now=self.now)
                if move is not None:
                    assert move.source == peer.stage
                    peer.target, peer.until = move.target, self.now + DOWNLOAD_SECONDS
            served = {peer.stage for peer in self.peers}
            assert served == set(range(self.stages)), "a hole"

    def rates(self) -> list[float]:
        sums = [0.0] * self.stages
        for peer in self.peers:
            sums[peer.stage] += peer.rate
        return sums


def swarm(stages: int, seats: list[int], *, seed: int = 1, noise: float = 0.0) -> Swarm:
    made = Swarm(stages, random.Random(seed), noise=noise)
    for stage, count in enumerate(seats):
        for _ in range(count):
            made.add(stage)
    return made


def test_at_rest_nobody_moves() -> None:
    even = swarm(8, [6] * 8, noise=0.1)
    even.run(1200.0)
    assert even.moves == 0


def test_a_stage_that_lost_half_its_seats_is_filled_within_the_time_of_a_few_downloads() -> None:
    hurt = swarm(4, [4, 8, 8, 8])
    hurt.run(150.0)
    assert min(hurt.rates()) >= 6.0  # 85% of the 7 of an even layout
    hurt.run(300.0)
    assert min(hurt.rates()) == 7.0
    assert hurt.moves <= 6  # three are needed; looks that coincide see no claim
    moves = hurt.moves
    hurt.run(1200.0)
    assert hurt.moves == moves


def test_a_stage_that_loses_half_its_seats_at_once_is_filled_sooner() -> None:
    for seed in range(5):
        struck = swarm(4, [8, 8, 8, 8], seed=seed)
        struck.run(200.0)
        struck.peers = struck.peers[4:]
        struck.run(70.0)
        assert min(struck.rates()) >= 6.0
        moves = struck.moves
        struck.run(1200.0)
        assert struck.moves - moves <= 1
        assert struck.moves <= 6


def test_a_crowd_on_one_stage_spreads_without_stampede() -> None:
    crowd = swarm(4, [30, 2, 2, 2])
    crowd.run(1200.0)
    assert max(crowd.rates()) / min(crowd.rates()) <= 1.5
    assert crowd.moves <= 26


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.integers(0, 1000),
    st.floats(0.0, 0.1),
)
def test_any_layout_settles_without_a_hole(seats: list[int], seed: int, noise: float) -> None:
    some = swarm(len(seats), seats, seed=seed, noise=noise)
    for peer in some.peers:
        peer.rate = some.rng.choice([0.5, 1.0, 2.0])
    before = min(some.rates())
    some.run(1500.0)
    assert min(some.rates()) >= before * (1.0 - 2 * noise) / (1.0 + HYSTERESIS)
    moved = some.moves
    some.run(600.0)
    assert some.moves - moved <= 5  # 30 an hour


def views(*serving: str, draining: str = "") -> list[SeatView]:
    """So many seats of stage 0, and one of stage 1 that is as fast as they are."""
    names = [*serving, draining] if draining else serving
    seats = [
        SeatView(
            peer=PeerId(name),
            stage=Stage(name == "other"),
            state="draining" if name == draining else "serving",
            rate=1.0,
            version=Step(3),
        )
        for name in names
    ]
    return sorted(seats, key=lambda seat: seat.stage)


def resting(*, now: float = LOOK_SECONDS) -> Mover:
    mover = Mover(PeerId("a"), stages=2, rng=random.Random(1), now=0.0)
    assert mover.look(views("a", "b", "other"), now=now) is None
    return mover


def test_a_loss_is_looked_at_soon_and_often_and_then_as_ever() -> None:
    mover = resting()
    later = mover.due_at
    assert later > 1.8 * LOOK_SECONDS
    assert mover.look(views("a", "other"), now=LOOK_SECONDS + 1.0) is None
    assert mover.due_at <= LOOK_SECONDS + 1.0 + ALERT_LOOK_SECONDS
    first = mover.due_at
    mover.look(views("a", "other"), now=first)
    assert 0.8 * ALERT_LOOK_SECONDS < mover.due_at - first < 1.2 * ALERT_LOOK_SECONDS
    last = LOOK_SECONDS + 1.0 + ALERT_SECONDS
    mover.look(views("a", "other"), now=last)
    assert mover.due_at - last > 0.8 * LOOK_SECONDS


def test_who_leaves_in_order_and_who_comes_alarm_nobody() -> None:
    mover = resting()
    later = mover.due_at
    mover.look(views("a", "other", "new", draining="b"), now=LOOK_SECONDS + 1.0)
    mover.look(views("a", "other", "new"), now=LOOK_SECONDS + 2.0)
    assert mover.due_at == later


def test_who_has_just_moved_rests_whoever_is_lost() -> None:
    mover = resting()
    mover.ended(moved=True, now=LOOK_SECONDS)
    rested = mover.due_at
    mover.look(views("a", "other"), now=LOOK_SECONDS + 1.0)
    assert mover.due_at == rested


def test_looks_are_spread_and_rest_follows_a_move() -> None:
    phases = [
        Mover(PeerId("a"), stages=2, rng=random.Random(seed), now=10.0).due_at for seed in range(50)
    ]
    assert min(phases) < 10.0 + 0.2 * LOOK_SECONDS
    assert max(phases) > 10.0 + 0.8 * LOOK_SECONDS
    mover = Mover(PeerId("a"), stages=2, rng=random.Random(0), now=0.0)
    mover.ended(moved=True, now=100.0)
    assert mover.due_at >= 100.0 + 0.9 * REST_SECONDS
    pauses = []
    for _ in range(8):
        mover.ended(moved=False, now=0.0)
        pauses.append(mover.due_at)
    assert 1.8 * LOOK_SECONDS <= pauses[0] <= 2.2 * LOOK_SECONDS
    assert 0.9 * PAUSE_MOST_SECONDS <= pauses[-1] <= 1.1 * PAUSE_MOST_SECONDS
