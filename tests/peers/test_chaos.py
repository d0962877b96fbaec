"""Chaos, decided: whom it strikes and spares, when, and what it owes. No process is started."""

import random
from collections.abc import Callable, Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.sim.faults import parse
from p2ptrain.units import Stage, Step
from peers.chaos import (
    Arrival,
    Blow,
    BookDeath,
    Chaos,
    DaemonDeath,
    Death,
    Doom,
    Drag,
    Halt,
    Loss,
    Mend,
    Sight,
    Split,
    Thaw,
)

LOOK_SECONDS = 0.2
STEPS = 20

Seats = dict[str, dict[Stage, Step]]


def seats(*stages: int, version: int = 5) -> Seats:
    """Peers a, b, c ... each with one seat."""
    return {
        chr(ord("a") + number): {Stage(stage): Step(version)} for number, stage in enumerate(stages)
    }


def sight(share: float | None, held: Mapping[str, Mapping[Stage, Step]]) -> Sight:
    return Sight(share=share, seats=held)


def fall(plan: str, held: Seats, *, seed: int = 0, seconds: float = 40.0) -> list[Blow]:
    """All blows of a run of so many seconds; the dead leave."""
    chaos = Chaos(parse(plan), random.Random(seed))
    living, fallen = dict(held), []
    for look in range(int(seconds / LOOK_SECONDS)):
        now = look * LOOK_SECONDS
        for blow in chaos.tick(sight(now / seconds, living), now=now):
            fallen.append(blow)
            if isinstance(blow, Death):
                assert living.pop(blow.peer)
    assert chaos.unfired() == ()
    return fallen


def test_equal_seeds_strike_alike_and_others_differently() -> None:
    def drawn(seed: int) -> list[Blow]:
        return fall("kill=50%/min:min=2,freeze=1:3s", seats(0, 0, 0, 1, 1, 1), seed=seed)

    assert drawn(3) == drawn(3)
    assert len({str(drawn(seed)) for seed in range(5)}) > 1


def test_the_minimum_falls_within_the_run_however_low_the_rate() -> None:
    blows = fall("kill=0.1%/min:min=3:respawn=7", seats(0, 0, 1, 1, 0, 1))
    assert [type(blow) for blow in blows] == [Death] * 3
    assert {blow.respawn_seconds for blow in blows if isinstance(blow, Death)} == {7.0}


def test_deaths_come_by_their_rate_too() -> None:
    crowd = {f"peer-{number}": {Stage(0): Step(5)} for number in range(60)}
    deaths = len(fall("kill=100%/min:respawn=never", crowd, seconds=30.0))
    assert 10 < deaths < 40  # 60 peers, half a minute: 24 on average as they get fewer


def test_before_training_nobody_is_struck() -> None:
    chaos = Chaos(parse("kill=10000%/min,freeze=1:3s"), random.Random(0))
    assert not any(chaos.tick(sight(None, seats(0, 0)), now=now) for now in range(100))


@given(
    held=st.lists(
        st.dictionaries(st.integers(0, 2), st.integers(0, 3), min_size=1, max_size=2),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_a_kill_leaves_every_stage_a_replica_that_is_not_behind(
    held: list[dict[int, int]], seed: int
) -> None:
    chaos = Chaos(parse("kill=100000%/min:min=9"), random.Random(seed))
    living = {
        f"peer-{n}": {Stage(s): Step(v) for s, v in each.items()} for n, each in enumerate(held)
    }
    newest = {
        stage: max(each[stage] for each in living.values() if stage in each)
        for each in living.values()
        for stage in each
    }
    for look in range(20):
        for blow in chaos.tick(sight(0.9, living), now=look * LOOK_SECONDS):
            assert isinstance(blow, Death)
            del living[blow.peer]
    for stage, version in newest.items():
        assert any(version - each[stage] <= 1 for each in living.values() if stage in each)


def test_a_frozen_replica_does_not_count_as_living_and_is_not_killed() -> None:
    chaos = Chaos(parse("freeze=1:10s,kill=100000%/min:min=5"), random.Random(1))
    (halt,) = (b for b in chaos.tick(sight(0.75, seats(0, 0)), now=0.0) if isinstance(b, Halt))
    for now in (1.0, 5.0, 9.9):
        assert chaos.tick(sight(0.75, seats(0, 0)), now=now) == ()
    thaw, death = chaos.tick(sight(0.75, seats(0, 0)), now=10.0)
    assert thaw == Thaw(peer=halt.peer)
    assert isinstance(death, Death)


def test_a_kill_that_finds_no_victim_waits_for_one() -> None:
    chaos = Chaos(parse("kill=0.1%/min:min=1"), random.Random(0))
    assert chaos.tick(sight(0.9, seats(0, 1)), now=0.0) == ()
    assert chaos.unfired() == ("the run was over after 0 kills; 1 more were planned",)
    (death,) = chaos.tick(sight(0.95, seats(0, 1, 1)), now=1.0)
    assert isinstance(death, Death)
    assert death.peer in {"b", "c"}


def test_strikes_fall_at_their_share_of_the_run() -> None:
    chaos = Chaos(parse("bootstrap-death,join=2"), random.Random(0))
    fell = {share: chaos.tick(sight(share / STEPS, seats(0)), now=share) for share in range(STEPS)}
    at = {type(blow): share for share, blows in fell.items() for blow in blows}
    assert sum(map(len, fell.values())) == 3
    assert at.keys() == {BookDeath, Arrival}
    assert all(0.1 * STEPS <= share <= 0.7 * STEPS + 1 for share in at.values())


def test_a_daemon_dies_when_somebody_serves_and_a_whole_swarm_at_once() -> None:
    chaos = Chaos(parse("daemon-death"), random.Random(0))
    assert chaos.tick(sight(0.9, {}), now=0.0) == ()  # nobody has one to lose
    (blow,) = chaos.tick(sight(0.95, seats(0, 1)), now=1.0)
    assert blow in {DaemonDeath(peer="a"), DaemonDeath(peer="b")}
    assert fall("swarm-death", seats(0, 1)) == [Doom()]


def test_a_slow_peer_stays_slow_and_another_is_slowed_next() -> None:
    drags = [blow for blow in fall("slow=10x:2", seats(0, 1)) if isinstance(blow, Drag)]
    assert {drag.peer for drag in drags} == {"a", "b"}
    assert {drag.factor for drag in drags} == {10.0}


def test_a_partition_takes_its_share_and_heals() -> None:
    split, mend = fall("partition=40%:5s", seats(0, 0, 1, 1, 1))
    assert isinstance(split, Split)
    assert len(split.peers) == 2
    assert mend == Mend()


def deaths_after(plan: str, held: Seats) -> Callable[[float], set[str]]:
    chaos = Chaos(parse(plan), random.Random(0))
    (loss,) = chaos.tick(sight(0.8, held), now=0.0)
    assert isinstance(loss, Loss)
    doomed = {peer for peer, each in held.items() if loss.stage in each}

    def until(now: float) -> set[str]:
        blows = chaos.tick(sight(0.8, held), now=now)
        died = {blow.peer for blow in blows if isinstance(blow, Death)}
        assert died <= doomed
        return died

    return until


def test_a_stage_is_lost_at_once() -> None:
    until = deaths_after("stage-loss", seats(0, 0, 1, 1))
    assert len(until(0.2)) == 2


def test_the_last_replica_dies_after_the_others() -> None:
    until = deaths_after("last-replica", seats(0, 0, 1, 1))
    assert [len(until(now)) for now in (0.2, 1.9, 2.1, 9.0)] == [1, 0, 1, 0]


def test_the_end_lets_go_of_everything_and_says_what_is_owed() -> None:
    chaos = Chaos(parse("freeze=2:60s,partition=50%:60s,join=1"), random.Random(4))
    held = [blow for now in range(8) for blow in chaos.tick(sight(now / 10, seats(0, 1)), now=now)]
    halted = [blow.peer for blow in held if isinstance(blow, Halt)]
    split = [blow for blow in held if isinstance(blow, Split)]
    freed = chaos.end()
    assert set(freed) == {Thaw(peer=peer) for peer in halted} | ({Mend()} if split else set())
    assert chaos.tick(sight(0.99, seats(0, 1)), now=99.0) == ()
    assert len(chaos.unfired()) == 4 - len(halted) - len(split) - held.count(Arrival())


def test_nothing_can_be_lost_where_nobody_serves() -> None:
    chaos = Chaos(parse("stage-loss,freeze=1:1s,slow=2x:1,partition=50%:1s"), random.Random(0))
    assert chaos.tick(sight(0.9, {}), now=0.0) == ()
    assert len(chaos.unfired()) == 4
