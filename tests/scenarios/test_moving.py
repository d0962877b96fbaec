"""A stage that lost its seats is helped by the others; in calm everybody stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.blows import Blow
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.swarms import SwarmPlan, run
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

ONE_SEAT = 140_000  # bytes; a seat takes 120,576


def trained(result: SwarmResult, spec: RunSpec) -> bool:
    return result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def seats(result: SwarmResult) -> list[tuple[float, str, int, str]]:
    """When which peer opened (+) or closed (-) a seat of which stage, and why."""
    return [
        (
            entry.at,
            ("+" if isinstance(entry.event, ev.SeatOpened) else "-") + entry.peer,
            entry.event.stage,
            entry.event.reason,
        )
        for entry in result.entries
        if isinstance(entry.event, ev.SeatOpened | ev.SeatClosed)
    ]


def step(number: int) -> Callable[[ev.Entry], bool]:
    return lambda e: isinstance(e.event, ev.StepCommitted) and e.event.step == number


def halving(stage: int, survivors: int) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """All but so many replicas of a stage die at once."""

    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        here = [host.peer for host in world.hosts.values() if stage in host.stages]
        for peer in sorted(here)[survivors:]:
            world.kill(peer)
            world.emit(peer, ev.FaultFired(fault="kill", target=peer))
        return max(here)

    return act


@pytest.mark.parametrize("memory_bytes", [None, ONE_SEAT], ids=["room for two", "room for one"])
def test_a_stage_that_lost_its_seats_is_refilled(
    play: Play, cue: MakeCue, memory_bytes: int | None
) -> None:
    spec = toy_spec(stages=2, microbatches=8, steps=60)
    peers = crowd(8, speeds=(0.02,), memory_bytes=memory_bytes)
    result = play(Scenario(spec=spec, peers=peers), cue("halve", step(2), halving(1, survivors=1)))
    assert trained(result, spec)
    struck = next(e.at for e in result.entries if isinstance(e.event, ev.FaultFired))
    later = [seat for seat in seats(result) if seat[0] > struck]
    opened = [seat for seat in later if seat[1][0] == "+"]
    closed = [seat for seat in later if seat[1][0] == "-"]
    assert {stage for _, _, stage, _ in opened} == {1}
    assert {stage for _, _, stage, _ in closed} == {0}
    assert opened[0][0] < struck + 100.0
    assert 1 <= len(opened) == len(closed) <= 2  # of 4 and 1 become 3 and 2
    if memory_bytes is None:  # served here before it was given up there
        left = {seat[1][1:]: seat[0] for seat in closed}
        assert {seat[1][1:]: seat[0] < left[seat[1][1:]] for seat in opened} == dict.fromkeys(
            left, True
        )
    assert not [
        e for e in result.entries if isinstance(e.event, ev.Replayed) and e.at > struck + 30
    ]


def test_in_calm_nobody_moves(play: Play) -> None:
    """Speeds differ by half, and rates are measured ones: not worth a move."""
    spec = toy_spec(stages=2, microbatches=8, steps=40)
    result = play(Scenario(spec=spec, peers=crowd(6, speeds=(0.02, 0.03))))
    assert trained(result, spec)
    assert result.seconds > 120.0
    assert [seat for seat in seats(result) if seat[1][0] == "-"] == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_fifty_that_come_at_once_spread(play: Play) -> None:
    spec = toy_spec(stages=4, microbatches=16, steps=4)
    first = crowd(8, speeds=(0.02,))
    late = [PeerPlan(peer=PeerId(f"late-{n:02}"), speed=0.02, starts_at=25.0) for n in range(50)]
    result = play(Scenario(spec=spec, peers=[*first, *late]))
    assert trained(result, spec)
    stages: dict[int, set[str]] = {stage: set() for stage in range(4)}
    for _, peer, stage, _ in seats(result):
        (set.add if peer[0] == "+" else set.discard)(stages[stage], peer[1:])
    counts = [len(peers) for peers in stages.values()]
    assert sum(counts) == 58
    assert max(counts) / min(counts) <= 1.5


def test_a_stage_that_is_lost_while_somebody_moves_there_is_taken_once() -> None:
    """The mover finds a hole beside its own stage, and both ways in lead to the same seat."""
    loss = Blow(kind="stage-loss", point="counting", nth=107, seconds=12.0)
    outcome = run(
        SwarmPlan(
            seed=20056,
            stages=3,
            microbatches=11,
            steps=4,
            replicas=2,
            speeds=(0.247, 0.484, 0.169, 0.193, 0.77, 0.107),
            interval_seconds=0.0,
            latency_seconds=0.005,
            jitter_seconds=0.0,
            blows=(loss,),
        )
    )
    assert outcome.fired == {"stage-loss at counting": 1}
    assert not outcome.failed, outcome.reason


def test_a_stage_whose_last_owner_gives_its_seat_away_is_gone_on_with_by_those_who_come() -> None:
    """Of two owners one has stopped, to go where it is needed more, and the other dies.

    Whoever opens a seat there takes all of the step from the data and leads its round, at once:
    not after three times what the last step took, which was long.
    """
    outcome = run(
        SwarmPlan(
            seed=19593,
            stages=3,
            microbatches=8,
            steps=3,
            replicas=1,
            speeds=(0.285, 0.243, 0.857, 0.273),
            interval_seconds=0.0,
            latency_seconds=0.15,
            jitter_seconds=0.0,
            blows=(
                Blow(kind="freeze", point="counting", nth=23, seconds=8.0),
                Blow(kind="freeze", point="where sent", nth=1, seconds=6.0),
                Blow(kind="kill", point="counting", nth=27, seconds=6.0),
            ),
        )
    )
    assert sum(outcome.fired.values()) == 3
    assert not outcome.failed, outcome.reason
    assert outcome.end == "trained"
    assert outcome.seconds < 60.0
