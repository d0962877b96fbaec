"""Memory for a few frames only: the disk holds the rest, and a replay comes from there."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.engine.surroundings import frames_of_a_step
from p2ptrain.observe import events as ev
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.spill import short_of_memory
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

MICROBATCHES = 16
SLOW = 0.2
DISK = 100_000


def tiny(*, stages: int = 2, kept: int = 3) -> RunSpec:
    """Memory for the frames of ``kept`` microbatches, of the 16 of a step."""
    return short_of_memory(toy_spec(stages=stages, microbatches=MICROBATCHES, steps=3), kept)


def peers(*seats: int) -> list[PeerPlan]:
    """``seats``: how many replicas each stage has."""
    return [
        PeerPlan(peer=PeerId(f"{stage}-{number}"), stage=Stage(stage), speed=SLOW)
        for stage, count in enumerate(seats)
        for number in range(count)
    ]


def found(result: SwarmResult, kind: type) -> list[Any]:
    return [entry.event for entry in result.entries if isinstance(entry.event, kind)]


def trained(result: SwarmResult, spec: RunSpec) -> bool:
    return result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def counted(peer: str, *, least: int) -> Callable[[ev.Entry], bool]:
    """True when ``peer`` has counted so many."""
    slots: set[tuple[int, int]] = set()

    def when(entry: ev.Entry) -> bool:
        if isinstance(entry.event, ev.SlotCounted) and entry.peer == peer:
            slots.add((entry.event.step, entry.event.slot))
        return len(slots) >= least

    return when


def publishes(stage: int, step: int) -> Callable[[ev.Entry], bool]:
    return lambda entry: (
        isinstance(entry.event, ev.SumPublished)
        and (entry.event.stage, entry.event.step) == (stage, step)
    )


def kill(peer: str) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        world.kill(PeerId(peer))
        return PeerId(peer)

    return act


def test_a_step_that_memory_cannot_keep_is_kept_on_disk(play: Play) -> None:
    spec = tiny()
    result = play(Scenario(spec=spec, peers=peers(1, 1), spill_bytes=DISK))
    assert trained(result, spec)
    spilled = found(result, ev.Spilled)
    assert {event.what for event in spilled} == {"forward", "gradient"}
    bounds = found(result, ev.Bounds)
    assert max(bound.retained_bytes for bound in bounds) <= spec.limits.retained_bytes
    most = max(bound.spilled_bytes for bound in bounds)
    assert spec.limits.retained_bytes < most <= 2 * frames_of_a_step(spec, Stage(0))


def test_a_lost_seat_is_replayed_from_the_disk(play: Play, cue: MakeCue) -> None:
    spec = tiny()
    result = play(
        Scenario(spec=spec, peers=peers(1, 2), spill_bytes=DISK),
        cue("kill", counted("1-0", least=6), kill("1-0")),
    )
    assert trained(result, spec)
    read = {(e.stage, e.step, e.slot, e.what) for e in found(result, ev.SpillRead)}
    sent_again = {
        (sent.stage - 1, sent.step, sent.slot, sent.what)
        for sent in found(result, ev.FrameSent)
        if sent.replay
    }
    assert read & sent_again  # others had not been sent at all when memory was short


def test_gradients_are_had_back_from_the_disk_too(play: Play, cue: MakeCue) -> None:
    """The middle stage counts again what died with its seat: the last one kept the gradients."""
    spec = tiny(stages=3)
    result = play(
        Scenario(spec=spec, peers=peers(1, 2, 1), spill_bytes=DISK),
        cue("kill", counted("1-0", least=6), kill("1-0")),
    )
    assert trained(result, spec)
    assert {event.what for event in found(result, ev.SpillRead)} == {"forward", "gradient"}


def test_a_full_disk_says_busy_and_training_goes_on_when_it_has_room(
    play: Play, cue: MakeCue
) -> None:
    spec = tiny()

    def full(world: SimWorld, entry: ev.Entry) -> PeerId:
        for host in world.hosts.values():
            assert host.spill is not None
            host.spill.refusal = errno.ENOSPC
        return entry.peer

    def room(world: SimWorld, entry: ev.Entry) -> PeerId:
        for host in world.hosts.values():
            assert host.spill is not None
            host.spill.refusal = None
        return entry.peer

    result = play(
        Scenario(spec=spec, peers=peers(1, 1), spill_bytes=DISK),
        cue("full disk", lambda e: isinstance(e.event, ev.Spilled), full),
        cue("room", lambda e: isinstance(e.event, ev.Alarm), room, after=30.0),
    )
    assert trained(result, spec)
    alarms = [event.reason for event in found(result, ev.Alarm)]
    assert any("cannot be spilled" in alarm for alarm in alarms)
    at = next(e.at for e in result.entries if isinstance(e.event, ev.Alarm))
    meanwhile = [e.event for e in result.entries if at + 2.0 < e.at < at + 29.0]
    assert not [event for event in meanwhile if isinstance(event, ev.StepCommitted)]
    assert [event for event in meanwhile if isinstance(event, ev.BusySaid)]


def test_without_a_disk_nothing_is_spilled(play: Play) -> None:
    spec = tiny(kept=20)
    result = play(Scenario(spec=spec, peers=peers(1, 1)))
    assert trained(result, spec)
    assert found(result, ev.Spilled) == []


def test_a_disk_that_does_not_give_back_what_it_took_costs_its_seat_and_not_the_run(
    play: Play, cue: MakeCue
) -> None:
    """What it held is lost with it, and counted again by a stage-mate: nobody waits for ever."""
    spec = tiny()

    def broken(world: SimWorld, _entry: ev.Entry) -> PeerId:
        spill = world.hosts[PeerId("0-0")].spill
        assert spill is not None
        spill.unreadable = True
        return PeerId("0-0")

    result = play(
        Scenario(spec=spec, peers=peers(2, 2), spill_bytes=DISK),
        cue("bad disk", lambda e: isinstance(e.event, ev.Spilled), broken),
        cue("kill", counted("1-0", least=6), kill("1-0")),
    )
    assert trained(result, spec)
    assert any("cannot be read back" in event.reason for event in found(result, ev.Alarm))
    closed = [e for e in result.entries if isinstance(e.event, ev.SeatClosed)]
    assert [(e.peer, e.event.stage) for e in closed if "read back" in e.event.reason] == [
        ("0-0", 0)
    ]


def loses_frames(peer: str, *, lost: bool = True) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        spill = world.hosts[PeerId(peer)].spill
        assert spill is not None
        spill.unreadable = lost
        return PeerId(peer)

    return act


def seat_closed(entry: ev.Entry) -> bool:
    return isinstance(entry.event, ev.SeatClosed)


def spilled_by(peer: str) -> Callable[[ev.Entry], bool]:
    return lambda entry: isinstance(entry.event, ev.Spilled) and entry.peer == peer


@pytest.mark.parametrize(
    ("seats", "bad", "dies", "least"),
    [((1, 2), "0-0", "1-0", 6), ((1, 2), "0-0", "1-0", 22), ((1, 1, 2), "1-0", "2-0", 22)],
)
def test_a_seat_without_a_mate_whose_frames_are_lost_begins_its_step_again(
    play: Play, cue: MakeCue, seats: tuple[int, ...], bad: str, dies: str, least: int
) -> None:
    """Nobody else holds its state: it is the one that it began the step with itself."""
    spec = tiny(stages=len(seats))
    result = play(
        Scenario(spec=spec, peers=peers(*seats), spill_bytes=DISK),
        cue("bad disk", counted(dies, least=least - 2), loses_frames(bad)),
        cue("good disk", seat_closed, loses_frames(bad, lost=False)),
        cue("kill", counted(dies, least=least), kill(dies)),
    )
    assert trained(result, spec)
    closed = [e for e in result.entries if isinstance(e.event, ev.SeatClosed)]
    stage = Stage(int(bad[0]))
    assert [(e.peer, e.event.stage) for e in closed if "read back" in e.event.reason] == [
        (bad, stage)
    ]
    assert not found(result, ev.RolledBack)


@pytest.mark.parametrize("after", [0.0, 0.03])
def test_a_seat_that_comes_to_another_sum_the_second_time_signs_no_second_one(
    play: Play, cue: MakeCue, after: float
) -> None:
    """Stage 1 has its sum when who had counted it above dies, and with it what a frame is for."""
    plain = tiny(stages=3)
    sync = msgspec.structs.replace(plain.sync, agreement="canonical")
    rounded = [dataclasses.replace(plan, rounding=str(plan.peer)) for plan in peers(1, 1, 2)]
    result = play(
        Scenario(
            spec=msgspec.structs.replace(plain, sync=sync),
            peers=rounded,
            spill_bytes=DISK,
            link=Link(latency_seconds=0.02, rate_bytes_per_second=200_000.0),
            verify=False,
        ),
        cue("bad disk", publishes(1, 1), loses_frames("1-0")),
        cue("kill", publishes(1, 1), kill("2-0"), after),
        cue("good disk", seat_closed, loses_frames("1-0", lost=False)),
    )
    assert found(result, ev.SpillLost)
    assert not [alarm for alarm in found(result, ev.Alarm) if "two SUMs" in alarm.reason]
    assert not found(result, ev.RunLost)


def test_the_only_peer_of_a_run_begins_its_step_again_too(play: Play, cue: MakeCue) -> None:
    spec = tiny()
    result = play(
        Scenario(spec=spec, peers=[PeerPlan(peer=PeerId("alone"))], spill_bytes=DISK),
        cue("bad disk", spilled_by("alone"), loses_frames("alone")),
        cue("good disk", seat_closed, loses_frames("alone", lost=False)),
    )
    assert trained(result, spec)


def test_a_disk_that_loses_frames_again_and_again_ends_its_peer_with_the_reason(
    play: Play, cue: MakeCue
) -> None:
    result = play(
        Scenario(spec=tiny(), peers=[PeerPlan(peer=PeerId("alone"))], spill_bytes=DISK),
        cue("bad disk", spilled_by("alone"), loses_frames("alone")),
        holds=False,
    )
    assert result.peers[PeerId("alone")].lost == (
        "stage 0: this peer's disk has lost frames 4 times"
    )
    assert len(found(result, ev.RunLost)) == 1
