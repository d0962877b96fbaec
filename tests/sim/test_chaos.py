"""Planned faults happen, are written down, and the swarm still trains the right weights."""

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.faults import parse
from p2ptrain.sim.scenario import Scenario, SwarmResult, crowd
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage

SPEC = toy_spec(stages=2, microbatches=8, steps=8)


def simulate(chaos: str, *, peers: int = 6, seed: int = 0) -> SwarmResult:
    scenario = Scenario(spec=SPEC, peers=crowd(peers), chaos=parse(chaos), seed=seed)
    return SimWorld(scenario).run()


def fired(result: SwarmResult) -> list[tuple[str, float, PeerId]]:
    return [
        (entry.event.fault, entry.at, entry.peer)
        for entry in result.entries
        if isinstance(entry.event, ev.FaultFired)
    ]


@pytest.mark.parametrize(
    ("chaos", "counted"),
    [
        ("slow=10x:1", {"slow": 1}),
        ("freeze=1:10s", {"freeze": 1}),
        ("partition=30%:20s", {"partition": 1}),
        ("bootstrap-death", {"bootstrap-death": 1}),
        ("daemon-death", {"daemon-death": 1}),
    ],
)
def test_a_fault_fires_is_counted_and_survived(chaos: str, counted: dict[str, int]) -> None:
    result = simulate(chaos)
    assert result.faults == counted
    assert result.holds, result.verdicts


def test_a_dead_peer_says_nothing_more() -> None:
    result = simulate("kill=3000%/min:respawn=never")
    deaths = [(at, peer) for fault, at, peer in fired(result) if fault == "kill"]
    assert deaths
    for died_at, peer in deaths:
        (after,) = [e.event for e in result.entries if e.peer == peer and e.at > died_at]
        assert after == ev.Remains(tasks=0, streams=0, records=0)  # by the coroner
    assert result.holds, result.verdicts


def test_kills_spare_the_last_replica() -> None:
    result = simulate("kill=100000%/min:respawn=never", peers=4)
    serving: dict[Stage, set[PeerId]] = {Stage(0): set(), Stage(1): set()}
    for entry in result.entries:
        match entry.event:
            case ev.SeatOpened(stage=stage):
                serving[stage].add(entry.peer)
            case ev.SeatClosed(stage=stage):
                serving[stage].discard(entry.peer)
            case ev.FaultFired(fault="kill", target=target):
                for stage, peers in serving.items():
                    peers.discard(PeerId(target))
                    assert peers, f"stage {stage} lost its last replica"
            case _:
                pass
    assert 1 <= result.faults["kill"] <= 3


def test_what_freezes_thaws_and_what_splits_heals() -> None:
    names = [fault for fault, _, _ in fired(simulate("freeze=1:2s,partition=30%:2s"))]
    assert sorted(names) == ["freeze", "heal", "partition", "thaw"]


def test_a_frozen_process_is_silent_until_it_thaws() -> None:
    for seed in range(20):
        result = simulate("freeze=1:5s", seed=seed)
        (_, begins, peer), *ends = fired(result)
        until = ends[0][1]
        said = [e for e in result.entries if e.peer == peer and begins < e.at < until]
        if not said:  # the seed froze the process, not only its network daemon
            return
    pytest.fail("no seed froze a process")
