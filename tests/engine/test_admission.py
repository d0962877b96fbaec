"""Which seats a peer takes: weak stages first, holes beside its own, never a run anew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from p2ptrain.engine.terms import NodeOptions
from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint, digest
from p2ptrain.sim import loop
from p2ptrain.sim.directory import Stored
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire.records import SeatRecord, encode_record, stage_key

SPEC = toy_spec(stages=2, microbatches=6, steps=4)


def simulate(*peers: PeerPlan, **changes: Any) -> SwarmResult:
    return SimWorld(Scenario(spec=SPEC, peers=peers, **changes)).run()


def plan(name: str, **changes: Any) -> PeerPlan:
    return PeerPlan(peer=PeerId(name), speed=0.2, **changes)


def opened(result: SwarmResult) -> list[tuple[str, int, str]]:
    return [
        (entry.peer, entry.event.stage, entry.event.reason)
        for entry in result.entries
        if isinstance(entry.event, ev.SeatOpened)
    ]


def first(result: SwarmResult, kind: type[ev.AnyEvent]) -> float:
    return next(entry.at for entry in result.entries if isinstance(entry.event, kind))


def test_peers_that_start_together_spread_evenly() -> None:
    result = simulate(*crowd(6))
    assert result.holds, result.verdicts
    finished = [stage for peer in result.peers.values() for stage in peer.versions]
    assert sorted(finished) == [0, 0, 0, 1, 1, 1]


def test_a_hole_is_filled_only_after_newcomers_had_their_time() -> None:
    options = NodeOptions(spare_seconds=4.0)
    result = simulate(plan("alone"), options=options)
    assert result.holds
    assert [stage for _, stage, _ in opened(result)] in ([0, 1], [1, 0])
    assert first(result, ev.Sourced) >= 4.0


def test_a_hole_in_a_run_that_has_begun_is_filled_at_once_for_everybody_waits() -> None:
    options = NodeOptions(spare_seconds=40.0)
    spec = msgspec.structs.replace(SPEC, checkpoint=Checkpoint(every_steps=1))
    world = SimWorld(Scenario(spec=spec, peers=[plan("a"), plan("b")], options=options))
    emit, died = world.emit, list[float]()

    def watched(peer: PeerId, event: ev.AnyEvent) -> None:
        emit(peer, event)
        if isinstance(event, ev.StateKept) and not died:
            died.append(world.clock.time())
            other = PeerId("b" if peer == "a" else "a")
            world.clock.call_soon(world.kill, other, context=world.network.context)

    world.emit = watched  # type: ignore[method-assign]
    result = world.run()
    assert result.holds, result.verdicts
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest
    filled = [e.at for e in result.entries if isinstance(e.event, ev.SeatOpened)][-1]
    assert filled - died[0] < 8.0  # two or three until it is noticed, as many to be sure


def test_a_peer_without_room_takes_no_second_seat() -> None:
    one_seat = 140_000  # a seat takes 120,576 bytes
    small = plan("a", memory_bytes=one_seat)
    result = simulate(small, plan("b", memory_bytes=one_seat, starts_at=20.0))
    assert result.holds
    assert all(len(peer.versions) == 1 for peer in result.peers.values())


def test_a_stage_that_was_demanded_stays_the_only_one() -> None:
    result = simulate(plan("low", stage=Stage(0)), plan("high", stage=Stage(1), starts_at=15.0))
    assert result.holds
    assert {(peer, stage) for peer, stage, _ in opened(result)} == {("low", 0), ("high", 1)}


def test_training_begins_only_when_all_stages_have_their_replicas() -> None:
    sync = msgspec.structs.replace(SPEC.sync, start_replicas=2)
    spec = msgspec.structs.replace(SPEC, sync=sync)
    peers = [*(plan(f"early-{n}") for n in range(3)), plan("last", starts_at=9.0)]
    result = SimWorld(Scenario(spec=spec, peers=peers)).run()
    assert result.holds
    assert first(result, ev.Sourced) > 9.0


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(ev.SlotCounted, id="the stage above has counted"),
        pytest.param(ev.Sourced, id="nobody else has done anything"),
    ],
)
def test_a_run_that_has_begun_goes_on_with_fewer_than_it_wanted_to_begin(
    sign: type[ev.AnyEvent],
) -> None:
    """All of stage 0 die in the first step, and one comes: it hears that the run had begun."""
    sync = msgspec.structs.replace(SPEC.sync, start_replicas=2)
    spec = msgspec.structs.replace(SPEC, sync=sync)
    peers = [plan(f"of-{stage}-{n}", stage=Stage(stage)) for stage in (0, 1) for n in (0, 1)]
    world = SimWorld(Scenario(spec=spec, peers=peers, stall_seconds=100.0))
    emit, signs = world.emit, set[str]()

    def strike() -> None:
        for victim in ("of-0-0", "of-0-1"):
            world.kill(PeerId(victim))
        world.start(plan("heir", starts_at=world.clock.time() + 2.0))

    def watched(peer: PeerId, event: ev.AnyEvent) -> None:
        emit(peer, event)
        if isinstance(event, sign) and not signs:
            signs.add(peer)
            world.clock.call_soon(strike, context=world.network.context)

    world.emit = watched  # type: ignore[method-assign]
    result = world.run()
    assert result.holds, result.verdicts
    assert result.peers[PeerId("heir")].finished
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def test_who_lies_that_the_run_has_begun_only_has_it_begin_with_fewer() -> None:
    sync = msgspec.structs.replace(SPEC.sync, start_replicas=2)
    spec = msgspec.structs.replace(SPEC, sync=sync)
    peers = [*(plan(f"early-{n}") for n in range(3)), plan("last", starts_at=9.0)]
    world = SimWorld(Scenario(spec=spec, peers=peers))
    emit = world.emit

    def watched(peer: PeerId, event: ev.AnyEvent) -> None:
        emit(peer, event)
        node = world.hosts[peer].node if peer else None
        if node is not None and peer == "early-1":
            node.roster.begun = True  # and so it says

    world.emit = watched  # type: ignore[method-assign]
    result = world.run()
    assert result.holds, result.verdicts
    assert first(result, ev.Sourced) < 9.0
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def test_who_comes_when_all_is_done_does_not_begin_anew() -> None:
    result = simulate(plan("a"), plan("b"), plan("late", starts_at=first_end() - 0.3))
    assert result.holds
    commits = [
        entry.event.step
        for entry in result.entries
        if isinstance(entry.event, ev.StepCommitted) and entry.peer == "late"
    ]
    assert commits == [] or min(commits) > 0
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest


def first_end() -> float:
    return first(simulate(plan("a"), plan("b")), ev.RunEnded)


def test_an_alarm_is_told_once_and_not_at_every_look() -> None:
    peers = [plan(f"low-{n}", stage=Stage(0)) for n in range(2)]
    world = SimWorld(
        Scenario(
            spec=SPEC,
            peers=[*peers, plan("high", stage=Stage(1))],
            stall_seconds=60.0,
        )
    )
    emit = world.emit

    def watched(peer: PeerId, event: ev.AnyEvent) -> None:
        emit(peer, event)
        if isinstance(event, ev.StepCommitted) and event.stage == 1 and event.step == 1:
            world.clock.call_later(0.0, world.kill, peer, context=world.network.context)
            again = plan("heir", stage=Stage(1), starts_at=world.clock.time() + 1.0)
            world.clock.call_later(0.0, world.start, again, context=world.network.context)

    world.emit = watched  # type: ignore[method-assign]
    with pytest.raises(loop.StalledError):  # the stage is lost
        world.run()
    alarms = [e for e in world.entries if isinstance(e.event, ev.Alarm) and e.peer == "heir"]
    assert 1 <= len(alarms) <= 3


@pytest.mark.parametrize("version", [1, 8])
def test_a_record_of_nobody_neither_begins_nor_ends_a_run(version: int) -> None:
    """Anybody may write into the directory: what it says of a run is heard from peers first."""
    spec = toy_spec(stages=2, microbatches=4, steps=8)
    world = SimWorld(Scenario(spec=spec, peers=crowd(4), stall_seconds=200.0))
    nobody = SimSigner(PeerId("nobody"), seed=world.scenario.seed)
    record = SeatRecord(state="serving", version=Step(version), rate=1.0, queue=0, incarnation=1)
    blank = Stored(
        key=stage_key(digest(spec), Stage(0)),
        owner=nobody.peer,
        sequence=1,
        expires_at=100.0,
        value=encode_record(record),
        signature=b"",
    )
    world.table.plant(replace(blank, signature=nobody.sign(blank.signed_bytes())))
    result = world.run()
    assert result.holds
    assert all(peer.finished for peer in result.peers.values())
