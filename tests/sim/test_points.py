"""Failpoints are recognised on the wire and in the log, and only those that are armed."""

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.lineage import Rollback
from p2ptrain.observe import events as ev
from p2ptrain.sim.points import (
    IN_COPYING,
    IN_LOSS,
    IN_SHARING,
    IN_TRANSFER,
    IN_TROUBLE,
    PHASES,
    POINTS,
    Watch,
    read_frames,
)
from p2ptrain.units import Chain, PeerId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire import messages as m

A, B = PeerId("a"), PeerId("b")
AT = Position(epoch=0, step=Step(1), chain=Chain(bytes(32)))


def forward() -> bytes:
    message = m.Forward(at=AT, slot=Slot(0), stage=Stage(1), attempt=0, replay=False, path=(A,))
    frame = framing.DataFrame(message, (b"tensor",))
    while frame.advance():
        pass
    return b"".join(frame.buffers)


def accepted(what: str) -> bytes:
    message = m.Accepted(at=AT, slot=Slot(0), stage=Stage(1), what=what)  # type: ignore[arg-type]
    return framing.encode(message)


def reached(*armed: str) -> tuple[Watch, list[tuple[str, PeerId]]]:
    seen: list[tuple[str, PeerId]] = []
    watch = Watch(lambda name, actor: seen.append((name, actor)))
    for name in armed:
        watch.arm(name)
    return watch, seen


def test_the_actor_of_what_is_sent_is_the_sender_and_of_what_arrives_the_receiver() -> None:
    watch, seen = reached("forward sent", "forward arrived")
    watch.heard("sent", (A, B), forward())
    watch.heard("arrived", (A, B), memoryview(forward()))
    assert seen == [("forward sent", A), ("forward arrived", B)]


def test_messages_that_are_written_together_are_told_apart() -> None:
    watch, seen = reached("gradient ack sent", "forward ack sent")
    watch.heard("sent", (A, B), accepted("gradient") + accepted("forward") + accepted("forward"))
    assert [name for name, _ in seen] == ["gradient ack sent", *["forward ack sent"] * 2]


def test_what_is_not_armed_is_not_told() -> None:
    watch, seen = reached("forward arrived", "committed")
    watch.disarm("forward arrived")
    watch.heard("arrived", (A, B), forward())
    watch.happened(A, ev.SlotCounted(stage=Stage(0), step=Step(0), slot=Slot(0)))
    assert seen == []


def test_events_are_points_too() -> None:
    watch, seen = reached("counting", "seat opened later")
    watch.happened(B, ev.SlotCounted(stage=Stage(0), step=Step(0), slot=Slot(0)))
    for version in (0, 2):
        watch.happened(A, ev.SeatOpened(stage=Stage(0), version=Step(version), reason="hole"))
    assert seen == [("counting", B), ("seat opened later", A)]


def test_a_rollback_is_told_and_taken_over() -> None:
    watch, seen = reached("rollback arrived", "rolled back", "slots wanted sent", "copy kept")
    watch.heard("arrived", (A, B), framing.encode(Rollback(at=AT, peer=A, signature=b"")))
    watch.heard("sent", (A, B), framing.encode(m.WantSlots(at=AT, room=2)))
    watch.happened(A, ev.StateKept(stage=Stage(0), version=Step(2), size_bytes=9))
    fell = ev.RolledBack(
        epoch=1,
        version=Step(2),
        chain=AT.chain,
        discarded_epoch=0,
        discarded_version=Step(3),
        discarded_chain=AT.chain,
        reason="a stage is lost",
    )
    watch.happened(B, fell)
    names = ["rollback arrived", "slots wanted sent", "copy kept", "rolled back"]
    assert seen == list(zip(names, [B, A, A, B], strict=True))


@pytest.mark.parametrize(
    "damaged", [b"", b"noise" * 20, forward()[:30], accepted("forward")[:-1], b"\0" + forward()]
)
def test_damaged_bytes_hold_no_message(damaged: bytes) -> None:
    assert list(read_frames(damaged)) == []


def test_rare_points_are_points() -> None:
    assert set(POINTS) > IN_TROUBLE | IN_TRANSFER
    assert not IN_TROUBLE & IN_TRANSFER
    assert set(POINTS) > IN_SHARING | IN_COPYING | IN_LOSS
    assert {"copy kept"} == IN_COPYING - IN_TRANSFER


def test_every_phase_has_its_points() -> None:
    assert all(name in POINTS for names in PHASES.values() for name in names)
