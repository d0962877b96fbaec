"""Swarms with disks: what is saved is whole, and a disk that fails stops nobody."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.checkpoint import listed
from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint, digest
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.store import MemoryStore
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

SPEC = msgspec.structs.replace(
    toy_spec(stages=3, microbatches=8, steps=12), checkpoint=Checkpoint(every_steps=3)
)
PEERS = [PeerPlan(peer=PeerId(f"p{stage}"), stage=Stage(stage)) for stage in range(3)]


def found(result: SwarmResult, kind: type[ev.AnyEvent], peer: str) -> list[Any]:
    return [e.event for e in result.entries if e.peer == peer and isinstance(e.event, kind)]


def trained(result: SwarmResult) -> bool:
    return result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest


def marks(store: MemoryStore) -> dict[int, list[int]]:
    names = asyncio.run(store.names())
    return {
        stage: [mark.step for mark in found] for stage, found in listed(names, digest(SPEC)).items()
    }


def test_every_peer_saves_its_stage_every_third_step_and_keeps_two(play: Play) -> None:
    disks = {plan.peer: MemoryStore() for plan in PEERS}
    result = play(Scenario(spec=SPEC, peers=PEERS, stores=disks))
    assert trained(result)
    for stage, plan in enumerate(PEERS):
        saved = [event.version for event in found(result, ev.CheckpointSaved, plan.peer)]
        assert saved == [3, 6, 9, 12]
        assert marks(disks[plan.peer]) == {stage: [12, 9]}
        assert found(result, ev.Alarm, plan.peer) == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_training_goes_on_when_a_disk_refuses(play: Play, cue: MakeCue, error: int) -> None:
    disks = {plan.peer: MemoryStore() for plan in PEERS}
    sick = disks[PeerId("p1")]

    def refuse(_: SimWorld, entry: ev.Entry) -> PeerId:
        sick.refusal = error
        return entry.peer

    def fourth(entry: ev.Entry) -> bool:
        event = entry.event
        return entry.peer == "p1" and isinstance(event, ev.StepCommitted) and event.step == 4

    result = play(Scenario(spec=SPEC, peers=PEERS, stores=disks), cue("disk", fourth, refuse))
    assert trained(result)
    assert sick.refused == 3
    alarms = [alarm.reason for alarm in found(result, ev.Alarm, "p1")]
    assert [reason.partition(":")[0] for reason in alarms] == [
        f"no checkpoint of stage 1 at step {step}" for step in (6, 9, 12)
    ]
    assert marks(sick) == {1: [3]}  # the last one that was saved is whole
    assert marks(disks[PeerId("p0")]) == {0: [12, 9]}
