"""Swarms with disks: what is saved is whole, and a disk that fails stops nobody."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.checkpoint import listed
from p2ptrain.engine.terms import NodeOptions
from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint, Optimizer, digest
from p2ptrain.sim.compute import CostModel
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, toy_compute
from p2ptrain.sim.store import MemoryStore
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

SPEC = msgspec.structs.replace(
    toy_spec(stages=3, microbatches=8, steps=12), checkpoint=Checkpoint(every_steps=3)
)
PEERS = [PeerPlan(peer=PeerId(f"p{stage}"), stage=Stage(stage)) for stage in range(3)]


class SlowStore(MemoryStore):
    """A disk that takes ``seconds`` for a file."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def put(self, name: str, blob: Buffer) -> None:
        await asyncio.sleep(self._seconds)  # of virtual time
        await super().put(name, blob)


def found(result: SwarmResult, kind: type[ev.AnyEvent], peer: str) -> list[Any]:
    return [e.event for e in result.entries if e.peer == peer and isinstance(e.event, kind)]


def trained(result: SwarmResult) -> bool:
    return result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest


def marks(store: MemoryStore) -> dict[int, list[int]]:
    names = asyncio.run(store.names())
    return {
        stage: [mark.step for mark in found] for stage, found in listed(names, digest(SPEC)).items()
    }


@pytest.mark.parametrize(("step_seconds", "disk_seconds"), [(0.0, 0.0), (3.0, 0.0), (3.0, 5.0)])
@pytest.mark.parametrize("peers", [PEERS, [PeerPlan(peer=PeerId("p0"))]])
def test_when_all_leave_nothing_that_was_done_is_lost(
    play: Play, cue: MakeCue, peers: list[PeerPlan], step_seconds: float, disk_seconds: float
) -> None:
    """Nobody stays who would hold it: what stands at the boundary is saved, due or not."""

    def at_step_4(entry: ev.Entry) -> bool:
        return isinstance(entry.event, ev.StepCommitted) and entry.event.step == 4

    def drain_all(world: SimWorld, _: ev.Entry) -> PeerId:
        for plan in peers:
            node = world.hosts[plan.peer].node
            assert node is not None
            node.drain()
        return peers[0].peer

    checkpoint = Checkpoint(every_steps=25 if disk_seconds else 4)
    changes = {"optimizer": Optimizer(steps=400), "checkpoint": checkpoint}
    spec = msgspec.structs.replace(SPEC, **changes)
    disks = {plan.peer: SlowStore(disk_seconds) for plan in peers}
    compute = toy_compute(CostModel(step_seconds=step_seconds))  # one stage after another
    scenario = Scenario(spec=spec, peers=peers, stores=disks, compute=compute)
    result = play(scenario, cue("drain", at_step_4, drain_all), holds=False)
    assert any(isinstance(e.event, ev.FaultFired) for e in result.entries)
    for plan in peers:
        newest = {}
        for event in found(result, ev.StepCommitted, plan.peer):
            newest[int(event.stage)] = event.step + 1
        names = asyncio.run(disks[plan.peer].names())
        kept = listed(names, digest(spec))
        assert {stage: marks[0].step for stage, marks in kept.items()} == newest
        assert len(set(newest.values())) == 1  # else the run could not go on from there
        saved = [(e.stage, e.version) for e in found(result, ev.CheckpointSaved, plan.peer)]
        assert len(saved) == len(set(saved))  # once each, however long leaving takes
        assert set(newest.values()) <= {5, 6}


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


# --- the whole swarm dies ------------------------------------------------------------------


RESUMING = NodeOptions(resume=True)
BYSTANDER = PeerPlan(peer=PeerId("bystander"), starts_at=100.0)
"""Somebody must be to come, or the world would end with the swarm; the run is over by then."""


def plan(name: str, stage: int | None = None, **given: Any) -> PeerPlan:
    return PeerPlan(peer=PeerId(name), stage=None if stage is None else Stage(stage), **given)


def committed(peer: str, step: int) -> Callable[[ev.Entry], bool]:
    def when(entry: ev.Entry) -> bool:
        event = entry.event
        return entry.peer == peer and isinstance(event, ev.StepCommitted) and event.step == step

    return when


def restarting(*plans: PeerPlan) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """Everybody dies at once; these come a second later, one after another."""

    def act(world: SimWorld, entry: ev.Entry) -> PeerId:
        for host in list(world.hosts.values()):
            if host.alive and host.peer != BYSTANDER.peer:
                world.kill(host.peer)
        for late, plan in enumerate(plans):
            world.clock.call_later(1.0 + late, world.start, plan, context=world.network.context)
        return entry.peer

    return act


def died_and_restarted(
    play: Play,
    cue: MakeCue,
    *plans: PeerPlan,
    disks: dict[PeerId, MemoryStore],
    at: int = 7,
    before: Sequence[PeerPlan] = PEERS,
) -> SwarmResult:
    scenario = Scenario(spec=SPEC, peers=[*before, BYSTANDER], stores=disks, options=RESUMING)
    result = play(scenario, cue("all die", committed(before[0].peer, at), restarting(*plans)))
    assert trained(result)
    return result


def resumed(result: SwarmResult) -> set[int]:
    return {e.event.version for e in result.entries if isinstance(e.event, ev.Resumed)}


def first_steps(result: SwarmResult) -> set[int]:
    """The first step of every peer's second life."""
    seen: dict[str, list[int]] = {}
    for entry in result.entries:
        if isinstance(entry.event, ev.PeerStarted):
            seen[entry.peer] = []
        elif isinstance(entry.event, ev.StepCommitted):
            seen[entry.peer].append(entry.event.step)
    return {steps[0] for peer, steps in seen.items() if steps and peer != BYSTANDER.peer}


def test_a_swarm_that_died_goes_on_from_its_disks_to_the_same_weights(
    play: Play, cue: MakeCue
) -> None:
    result = died_and_restarted(play, cue, *PEERS, disks={p.peer: MemoryStore() for p in PEERS})
    assert resumed(result) == {6}
    assert first_steps(result) == {6}
    assert [e.source for e in found(result, ev.StateLoaded, "p1")] == ["p1"]


@pytest.mark.parametrize("behind", [0, 1, 2])
def test_who_has_a_newer_checkpoint_falls_back_to_what_all_have(
    play: Play, cue: MakeCue, behind: int
) -> None:
    """One disk refuses from step 5 on: it holds step 3 alone, the others 3 and 6."""
    disks = {p.peer: MemoryStore() for p in PEERS}
    sick = disks[PEERS[behind].peer]

    def refuse(_: SimWorld, entry: ev.Entry) -> PeerId:
        sick.full = True
        return entry.peer

    scenario = Scenario(spec=SPEC, peers=[*PEERS, BYSTANDER], stores=disks, options=RESUMING)
    result = play(
        scenario,
        cue("full disk", committed(PEERS[behind].peer, 4), refuse),
        cue("all die", committed("p0", 7), restarting(*PEERS)),
    )
    assert sick.refused
    assert trained(result)
    assert resumed(result) == {3}


def test_other_peers_and_another_number_of_them_go_on(play: Play, cue: MakeCue) -> None:
    """Two machines have the disks of three peers; two more come with nothing at all."""
    one, other = MemoryStore(), MemoryStore()
    names = {"p0": one, "p1": other, "p2": other, "new0": one, "new1": other}
    disks = {PeerId(name): store for name, store in names.items()}
    result = died_and_restarted(
        play, cue, plan("new0"), plan("new1"), plan("bare0"), plan("bare1"), disks=disks
    )
    assert resumed(result) == {6}


def test_who_never_heard_of_checkpoints_does_not_begin_the_run_anew(
    play: Play, cue: MakeCue
) -> None:
    """The first to come has no disk: it would begin at step 0, and moves when others come."""
    disks = {p.peer: MemoryStore() for p in PEERS}
    scenario = Scenario(spec=SPEC, peers=[*PEERS, BYSTANDER], stores=disks, options=RESUMING)

    def restart(world: SimWorld, entry: ev.Entry) -> PeerId:
        ignorant = replace(scenario, options=NodeOptions())
        struck = restarting(plan("fresh"), *PEERS)(world, entry)
        world.clock.call_later(1.0, setattr, world, "scenario", ignorant)
        world.clock.call_later(1.5, setattr, world, "scenario", scenario)
        return struck

    result = play(scenario, cue("all die", committed("p0", 7), restart))
    assert trained(result)
    assert resumed(result) == {6}
    assert first_steps(result) == {6}


def test_who_resumes_into_a_living_run_joins_it(play: Play, cue: MakeCue) -> None:
    """One of two replicas dies and comes back with its disk: the run is further, and goes on."""
    peers = [*PEERS, plan("back", 1)]
    disks = {p.peer: MemoryStore() for p in peers}

    def restart(world: SimWorld, entry: ev.Entry) -> PeerId:
        world.kill(PeerId("back"))
        world.clock.call_later(1.0, world.start, plan("back", 1), context=world.network.context)
        return PeerId("back")

    spec = msgspec.structs.replace(SPEC, optimizer=Optimizer(steps=60, warmup_steps=0))
    scenario = Scenario(spec=spec, peers=peers, stores=disks, options=RESUMING)
    result = play(scenario, cue("dies", committed("back", 4), restart))
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest
    assert resumed(result) == set()
    assert [e.source for e in found(result, ev.StateLoaded, "back")] == ["p1"]


def test_a_swarm_that_died_before_its_first_checkpoint_begins_again(
    play: Play, cue: MakeCue
) -> None:
    disks = {p.peer: MemoryStore() for p in PEERS}
    result = died_and_restarted(play, cue, *PEERS, disks=disks, at=1)
    assert resumed(result) == set()
    assert first_steps(result) == {0}


def test_a_holder_who_comes_late_lifts_those_who_wait(play: Play, cue: MakeCue) -> None:
    """The first to come holds all of step 3; step 6 is whole when the last has come."""
    disks = {p.peer: MemoryStore() for p in PEERS}
    old = MemoryStore()
    disks[PeerId("old")] = old

    def keep(_: SimWorld, entry: ev.Entry) -> PeerId:
        for disk in (disks[p.peer] for p in PEERS):
            disk.copy_to(old)
        return entry.peer

    def saved(entry: ev.Entry) -> bool:
        event = entry.event
        return entry.peer == "p0" and isinstance(event, ev.StepCommitted) and event.step == 3

    scenario = Scenario(spec=SPEC, peers=[*PEERS, BYSTANDER], stores=disks, options=RESUMING)
    result = play(
        scenario,
        cue("copy", saved, keep),
        cue("all die", committed("p0", 7), restarting(plan("old"), *PEERS)),
    )
    assert trained(result)
    assert first_steps(result) == {6}


# --- one stage dies ------------------------------------------------------------------------


EVERY_STEP = msgspec.structs.replace(SPEC, checkpoint=Checkpoint(every_steps=1))


def counted(peer: str, step: int, nth: int) -> Callable[[ev.Entry], bool]:
    seen = 0

    def when(entry: ev.Entry) -> bool:
        nonlocal seen
        event = entry.event
        mine = isinstance(event, ev.SlotCounted) and (entry.peer, event.step) == (peer, step)
        seen += mine
        return mine and seen == nth

    return when


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("resume", [True, False])
def test_a_lost_stage_restores_alone_and_replays_its_step(
    play: Play,
    cue: MakeCue,
    stage: int,
    resume: bool,  # noqa: FBT001 - drawn by pytest
) -> None:
    """Its only peer dies in mid-step and starts again on its disk; the others only wait."""
    name = f"p{stage}"
    disks = {p.peer: MemoryStore() for p in PEERS}

    def restart(world: SimWorld, entry: ev.Entry) -> PeerId:
        world.kill(entry.peer)
        again = plan(name, stage)
        world.clock.call_later(1.0, world.start, again, context=world.network.context)
        return entry.peer

    scenario = Scenario(
        spec=EVERY_STEP, peers=PEERS, stores=disks, options=NodeOptions(resume=resume)
    )
    result = play(scenario, cue("stage-loss", counted(name, 4, 3), restart))
    assert result.weights_digest == reference(EVERY_STEP, ToyCorpus(EVERY_STEP)).weights_digest
    assert [(e.source, e.version) for e in found(result, ev.StateLoaded, name)] == [(name, 4)]
    for other in (p.peer for p in PEERS if p.peer != name):
        assert [e.step for e in found(result, ev.StepCommitted, other)] == [*range(12)]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("after", [0.0, 0.005, 0.02])
def test_a_stage_lost_behind_the_others_catches_up(
    play: Play, cue: MakeCue, stage: int, after: float
) -> None:
    """It dies as it says its sum: the others may have stepped on, and keep that step's frames."""
    name = f"p{stage}"
    disks = {p.peer: MemoryStore() for p in PEERS}

    def said(entry: ev.Entry) -> bool:
        event = entry.event
        return entry.peer == name and isinstance(event, ev.SumPublished) and event.step == 4

    def restart(world: SimWorld, entry: ev.Entry) -> PeerId:
        world.kill(entry.peer)
        again = plan(name, stage)
        world.clock.call_later(1.0, world.start, again, context=world.network.context)
        return entry.peer

    scenario = Scenario(spec=EVERY_STEP, peers=PEERS, stores=disks, stall_seconds=90.0)
    result = play(scenario, cue("stage-loss", said, restart, after))
    assert result.weights_digest == reference(EVERY_STEP, ToyCorpus(EVERY_STEP)).weights_digest
