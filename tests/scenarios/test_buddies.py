"""A stage loses all its replicas: what a neighbour kept of it brings it back, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

STAGES = 3
SPEC = msgspec.structs.replace(
    toy_spec(stages=STAGES, microbatches=8, steps=12), checkpoint=Checkpoint(every_steps=1)
)
PEERS = [PeerPlan(peer=PeerId(f"p{number}")) for number in range(5)]


def counted(step: int, stage: int, nth: int) -> Callable[[ev.Entry], bool]:
    seen = 0

    def when(entry: ev.Entry) -> bool:
        nonlocal seen
        event = entry.event
        here = isinstance(event, ev.SlotCounted) and (event.step, event.stage) == (step, stage)
        seen += here
        return here and seen == nth

    return when


def losing(stage: int) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """Everybody who serves ``stage`` dies at once, and nobody comes in their place."""

    def act(world: SimWorld, entry: ev.Entry) -> PeerId:
        for host in world.harm.replicas()[Stage(stage)]:
            world.harm.kill(host, respawn_seconds=None)
        return entry.peer

    return act


def all_of(result: SwarmResult, kind: type[ev.AnyEvent]) -> list[Any]:
    return [entry.event for entry in result.entries if isinstance(entry.event, kind)]


def steps_of(result: SwarmResult, peer: str, stage: int) -> list[int]:
    return [
        entry.event.step
        for entry in result.entries
        if isinstance(entry.event, ev.StepCommitted)
        and (entry.peer, entry.event.stage) == (peer, stage)
    ]


def test_every_stage_has_a_copy_of_every_step_beside_it(play: Play) -> None:
    result = play(Scenario(spec=SPEC, peers=PEERS))
    for stage in range(STAGES):
        kept = [event.version for event in all_of(result, ev.StateKept) if event.stage == stage]
        assert kept == [*range(1, 12)]
    assert all_of(result, ev.Alarm) == []


@pytest.mark.parametrize("stage", range(STAGES))
@pytest.mark.parametrize("nth", [1, 5, 8])
def test_a_stage_whose_replicas_all_died_is_restored_alone(
    play: Play, cue: MakeCue, stage: int, nth: int
) -> None:
    scenario = Scenario(spec=SPEC, peers=PEERS)
    result = play(scenario, cue("stage-loss", counted(4, stage, nth), losing(stage)))
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    loaded = [event for event in all_of(result, ev.StateLoaded) if event.stage == stage]
    assert next(event.version for event in loaded) in (3, 4)
    for event in all_of(result, ev.StepCommitted):
        assert event.epoch == 0
