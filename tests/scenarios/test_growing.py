"""Swarms of several sizes train like one process; newcomers count, early ones make room."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec

Play = Callable[..., SwarmResult]


def trained(result: SwarmResult, spec: RunSpec) -> bool:
    return result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def seats(result: SwarmResult, kind: type[ev.SeatOpened | ev.SeatClosed]) -> list[PeerId]:
    return [entry.peer for entry in result.entries if isinstance(entry.event, kind)]


@pytest.mark.parametrize(
    ("peers", "stages", "microbatches"), [(1, 1, 4), (1, 3, 8), (6, 3, 16), (12, 4, 16)]
)
def test_a_swarm_of_any_size_trains_like_one_process(
    play: Play, peers: int, stages: int, microbatches: int
) -> None:
    spec = toy_spec(stages=stages, microbatches=microbatches, steps=3)
    result = play(Scenario(spec=spec, peers=crowd(peers)))
    assert trained(result, spec)
    assert result.unfinished == ()
    assert all(peer.finished for peer in result.peers.values())


def test_nothing_is_computed_twice_in_calm(play: Play) -> None:
    spec = toy_spec(stages=3, microbatches=16, steps=3)
    result = play(Scenario(spec=spec, peers=crowd(6)))
    kinds = {type(entry.event) for entry in result.entries}
    assert not kinds & {ev.Replayed, ev.Recalled, ev.Subtracted, ev.Suspected, ev.Alarm}
    counted = sum(isinstance(entry.event, ev.SlotCounted) for entry in result.entries)
    assert counted == 3 * 3 * 16


def test_one_that_comes_late_loads_state_and_counts(play: Play) -> None:
    spec = toy_spec(stages=2, microbatches=8, steps=8)
    late = PeerPlan(peer=PeerId("late"), starts_at=8.0, speed=0.1)
    result = play(Scenario(spec=spec, peers=[*crowd(3, speeds=(0.1,)), late]))
    assert trained(result, spec)
    (loaded,) = [e for e in result.entries if isinstance(e.event, ev.StateLoaded)]
    assert loaded.peer == "late"
    counted = [
        entry.event
        for entry in result.entries
        if isinstance(entry.event, ev.SlotCounted) and entry.peer == "late"
    ]
    assert counted
    assert all(event.step >= loaded.event.version for event in counted)


def test_one_peer_alone_gives_its_seats_away_as_others_come(play: Play) -> None:
    spec = toy_spec(stages=3, microbatches=6, steps=10)
    peers = [
        PeerPlan(peer=PeerId("first"), speed=0.1),
        PeerPlan(peer=PeerId("second"), speed=0.1, starts_at=15.0),
        PeerPlan(peer=PeerId("third"), speed=0.1, starts_at=20.0),
    ]
    result = play(Scenario(spec=spec, peers=peers))
    assert trained(result, spec)
    assert seats(result, ev.SeatOpened).count(PeerId("first")) == 3
    assert seats(result, ev.SeatClosed).count(PeerId("first")) >= 1
    assert all(len(peer.versions) < 3 for peer in result.peers.values())


def test_a_draining_seat_whose_successor_dies_serves_on(
    play: Play, cue: Callable[..., object]
) -> None:
    """Whoever gave the seat up goes back to serving: nobody else is left."""
    spec = toy_spec(stages=2, microbatches=6, steps=12)
    peers = [
        PeerPlan(peer=PeerId("first"), speed=0.1),
        PeerPlan(peer=PeerId("second"), speed=0.1, starts_at=15.0),
    ]

    def second_opens(entry: ev.Entry) -> bool:
        return entry.peer == "second" and isinstance(entry.event, ev.SeatOpened)

    def kill(world: object, entry: ev.Entry) -> PeerId:
        world.kill(entry.peer)  # type: ignore[attr-defined]
        return entry.peer

    result = play(Scenario(spec=spec, peers=peers), cue("kill", second_opens, kill, 0.3))
    assert trained(result, spec)


def test_stages_that_peers_insist_on_are_theirs(play: Play) -> None:
    spec = toy_spec(stages=2, microbatches=6, steps=2)
    peers = [
        PeerPlan(peer=PeerId("low"), stage=Stage(0)),
        PeerPlan(peer=PeerId("high"), stage=Stage(1)),
    ]
    result = play(Scenario(spec=spec, peers=peers))
    opened = {(e.peer, e.event.stage) for e in result.entries if isinstance(e.event, ev.SeatOpened)}
    assert opened == {("low", 0), ("high", 1)}
