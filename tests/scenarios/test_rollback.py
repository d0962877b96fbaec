"""The run falls back: to the newest step that every stage has, all of it, to the same weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.observe.recovery import recovery_seconds
from p2ptrain.run import Checkpoint, RunSpec
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

STAGES = 3
STAGE_SECONDS = 30.0  # what recovery of a stage may take
PEERS = [PeerPlan(peer=PeerId(f"p{number}")) for number in range(6)]


def spec(*, steps: int = 12, every: int = 3) -> RunSpec:
    return msgspec.structs.replace(
        toy_spec(stages=STAGES, microbatches=8, steps=steps),
        checkpoint=Checkpoint(every_steps=every),
    )


def trained(result: SwarmResult, run: RunSpec) -> bool:
    return result.weights_digest == reference(run, ToyCorpus(run)).weights_digest


def all_of(result: SwarmResult, kind: type[ev.AnyEvent], peer: str | None = None) -> list[Any]:
    return [
        entry.event
        for entry in result.entries
        if isinstance(entry.event, kind) and peer in (None, entry.peer)
    ]


def counted(step: int, stage: int, nth: int = 3) -> Callable[[ev.Entry], bool]:
    seen = 0

    def when(entry: ev.Entry) -> bool:
        nonlocal seen
        event = entry.event
        here = isinstance(event, ev.SlotCounted) and (event.step, event.stage) == (step, stage)
        seen += here
        return here and seen == nth

    return when


def losing(stage: int, *, guards: bool = False) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """Everybody who serves ``stage`` dies at once, with those who guard it if asked."""

    def act(world: SimWorld, entry: ev.Entry) -> PeerId:
        doomed = {host.peer for host in world.harm.replicas()[Stage(stage)]}
        if guards:
            doomed |= {
                each.peer
                for each in world.entries
                if isinstance(each.event, ev.StateKept) and each.event.stage == stage
            }
        for peer in sorted(doomed):
            if world.hosts[peer].alive:
                world.harm.kill(world.hosts[peer], respawn_seconds=None)
        return entry.peer

    return act


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_stage_whose_newest_copy_is_too_old_takes_the_run_back_to_it(
    play: Play, cue: MakeCue, stage: int
) -> None:
    """Copies are of every third step; the others wait in the sixth, and cannot give the fourth."""
    run = spec()
    result = play(Scenario(spec=run, peers=PEERS), cue("loss", counted(5, stage), losing(stage)))
    assert trained(result, run)
    falls = all_of(result, ev.RolledBack)
    assert {(fall.epoch, fall.version) for fall in falls} == {(1, 3)}
    assert all(fall.discarded_epoch == 0 for fall in falls)
    again = [e for e in all_of(result, ev.StepCommitted) if e.epoch == 1]
    assert {e.step for e in again} == set(range(3, 12))


def test_before_the_first_copy_the_run_falls_back_to_its_beginning(
    play: Play, cue: MakeCue
) -> None:
    run = spec(every=6)
    result = play(Scenario(spec=run, peers=PEERS), cue("loss", counted(3, 1), losing(1)))
    assert trained(result, run)
    assert {(f.epoch, f.version) for f in all_of(result, ev.RolledBack)} == {(1, 0)}


def down_to(left: int) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """Of those who serve stage 1 only so many stay."""

    def act(world: SimWorld, _entry: ev.Entry) -> PeerId:
        for host in world.harm.replicas()[Stage(1)][left:]:
            world.harm.kill(host, respawn_seconds=None)
        return PeerId("stage 1")

    return act


def joining(world: SimWorld, entry: ev.Entry) -> PeerId:
    world.harm.another("join", world.hosts[PeerId("p0")].plan)
    return entry.peer


@pytest.mark.parametrize("newcomer", [False, True])
@pytest.mark.parametrize(("every", "step", "copy"), [(2, 1, 0), (2, 5, 4), (3, 4, 3), (3, 5, 3)])
def test_a_stage_whose_copy_is_of_no_use_takes_the_run_back_within_half_a_minute(
    play: Play, cue: MakeCue, every: int, step: int, copy: int, *, newcomer: bool
) -> None:
    """Of the step before, too: all had heard that the stage took it, and keep its frames no more.

    Whoever restored it there stood still for most of a minute, and so did a newcomer, who
    knows nothing of that step.
    """
    run, slow = spec(every=every), [PeerPlan(peer=each.peer, speed=0.05) for each in PEERS]
    begun = partial(counted, step, 1, nth=1)
    struck = [cue("one", begun(), down_to(1)), cue("stage-loss", begun(), down_to(0), after=3.0)]
    if newcomer:
        struck.append(cue("comes", begun(), joining, after=6.0))
    result = play(Scenario(spec=run, peers=slow), *struck)
    assert trained(result, run)
    assert {(f.epoch, f.version) for f in all_of(result, ev.RolledBack)} == {(1, copy)}
    assert max(recovery_seconds(result.entries)) < STAGE_SECONDS


@pytest.mark.parametrize("every", [0, 1])
def test_a_run_of_which_nothing_is_left_is_given_up_by_all_in_order(
    play: Play, cue: MakeCue, every: int
) -> None:
    run = spec(every=every)
    scenario = Scenario(spec=run, peers=PEERS, stall_seconds=400.0)
    result = play(scenario, cue("loss", counted(5, 1), losing(1, guards=True)), holds=False)
    assert not any(left.finished for left in result.peers.values())
    named = r"stage (\d, )*1(, \d)* is lost: "  # with the stages of those who gave up before
    assert all(re.match(named, left.lost) for left in result.peers.values())
    assert len(all_of(result, ev.RunLost)) == len(result.peers) > 0
    assert all_of(result, ev.RunEnded) == []
    assert result.unfinished == ()


def test_who_never_had_a_seat_gives_up_a_lost_run_when_all_who_had_one_have_left(
    play: Play, cue: MakeCue
) -> None:
    """Of those who are left nobody serves anything, so nobody says where the run stands."""
    late = PeerPlan(peer=PeerId("late"), stage=Stage(1), starts_at=40.0)
    scenario = Scenario(spec=spec(every=1), peers=[*PEERS, late], stall_seconds=400.0)
    result = play(scenario, cue("loss", counted(5, 1), losing(1, guards=True)), holds=False)
    assert all_of(result, ev.SeatOpened, "late") == []
    assert re.match("stage 0, 1, 2 is lost", result.peers[PeerId("late")].lost)
    assert result.unfinished == ()


def linked(entry: ev.Entry) -> bool:
    return entry.peer == "peer-new-0001" and isinstance(entry.event, ev.LinkUp)


def orphaning(world: SimWorld, entry: ev.Entry) -> PeerId:
    """All who have a seat die: who has just come is alone."""
    for host in world.harm.present():
        if host.peer != entry.peer:
            world.harm.kill(host, respawn_seconds=None)
    return entry.peer


@pytest.mark.parametrize(("step", "nth"), [(0, 3), (0, 6), (1, 1), (2, 1)])
def test_who_came_as_all_others_died_in_the_first_steps_begins_the_run_again(
    play: Play, cue: MakeCue, step: int, nth: int
) -> None:
    run, slow = spec(every=1), [PeerPlan(peer=each.peer, speed=0.05) for each in PEERS]
    comes = cue("comes", counted(step, 1, nth=nth), joining)
    result = play(Scenario(spec=run, peers=slow), comes, cue("loss", linked, orphaning, after=3.0))
    assert trained(result, run)


@pytest.mark.parametrize("after", [0.0, 0.85])
def test_who_came_as_the_last_peer_left_does_not_begin_a_run_again_that_had_come_far(
    play: Play, cue: MakeCue, after: float
) -> None:
    """It left as it should, and nothing of it is to be had: the run is given up."""

    def leaving(world: SimWorld, entry: ev.Entry) -> PeerId:
        node = world.hosts[PeerId("p0")].node
        assert node is not None
        node.drain()
        return entry.peer

    alone = [PeerPlan(peer=PeerId("p0"), speed=3.0)]
    result = play(
        Scenario(spec=spec(every=1, steps=60), peers=alone, stall_seconds=400.0),
        cue("comes", counted(40, 1), joining, after=after),
        cue("leaves", linked, leaving, after=0.1 if after else 0.0),
        holds=False,
    )
    assert 0 not in [each.version for each in all_of(result, ev.SeatOpened, "peer-new-0001")]
    assert all_of(result, ev.RunLost, "peer-new-0001")


LONG = spec(steps=150)


def frozen_and_lost(seconds: float) -> Callable[[SimWorld, ev.Entry], PeerId]:
    """One of several peers of stage 0 hangs so long; those of stage 1 die."""

    def act(world: SimWorld, entry: ev.Entry) -> PeerId:
        late = world.harm.replicas()[Stage(0)][-1]
        world.harm.freeze(late, seconds, "process")
        losing(1)(world, entry)
        return late.peer

    return act


def test_who_was_frozen_while_the_others_fell_back_comes_after_them(
    play: Play, cue: MakeCue
) -> None:
    scenario = Scenario(spec=LONG, peers=PEERS, patience_seconds=90.0)
    result = play(scenario, cue("loss", counted(5, 1), frozen_and_lost(60.0)))
    assert trained(result, LONG)
    late = next(e.event.target for e in result.entries if getattr(e.event, "fault", "") == "loss")
    thawed = next(e.at for e in result.entries if getattr(e.event, "fault", "") == "thaw")
    fell = {e.peer: e.at for e in result.entries if isinstance(e.event, ev.RolledBack)}
    assert fell[late] >= thawed > max(at for peer, at in fell.items() if peer != late)
    steps = [event.epoch for event in all_of(result, ev.StepCommitted, late)]
    assert steps[-1] == 1
    assert steps == sorted(steps)


def divide(world: SimWorld, entry: ev.Entry) -> PeerId:
    """One side has a peer of every stage; the other has lost stage 2, whose guard it has."""
    world.harm.partition([PeerId("p0"), PeerId("p1"), PeerId("p2")], 60.0)
    for host in world.harm.replicas()[Stage(2)]:
        if host.peer != "p2":
            world.harm.kill(host, respawn_seconds=None)
    return entry.peer


@pytest.mark.parametrize("seed", range(3))
def test_two_histories_become_one_when_a_partition_heals(
    play: Play, cue: MakeCue, seed: int
) -> None:
    """Steps go on on one side; the other falls back to epoch 1, and its lineage is that of all."""
    peers = [PeerPlan(peer=PeerId(f"p{n}"), stage=Stage(n % STAGES), speed=0.2) for n in range(6)]
    peers += [PeerPlan(peer=PeerId(f"spare{n}"), speed=0.2) for n in range(3)]
    run = spec(steps=80)
    scenario = Scenario(spec=run, peers=peers, seed=seed, patience_seconds=90.0)
    result = play(scenario, cue("split", counted(5, 1), divide))
    assert trained(result, run)
    healed = next(e.at for e in result.entries if getattr(e.event, "fault", "") == "heal")
    later = [entry for entry in result.entries if entry.at > healed]
    fell = {e.peer: e.event for e in later if isinstance(e.event, ev.RolledBack)}
    assert fell.keys() == {"p0", "p1", "p2"}
    assert {(event.epoch, event.discarded_epoch) for event in fell.values()} == {(1, 0)}
    assert all(event.discarded_version > event.version for event in fell.values())
    assert max(e.at for e in later if isinstance(e.event, ev.RolledBack)) < healed + 10.0
    last = {e.peer: e.event.epoch for e in later if isinstance(e.event, ev.StepCommitted)}
    assert set(last.values()) == {1}
