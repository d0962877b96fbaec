"""A plan says what shall go wrong; its schedule follows from a seed; it counts what fired."""

import random

import pytest

from p2ptrain.errors import UserError
from p2ptrain.sim.faults import (
    Catastrophe,
    FaultPlan,
    Freeze,
    Join,
    Kill,
    Partition,
    Slow,
    Tally,
    next_kill,
    parse,
    schedule,
)


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ()),
        ("kill=30%/min", (Kill(share_per_minute=0.3),)),
        (
            "kill=2.5%/min:min=4:respawn=never",
            (Kill(share_per_minute=0.025, minimum=4, respawn_seconds=None),),
        ),
        ("kill=100%/min:respawn=7", (Kill(share_per_minute=1.0, respawn_seconds=7.0),)),
        ("kill=100%/min:respawn=0.5s", (Kill(share_per_minute=1.0, respawn_seconds=0.5),)),
        (
            "freeze=2:10s, slow=10x:3,partition=50%:20s",
            (
                Freeze(count=2, seconds=10.0),
                Slow(factor=10.0, count=3),
                Partition(share=0.5, seconds=20.0),
            ),
        ),
        (
            "join=5,bootstrap-death,last-replica,stage-loss,daemon-death,swarm-death",
            (
                Join(count=5),
                Catastrophe(what="bootstrap-death"),
                Catastrophe(what="last-replica"),
                Catastrophe(what="stage-loss"),
                Catastrophe(what="daemon-death"),
                Catastrophe(what="swarm-death"),
            ),
        ),
    ],
)
def test_the_language(text: str, faults: tuple[object, ...]) -> None:
    assert parse(text).faults == faults


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("earthquake", "no fault 'earthquake'; there are: kill=30%/min"),
        ("kill", "write kill=30%/min"),
        ("kill=30%", "write kill=30%/min"),
        ("kill=0%/min", "write kill=30%/min"),
        ("kill=1%/min,kill=2%/min", "only once"),
        ("freeze=1", "write freeze=N:10s"),
        ("freeze=0:10s", "write freeze=N:10s"),
        ("slow=0.5x:1", "write slow=10x:N"),
        ("partition=100%:5s", "write partition=50%:20s"),
        ("join=many", "write join=N"),
        ("stage-loss=1", "write stage-loss"),
        ("join=99999999", "write join=N"),
    ],
)
def test_a_slip_gets_one_line_that_shows_what_is_right(text: str, advice: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_occurrence_has_its_moment_and_the_seed_decides_it() -> None:
    plan = parse("freeze=2:10s,join=3,partition=50%:20s,kill=10%/min")
    strikes = schedule(plan, random.Random(1))
    assert strikes == schedule(plan, random.Random(1))
    assert strikes != schedule(plan, random.Random(2))
    kinds = sorted(type(strike.fault).__name__ for strike in strikes)
    assert kinds == ["Freeze", "Freeze", "Join", "Join", "Join", "Partition"]
    shares = [strike.share for strike in strikes]
    assert shares == sorted(shares)
    assert all(0 < share < 1 for share in shares)


def test_kills_come_at_their_rate() -> None:
    kill, rng = Kill(share_per_minute=0.3), random.Random(1)
    waits = [next_kill(kill, 20, rng) for _ in range(5000)]
    assert sum(waits) / len(waits) == pytest.approx(10.0, rel=0.05)  # 6 of 20 a minute


def test_the_tally_knows_what_the_plan_is_owed() -> None:
    tally, plan = Tally(), parse("kill=1%/min:min=2,join=1")
    tally.count("kill")
    tally.count("join")
    assert tally.fired() == {"join": 1, "kill": 1}
    assert (tally.owed(plan), tally.owed(FaultPlan())) == (1, 0)
