"""Strangers stand at the door briefly, few at a time, and are told why they may not enter."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.engine.door import Door
from p2ptrain.engine.link import Link, LinkSettings
from p2ptrain.errors import LinkError
from p2ptrain.observe.events import AnyEvent, FrameRefused, LinkRefused
from p2ptrain.run import RunSpec
from p2ptrain.sim.loop import run
from p2ptrain.units import PeerId, RunId
from p2ptrain.wire import framing
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import Hello

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer

EVE = PeerId("eve")
HELLO = Hello(protocol=1, run=RunId("r"), channel="control", incarnation=1, arithmetic="")
SETTINGS = LinkSettings(handshake_seconds=10.0, most_handshakes=2)


class Stream:
    """Gives its bytes, then keeps silent until it is closed."""

    peer = EVE

    def __init__(self, given: bytes = b"") -> None:
        self.given = given
        self.sent = b""
        self.closed = asyncio.Event()

    async def send(self, *buffers: Buffer) -> None:
        self.sent += b"".join(buffers)

    async def receive_into(self, buffer: memoryview) -> None:
        if len(self.given) < len(buffer):
            await self.closed.wait()
            raise LinkError("closed")
        buffer[:] = self.given[: len(buffer)]
        self.given = self.given[len(buffer) :]

    async def close(self) -> None:
        self.closed.set()


def door(events: list[AnyEvent]) -> Door:
    def admit(_peer: PeerId, _hello: Hello) -> Link | str:
        return "no room"

    return Door(HELLO, FrameLimits(RunSpec()), SETTINGS, admit, events.append)


def visit(*streams: Stream, seconds: float) -> list[AnyEvent]:
    """What a door that is open for so long does with ``streams``."""
    events: list[AnyEvent] = []

    async def main() -> None:
        entrance = door(events)
        async with asyncio.TaskGroup() as transport, asyncio.TaskGroup() as tasks:
            entrance.open(tasks)
            for stream in streams:
                transport.create_task(entrance.accept(stream))
            await asyncio.sleep(seconds)

    run(main(), ceiling_seconds=100.0)
    assert all(stream.closed.is_set() for stream in streams)
    return events


def told(stream: Stream) -> str:
    head, body = stream.sent[: framing.HEADER_BYTES], stream.sent[framing.HEADER_BYTES :]
    answer = framing.decode_handshake(framing.decode_header(head, framing.Kind.HANDSHAKE), body)
    assert hasattr(answer, "reason")
    return str(answer.reason)


def test_who_is_not_admitted_is_told_why() -> None:
    stranger = Stream(framing.encode(msgspec.structs.replace(HELLO, run=RunId("other"))))
    surplus = Stream(framing.encode(HELLO))
    events = visit(stranger, surplus, seconds=1.0)
    assert told(stranger).startswith("this peer trains run r, you other")
    assert told(surplus) == "no room"
    assert [event.reason for event in events if isinstance(event, LinkRefused)] == [
        told(stranger),
        "no room",
    ]


def test_noise_is_blamed_and_silence_ends_with_the_deadline() -> None:
    noise, silent = Stream(b"GET / HTTP/1.1\r\n\r\n" * 3), Stream()
    (event,) = visit(noise, silent, seconds=11.0)
    assert isinstance(event, FrameRefused)
    assert (noise.sent, silent.sent) == (b"", b"")


def test_beyond_the_bound_a_stream_is_closed_unread() -> None:
    streams = [Stream(), Stream(), Stream(framing.encode(HELLO))]
    assert visit(*streams, seconds=1.0) == []
    assert streams[2].given == framing.encode(HELLO)


def test_a_door_that_is_not_open_takes_nothing() -> None:
    async def main() -> None:
        stream = Stream(framing.encode(HELLO))
        await door([]).accept(stream)
        assert stream.closed.is_set()

    run(main())


def test_closing_the_door_ends_those_who_stand_in_it() -> None:
    async def main() -> None:
        entrance, stream = door([]), Stream()

        async def hold() -> None:
            async with asyncio.TaskGroup() as tasks:
                entrance.open(tasks)
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as transport:
            holding = transport.create_task(hold())
            await asyncio.sleep(0)
            transport.create_task(entrance.accept(stream))
            await asyncio.sleep(0)
            holding.cancel()  # the stream's task may not even have begun
        assert stream.closed.is_set()
        late = Stream()
        await entrance.accept(late)
        assert late.closed.is_set()

    run(main())
