"""A blow strikes once, whoever comes to its point, and spares who alone knows the newest state."""

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.blows import BLOW_KINDS, Blow, BlowKind
from p2ptrain.sim.swarms import Swarm, SwarmPlan
from p2ptrain.units import PeerId


def plan(*blows: Blow, peers: int = 4, steps: int = 3) -> SwarmPlan:
    return SwarmPlan(
        seed=1,
        stages=2,
        microbatches=6,
        steps=steps,
        replicas=peers // 2,
        speeds=(0.3,) * peers,
        interval_seconds=0.1,
        latency_seconds=0.02,
        jitter_seconds=0.01,
        blows=blows,
    )


def blow(kind: BlowKind, point: str = "counting", nth: int = 5, seconds: float = 3.0) -> Blow:
    return Blow(kind=kind, point=point, nth=nth, seconds=seconds)


def faults(swarm: Swarm) -> list[tuple[str, str]]:
    return [
        (entry.event.fault, entry.event.target)
        for entry in swarm.entries
        if isinstance(entry.event, ev.FaultFired)
    ]


@pytest.mark.parametrize("kind", sorted(set(BLOW_KINDS) - {"last-replica", "stage-loss"}))
def test_every_kind_fires_and_is_survived(kind: BlowKind) -> None:
    swarm = Swarm(plan(blow(kind)))
    result = swarm.run()
    assert result.holds, result.verdicts
    assert swarm.fired == {f"{kind} at counting": 1}
    assert faults(swarm)


def test_the_actor_of_the_point_is_struck_at_that_moment() -> None:
    swarm = Swarm(plan(blow("kill", "plan arrived", nth=1)))
    assert swarm.run().holds
    assert swarm.fired == {"kill at plan arrived": 1}
    ((_, victim), *_) = faults(swarm)
    said = [entry.event for entry in swarm.entries if entry.peer == PeerId(victim)]
    assert isinstance(said[-2], ev.FaultFired)
    assert said[-1] == ev.Remains(tasks=0, streams=0, records=0)


def test_whoever_alone_serves_a_stage_is_spared() -> None:
    swarm = Swarm(plan(*(blow("kill", nth=nth) for nth in range(1, 9)), peers=4))
    assert swarm.run().holds
    serving: dict[int, set[str]] = {0: set(), 1: set()}
    for entry in swarm.entries:
        match entry.event:
            case ev.SeatOpened(stage=stage):
                serving[stage].add(entry.peer)
            case ev.FaultFired(fault="kill", target=target):
                for peers in serving.values():
                    peers.discard(target)
                    assert peers
            case _:
                pass


def test_the_two_that_are_named_so_take_a_whole_stage() -> None:
    swarm = Swarm(plan(blow("stage-loss", nth=20)))
    swarm.run()
    serving: dict[int, set[str]] = {0: set(), 1: set()}
    killed: list[str] = []
    for entry in swarm.entries:
        match entry.event:
            case ev.SeatOpened(stage=stage):
                serving[stage].add(entry.peer)
            case ev.SeatClosed(stage=stage):
                serving[stage].discard(entry.peer)
            case ev.FaultFired(fault="kill", target=target):
                killed.append(target)
                if len(killed) == 2:  # both at once
                    assert set(killed) in serving.values()
            case _:
                pass
    assert len(killed) == 2


def test_a_point_that_nobody_reaches_fires_nothing() -> None:
    swarm = Swarm(plan(blow("kill", "nack sent", nth=99)))
    assert swarm.run().holds
    assert swarm.fired == {}


def test_who_dies_before_anything_was_counted_is_replaced() -> None:
    """A run that waits for all of its seats would wait for ever."""
    swarm = Swarm(plan(blow("kill", "bitmap arrived", nth=3)))
    assert swarm.run().holds
    (kill, respawn) = faults(swarm)
    assert (kill[0], respawn[0]) == ("kill", "respawn")
    begun = next(each.at for each in swarm.entries if isinstance(each.event, ev.SlotCounted))
    assert any(e.at < begun for e in swarm.entries if isinstance(e.event, ev.FaultFired))
