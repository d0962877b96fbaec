"""Failpoints on real peers: the named step, the n-th time, and one peer of all."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.errors import UserError
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.network import SimNetwork
from p2ptrain.units import Chain, PeerId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire import messages as m
from peers.failpoint import Failpoint, HaltAt, parse

if TYPE_CHECKING:
    from pathlib import Path

    from p2ptrain.ports import Stream

A, B = PeerId("a"), PeerId("b")
AT = Position(epoch=0, step=Step(0), chain=Chain(bytes(32)))
ASK = framing.encode(m.Ask(at=AT, slot=Slot(1), stage=Stage(1), attempt=0, replay=False))
WHERE = framing.encode(m.Where(at=AT, slot=Slot(1), stage=Stage(1)))


class Stopped:
    """Two peers with the same failpoint; ``stopped`` says who stood still, ``told`` what."""

    def __init__(self, halt: HaltAt | None) -> None:
        self.stopped: list[str] = []
        self.told: list[ev.AnyEvent] = []
        self.points = {
            name: Failpoint(halt, stop=partial(self.stopped.append, name)) for name in (A, B)
        }
        for point in self.points.values():
            point.emit = self.told.append


def exchange(stopped: Stopped, *messages: bytes) -> None:
    """``a`` opens a stream to ``b`` and both send the messages; all arrives as it was sent."""

    async def answer(stream: Stream) -> None:
        for message in messages:
            buffer = bytearray(len(message))
            await stream.receive_into(memoryview(buffer))
            assert buffer == message
            await stream.send(message)

    async def play() -> None:
        async with SimNetwork(seed=1) as network:
            ours, theirs = (stopped.points[p].tapped(network.transport(p)) for p in (A, B))
            assert (ours.peer, theirs.peer) == (A, B)
            await theirs.listen(answer)
            stream = await ours.open(B)
            for message in messages:
                await stream.send(message[:7], message[7:])
                await stream.receive_into(memoryview(bytearray(len(message))))
            await stream.close()
            await asyncio.sleep(1.0)

    loop.run(play())


def test_one_peer_stops_at_its_nth_passage(tmp_path: Path) -> None:
    stopped = Stopped(HaltAt(point="where sent", times=2, claim=tmp_path / "claim"))
    exchange(stopped, WHERE, ASK, WHERE, WHERE)
    assert stopped.stopped == [A]  # the other has passed it as often, a moment later
    assert stopped.told == [ev.Halted(point="where sent", times=2)]


def test_what_is_not_asked_for_changes_nothing(tmp_path: Path) -> None:
    stopped = Stopped(None)
    exchange(stopped, WHERE)
    assert stopped.stopped == []
    elsewhere = Stopped(HaltAt(point="plan sent", times=1, claim=tmp_path / "claim"))
    exchange(elsewhere, WHERE, ASK)
    assert elsewhere.stopped == []


def test_a_point_may_have_spaces_and_a_claim_colons(tmp_path: Path) -> None:
    claim = tmp_path / "a:b"
    assert parse(f"3:plan sent:{claim}") == HaltAt(point="plan sent", times=3, claim=claim)


@pytest.mark.parametrize(
    "text", ["", "plan sent", "3:plan sent", "3:plan arrived:c", "3:committed:c", "x:plan sent:c"]
)
def test_another_form_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="TIMES:POINT:FILE"):
        parse(text)
