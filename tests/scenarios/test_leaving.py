"""Who leaves in good order takes nothing along that only he held."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.compute import CostModel
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, toy_compute
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

SPEC = toy_spec(stages=3, microbatches=12, steps=30)


def committed(peer: str, step: int) -> Callable[[ev.Entry], bool]:
    return lambda entry: (
        entry.peer == peer
        and isinstance(entry.event, ev.StepCommitted)
        and entry.event.step == step
    )


def draining(*peers: str) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """Ctrl-C at all of them in the same moment."""

    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        for peer in peers:
            node = world.hosts[PeerId(peer)].node
            assert node is not None
            node.drain()
        return PeerId(peers[0])

    return act


def events(result: SwarmResult, peer: str, kind: type[ev.AnyEvent]) -> list[ev.Entry]:
    return [e for e in result.entries if e.peer == peer and isinstance(e.event, kind)]


def leaving_seconds(result: SwarmResult, peer: str) -> float:
    fault = next(e for e in result.entries if isinstance(e.event, ev.FaultFired))
    (stopped,) = events(result, peer, ev.PeerStopped)
    return stopped.at - fault.at


@pytest.mark.parametrize("leaver", ["p0", "p1", "p2"])
def test_the_only_replica_of_a_stage_hands_it_over(play: Play, cue: MakeCue, leaver: str) -> None:
    peers = [PeerPlan(peer=PeerId(f"p{number}"), speed=0.2) for number in range(3)]
    result = play(
        Scenario(spec=SPEC, peers=peers), cue("drain", committed(leaver, 2), draining(leaver))
    )
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    assert leaving_seconds(result, leaver) < 15.0
    (said,) = events(result, leaver, ev.Alarm)
    assert "only this peer serves stage" in said.event.reason  # type: ignore[union-attr]
    assert not [e for e in result.entries if isinstance(e.event, ev.Suspected)]


def test_a_whole_swarm_told_to_leave_leaves(play: Play, cue: MakeCue) -> None:
    """Nobody waits for anybody to take over."""
    peers = [
        PeerPlan(peer=PeerId(f"p{stage}"), stage=Stage(stage), speed=0.2) for stage in range(3)
    ]
    many = toy_spec(stages=3, microbatches=12, steps=400)
    scenario = Scenario(spec=many, peers=peers)
    result = play(
        scenario, cue("drain", committed("p1", 2), draining("p0", "p1", "p2")), holds=False
    )
    for peer in ("p0", "p1", "p2"):
        assert leaving_seconds(result, peer) < 15.0  # all go: there is nobody to wait for


@pytest.mark.parametrize(("latency", "seed"), [(0.05, 2), (0.1, 1)])
def test_a_seat_is_not_given_to_newcomers_who_are_behind(
    play: Play, latency: float, seed: int
) -> None:
    """Steps are shorter than the loading of a state: who serves may be steps behind."""
    peers = [
        PeerPlan(peer=PeerId(f"p{n}"), speed=4.0, starts_at=16.0 if n else 0.0) for n in range(4)
    ]
    link = Link(latency_seconds=latency, rate_bytes_per_second=400_000.0)
    spec = toy_spec(stages=3, microbatches=12, steps=60)
    result = play(Scenario(spec=spec, peers=peers, link=link, seed=seed))
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest
    closed = [e.event.reason for e in result.entries if isinstance(e.event, ev.SeatClosed)]
    assert any("steps behind" in reason for reason in closed)


def test_an_heir_who_is_a_step_behind_catches_up_with_the_one_who_leaves(
    play: Play, cue: MakeCue
) -> None:
    """Loading takes longer than a step: the heir begins behind, and only the leaver is ahead."""
    peers = [PeerPlan(peer=PeerId(f"p{number}")) for number in range(2)]
    spec = toy_spec(stages=3, microbatches=12, steps=60)
    link = Link(latency_seconds=0.15, rate_bytes_per_second=20_000.0)
    for leaver in ("p0", "p1"):
        result = play(
            Scenario(spec=spec, peers=peers, link=link),
            cue("drain", committed(leaver, 2), draining(leaver)),
        )
        assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest
        assert leaving_seconds(result, leaver) < 30.0


def test_a_leaver_who_has_fallen_behind_goes(play: Play, cue: MakeCue) -> None:
    """Its seat is closed, being steps behind: it takes no other while it leaves."""
    peers = [
        PeerPlan(peer=PeerId(f"p{n}"), speed=4.0, starts_at=16.0 if n > 2 else 0.0)
        for n in range(5)
    ]
    link = Link(latency_seconds=0.1, rate_bytes_per_second=400_000.0)
    spec = toy_spec(stages=3, microbatches=12, steps=80)

    def behind(entry: ev.Entry) -> bool:
        return isinstance(entry.event, ev.SeatOpened) and entry.event.version > 0

    def drain_it(world: SimWorld, entry: ev.Entry) -> PeerId:
        return draining(entry.peer)(world, entry)

    result = play(Scenario(spec=spec, peers=peers, link=link), cue("drain", behind, drain_it))
    leaver = next(e.peer for e in result.entries if behind(e))
    assert leaving_seconds(result, leaver) < 20.0


@pytest.mark.parametrize("agreement", ["bitwise", "canonical"])
@pytest.mark.parametrize(("steps", "load_seconds", "in_time"), [(9, 8.0, True), (12, 12.0, False)])
def test_who_has_finished_stays_for_who_fell_behind_and_loads_a_seat_again(
    play: Play, *, agreement: Any, steps: int, load_seconds: float, in_time: bool
) -> None:
    """It opens a step behind, and gets the last one's sums; or hears that it comes too late."""
    plain = toy_spec(stages=2, microbatches=12, steps=steps)
    sync = msgspec.structs.replace(plain.sync, agreement=agreement)
    peers = [
        PeerPlan(peer=PeerId("first"), speed=0.2),
        PeerPlan(peer=PeerId("late"), speed=0.2, starts_at=30.0),
    ]
    result = play(
        Scenario(
            spec=msgspec.structs.replace(plain, sync=sync),
            peers=peers,
            compute=toy_compute(CostModel(load_seconds=load_seconds)),
            verify=False,
        )
    )
    closed = [e.event.reason for e in events(result, "late", ev.SeatClosed)]  # type: ignore[union-attr]
    assert all("steps behind" in reason for reason in closed)
    assert len(closed) == (1 if in_time else 2)
    first, late = result.peers[PeerId("first")], result.peers[PeerId("late")]
    assert (first.finished, first.lost, late.lost) == (True, "", "")
    assert result.unfinished == ()
    assert late.finished is in_time
