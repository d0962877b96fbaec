"""Rounds among several seats: every history ends with one sum, whatever happened on the way.

A tiny world of 1-4 machines and one pool of things about to happen. Hypothesis picks what
happens next: deliveries in any order, duplicates, losses, deadlines, deaths, false
suspicions, late and double counts, reductions that fail. Then the network becomes reliable,
views become true, and all that live must commit the same sum.

The accumulators are real enough to catch a wrong cover: a seat's accumulator is an integer
with one octal digit per slot, so a slot lost or summed twice changes the sum's digest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import given, settings

from p2ptrain.core.agreement import Ballot, Bitmap, Nack, Plan, Position, Share, Sum, Tallies
from p2ptrain.core.canonical import digest
from p2ptrain.core.ledger import mask_to_bytes, slots_of
from p2ptrain.core.plans import in_plan
from p2ptrain.core.rounds import (
    AbortReduce,
    Action,
    Alarm,
    Commit,
    Event,
    FetchFailed,
    FetchSum,
    Freeze,
    Live,
    Outcome,
    Phase,
    Publish,
    Quiet,
    Received,
    Reduce,
    Reduced,
    ReduceFailed,
    Seen,
    Send,
    StepLimits,
    Subtract,
    Unfreeze,
    WantSums,
)
from p2ptrain.core.step import StepMachine
from p2ptrain.units import Chain, Digest, PeerId, RunId, Stage, Step

AT = Position(epoch=0, step=Step(4), chain=Chain(bytes(32)))
STAGE, OTHER = Stage(0), Stage(1)
WIDTH = 5
FULL = (1 << WIDTH) - 1
LIMITS = StepLimits(plan_seconds=1.0, ack_seconds=1.0, reduce_seconds=2.0, norm_seconds=3.0)
PEERS = tuple(PeerId(name) for name in ("ann", "bob", "eve", "joe"))
OPEN = {Phase.COUNTING, Phase.PLANNING}


def outcome(value: int) -> Outcome:
    return Outcome(digest=digest("sum of accumulators", value), norms=(float(value),), finite=True)


def accumulator(mask: int) -> int:
    return sum(8**slot for slot in slots_of(mask))


RIGHT = outcome(accumulator(FULL))
FOREIGN = Sum(
    at=AT, stage=OTHER, digest=RIGHT.digest, norms=(0.0,), finite=True,
    tallies=Tallies(), cover=(), members=(), round=0,
)  # fmt: skip


@dataclass
class Read:
    """A reduction is about to read the accumulator."""

    plan: Plan


@dataclass
class Pending:
    """Something about to happen to ``to``; only what crosses the network may be lost."""

    to: PeerId
    event: Event | Subtract | FetchSum | Read
    lossy: bool


@dataclass
class Place:
    """A peer's engine and compute, as far as the machine can tell."""

    machine: StepMachine
    mask: int = 0
    seq: int = 0
    frozen: bool = False
    reducing: Ballot | None = None
    whole: Outcome | None = None  # the whole sum that its compute took in last
    commits: list[Commit] = field(default_factory=list)


class World:
    """All peers, and everything under way."""

    def __init__(self, count: int, members: int, *, canonical: bool = False) -> None:
        self.now = 0.0
        self.canonical = canonical
        self.made: set[Digest] = set()  # digests of sums that some reduction has ended with
        self.pool: list[Pending] = []
        self.covers: dict[Ballot, tuple[Share, ...]] = {}
        self.given: dict[Ballot, dict[PeerId, int]] = {}
        self.live = list(PEERS[:count])
        self.places = {
            peer: Place(
                StepMachine(
                    run=RunId("run"), me=peer, incarnation=1, at=AT, stage=STAGE, stages=2,
                    members=PEERS[:members], expected=FULL, width=WIDTH, elements=7,
                    limits=LIMITS, now=0.0, canonical=canonical,
                )
            )
            for peer in self.live
        }  # fmt: skip
        for peer in self.live:
            self.feed(peer, Live(frozenset(self.live)))

    # --- what the engine would do ---------------------------------------------------

    def feed(self, peer: PeerId, event: Event) -> None:
        if peer in self.live:
            self.perform(peer, self.places[peer].machine.handle(event, now=self.now))

    def tick(self, peer: PeerId) -> None:
        self.perform(peer, self.places[peer].machine.tick(now=self.now))

    def perform(self, peer: PeerId, actions: tuple[Action, ...]) -> None:
        for action in actions:
            self.act(peer, self.places[peer], action)

    def act(  # noqa: C901, PLR0912, PLR0915 - one case per action
        self, peer: PeerId, place: Place, action: Action
    ) -> None:
        if isinstance(action, Freeze | Reduce | FetchSum | Subtract):
            assert not any(one.to == peer and isinstance(one.event, Subtract) for one in self.pool)
        match action:
            case Send(to, message):
                assert peer not in to
                if isinstance(message, Plan):
                    self.note(message)
                for other in to:
                    self.post(other, Received(peer, message), lossy=True)
            case Publish(total):
                for other in self.others(peer):
                    self.post(other, Received(peer, total), lossy=True)
            case WantSums(stages):
                self.answer(peer, stages)
            case Freeze():
                assert not place.frozen
                place.frozen = True
                self.post(peer, Quiet())
            case Unfreeze():
                assert place.frozen
                place.frozen = False
                self.cancel(peer, Quiet | FetchSum)
            case Subtract(mask):
                assert not place.frozen
                assert mask
                assert mask & ~place.mask == 0
                self.post(peer, action)
            case Reduce(plan):
                assert place.reducing is None
                self.note(plan)
                place.reducing = plan.ballot
                self.post(peer, Read(plan))
            case AbortReduce(ballot):
                assert place.reducing == ballot
                place.reducing = None
                self.cancel(peer, Read | Reduced | ReduceFailed)
            case FetchSum():
                self.cancel(peer, FetchSum)
                self.post(peer, action)
            case Commit(sums):
                assert [total.stage for total in sums] == [STAGE, OTHER]
                place.commits.append(action)
            case Alarm(reason):
                raise AssertionError(reason)

    def note(self, plan: Plan) -> None:
        assert self.covers.setdefault(plan.ballot, plan.shares) == plan.shares

    def answer(self, peer: PeerId, stages: tuple[Stage, ...]) -> None:
        if OTHER in stages:
            self.post(peer, Received(peer, FOREIGN), lossy=True)
        for other in self.others(peer):
            held = self.places[other].machine.told().get(STAGE)
            if STAGE in stages and held is not None:
                self.post(peer, Received(other, held), lossy=True)

    def read(self, peer: PeerId, place: Place, plan: Plan) -> None:
        """Give the accumulator; who comes last lets all end that still wait."""
        share = in_plan(plan, peer)
        assert share is not None
        assert place.frozen
        assert share.slots == mask_to_bytes(place.mask, WIDTH), "summed what the plan does not say"
        given = self.given.setdefault(plan.ballot, {})
        rounding = PEERS.index(peer) * place.mask.bit_count() if self.canonical else 0
        given[peer] = accumulator(place.mask) + rounding
        if len(given) == len(plan.shares):
            for member in given:
                if member in self.live and self.places[member].reducing == plan.ballot:
                    whole = outcome(sum(given.values()))
                    self.made.add(whole.digest)
                    self.post(member, Reduced(whole, plan.ballot.round))

    # --- what may happen -----------------------------------------------------------

    def post(
        self, to: PeerId, event: Event | Subtract | FetchSum | Read, *, lossy: bool = False
    ) -> None:
        self.pool.append(Pending(to, event, lossy))

    def cancel(self, peer: PeerId, kinds: object) -> None:
        self.pool = [
            one
            for one in self.pool
            if one.to != peer or not isinstance(one.event, kinds)  # type: ignore[arg-type]
        ]

    def others(self, peer: PeerId) -> list[PeerId]:
        return [other for other in self.live if other != peer]

    def deliver(self, index: int) -> None:
        one = self.pool.pop(index)
        if one.to not in self.live:
            return
        place = self.places[one.to]
        match one.event:
            case Subtract(mask):
                assert mask & ~place.mask == 0, "subtracted twice"
                self.show(one.to, place.mask & ~mask)
            case Read(plan):
                self.read(one.to, place, plan)
            case FetchSum():
                self.fetch(one.to, place, one.event)
            case Received(_, Nack(bitmaps=bitmaps)):
                for bitmap in bitmaps:  # the engine has verified each
                    self.feed(one.to, Seen(bitmap))
                self.feed(one.to, one.event)
            case _:
                if isinstance(one.event, Reduced | ReduceFailed):
                    place.reducing = None  # what was aborted has been cancelled
                    place.whole = getattr(one.event, "outcome", place.whole)
                self.feed(one.to, one.event)

    def fetch(self, peer: PeerId, place: Place, wanted: FetchSum) -> None:
        """Take the whole sum that ``wanted`` names over, if its holder has it."""
        there = self.places[wanted.holder]
        if wanted.holder not in self.live or not there.machine.holds(wanted.sum):
            self.feed(peer, FetchFailed(wanted.holder, "gone"))
            return
        assert there.whole is not None
        assert there.whole.digest == wanted.sum.digest, "gave another sum than it named"
        place.whole = there.whole
        self.feed(peer, Reduced(there.whole, wanted.sum.round))

    def show(self, peer: PeerId, mask: int) -> None:
        """The accumulator has become ``mask``: the own machine knows at once, others by gossip."""
        place = self.places[peer]
        place.mask, place.seq = mask, place.seq + 1
        self.feed(peer, Seen(self.bitmap(peer)))
        for other in self.others(peer):
            self.post(other, Seen(self.bitmap(peer)), lossy=True)

    def bitmap(self, peer: PeerId) -> Bitmap:
        place = self.places[peer]
        return Bitmap(
            peer=peer, incarnation=1, at=AT, stage=STAGE, seq=place.seq,
            slots=mask_to_bytes(place.mask, WIDTH),
            tallies=Tallies(tokens=place.mask.bit_count()), signature=b"",
        )  # fmt: skip

    def count(self, peer: PeerId, slot: int) -> None:
        """Count a slot, also one that another has, also one that was running at Freeze."""
        place = self.places[peer]
        finishing = any(one.to == peer and isinstance(one.event, Quiet) for one in self.pool)
        able = (place.machine.phase in OPEN and not place.frozen) or finishing
        if able and not place.mask >> slot & 1:
            self.show(peer, place.mask | 1 << slot)

    def happen(self, what: str, a: int, b: int) -> None:  # noqa: C901, PLR0912 - one case each
        peer = self.live[a % len(self.live)]
        place = self.places[peer]
        index = b % len(self.pool) if self.pool else None
        match what:
            case "deliver" if index is not None:
                self.deliver(index)
            case "duplicate" if index is not None and self.pool[index].lossy:
                self.pool.append(self.pool[index])
                self.deliver(index)
            case "lose" if index is not None and self.pool[index].lossy:
                self.pool.pop(index)
            case "deadline" if place.machine.due_at is not None:
                self.now = max(self.now, place.machine.due_at)
                self.tick(peer)
            case "kill" if len(self.live) > 1:
                self.live.remove(peer)
            case "suspect":
                self.feed(peer, Live(frozenset(self.live) - {self.live[b % len(self.live)]}))
            case "see":
                self.feed(peer, Live(frozenset(self.live)))
            case "count":
                self.count(peer, b % WIDTH)
            case "fail" if place.reducing is not None:
                self.cancel(peer, Read | Reduced | ReduceFailed)
                self.post(peer, ReduceFailed(place.reducing, "a link broke"))

    # --- the world becomes kind -------------------------------------------------------

    def settle(self) -> None:
        for peer in self.live:
            self.feed(peer, Live(frozenset(self.live)))
        for _ in range(60):
            for _ in range(2000):
                if not self.pool:
                    break
                self.deliver(0)
            assert not self.pool, "messages without end"
            if all(self.places[peer].machine.phase is Phase.COMMITTED for peer in self.live):
                return
            self.gossip_and_replay()
            if not self.pool:
                due = [self.places[peer].machine.due_at for peer in self.live]
                self.now = max(self.now, min(at for at in due if at is not None))
                for peer in self.live:
                    self.tick(peer)
        phases = {peer: self.places[peer].machine.phase for peer in self.live}
        raise AssertionError(f"no end in sight: {phases}")

    def gossip_and_replay(self) -> None:
        done = any(STAGE in self.places[peer].machine.sums for peer in self.live)
        union = 0
        for peer in self.live:
            union |= self.places[peer].mask
            for other in self.others(peer):
                self.feed(other, Seen(self.bitmap(peer)))
        for slot in slots_of(FULL & ~union):
            for peer in self.live if not done else ():
                if self.places[peer].machine.phase in OPEN:
                    self.count(peer, slot)
                    break


WHAT = (
    *("deliver",) * 8, "duplicate", "lose", "deadline", "deadline", "kill", "suspect", "see",
    "count", "count", "fail",
)  # fmt: skip
histories = st.lists(
    st.tuples(st.sampled_from(WHAT), st.integers(0, 3), st.integers(0, 63)), max_size=80
)


def judge(world: World) -> None:
    for peer in world.live:
        (commit,) = world.places[peer].commits
        right = world.made if world.canonical else {RIGHT.digest}
        assert commit.sums[0].digest in right
        assert commit.sums[0].tallies.tokens == WIDTH
        cover = [int.from_bytes(one.slots, "little") for one in commit.sums[0].cover]
        assert sum(cover) == FULL
        assert commit.sums[1] == FOREIGN


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.integers(0, 3), min_size=WIDTH, max_size=WIDTH),
    histories,
)
@settings(max_examples=100, deadline=None)
def test_every_short_history_ends_with_one_sum_for_all_that_live(
    count: int, members: int, owners: list[int], history: list[tuple[str, int, int]]
) -> None:
    world = World(count, members)
    for slot, owner in enumerate(owners):
        world.count(PEERS[owner % count], slot)
    for what, a, b in history:
        world.happen(what, a, b)
    world.settle()
    judge(world)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_every_long_history_ends_with_one_sum_for_all_that_live(seed: int) -> None:
    """Hypothesis keeps its lists short; trouble upon trouble needs long ones."""
    dice = random.Random(seed)
    count = dice.randint(1, 4)
    world = World(count, dice.randint(0, 4))
    for slot in range(WIDTH):
        world.count(PEERS[dice.randrange(count)], slot)
    possible = [what for what in WHAT if what == "deliver" or dice.random() < 0.8]
    for _ in range(dice.randint(0, 250)):
        world.happen(dice.choice(possible), dice.randrange(4), dice.randrange(64))
    world.settle()
    judge(world)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_where_arithmetic_differs_every_history_ends_with_a_sum_that_was_made(seed: int) -> None:
    dice = random.Random(seed)
    count = dice.randint(1, 4)
    world = World(count, dice.randint(0, 4), canonical=True)
    for slot in range(WIDTH):
        world.count(PEERS[dice.randrange(count)], slot)
    for _ in range(dice.randint(0, 250)):
        world.happen(dice.choice(WHAT), dice.randrange(4), dice.randrange(64))
    world.settle()
    judge(world)


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_where_arithmetic_differs_deaths_alone_never_part_those_who_live(seed: int) -> None:
    """Nothing is lost and nobody suspected falsely: then all that live step with one name."""
    dice = random.Random(seed)
    count = dice.randint(2, 4)
    world = World(count, count, canonical=True)
    for slot in range(WIDTH):
        world.count(PEERS[dice.randrange(count)], slot)
    for _ in range(dice.randint(0, 250)):
        kind = dice.choice(("deliver",) * 8 + ("duplicate", "kill", "see", "count", "fail"))
        world.happen(kind, dice.randrange(4), dice.randrange(64) if kind == "count" else 0)
    world.settle()
    judge(world)
    assert len({world.places[peer].commits[0].sums[0].digest for peer in world.live}) == 1


def test_four_seats_without_trouble_take_one_round() -> None:
    world = World(4, 4)
    for slot in range(WIDTH):
        world.count(PEERS[slot % 4], slot)
    world.settle()
    assert {place.machine.round for place in world.places.values()} == {0}
    assert len(world.covers) == 1
