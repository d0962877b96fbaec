"""Frames come off a stream one by one, whatever the stream holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2ptrain.core.agreement import Ballot, Position
from p2ptrain.engine import framed
from p2ptrain.errors import LinkError, WireError
from p2ptrain.run import Cut, Model, RunSpec
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, Digest, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import (
    Control,
    Data,
    Gradient,
    Hello,
    Leaving,
    Part,
    Refused,
    Welcome,
)

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer

EVE = PeerId("eve")
SPEC = RunSpec(
    model=Model(d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=16, context=4),
    cut=Cut(stages=2),
)
LIMITS = FrameLimits(SPEC)
AT = Position(epoch=0, step=Step(0), chain=Chain(bytes(32)))
GRADIENT = Gradient(at=AT, slot=Slot(0), stage=Stage(0))
SIZE = LIMITS.payload_bytes(GRADIENT)
HELLO = Hello(protocol=1, run=RunId("r"), channel="control", incarnation=1, arithmetic="")


class Stream:
    """Holds bytes to be read; keeps what is sent."""

    peer = EVE

    def __init__(self, given: bytes = b"") -> None:
        self.given = given
        self.sent = b""
        self.asked: list[int] = []

    async def send(self, *buffers: Buffer) -> None:
        self.sent += b"".join(buffers)

    async def receive_into(self, buffer: memoryview) -> None:
        self.asked.append(len(buffer))
        if len(self.given) < len(buffer):
            raise LinkError("stream ended")
        buffer[:] = self.given[: len(buffer)]
        self.given = self.given[len(buffer) :]

    async def close(self) -> None:
        raise NotImplementedError


def controls(given: bytes) -> tuple[list[Control], Exception]:
    heard: list[Control] = []
    try:
        run(framed.receive_control(Stream(given), LIMITS, heard.append))
    except (LinkError, WireError) as error:
        return heard, error
    raise AssertionError


def test_control_messages_until_the_stream_ends() -> None:
    said = [Leaving(reason=str(index)) for index in range(3)]
    heard, error = controls(b"".join(map(framing.encode, said)))
    assert heard == said
    assert isinstance(error, LinkError)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_anywhere_ends_the_reading_there(data: st.DataObject) -> None:
    frames = [framing.encode(Leaving(reason=str(index))) for index in range(3)]
    whole = bytearray(b"".join(frames))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    heard, error = controls(bytes(whole))
    before = place // len(frames[0])
    assert [m.reason for m in heard if isinstance(m, Leaving)] == [str(i) for i in range(before)]
    assert isinstance(error, LinkError | WireError)


class Drip(Stream):
    """A peer that says something short every second, for ever."""

    async def receive_into(self, buffer: memoryview) -> None:
        while len(self.given) < len(buffer):
            await asyncio.sleep(1.0)
            self.given += framing.encode(Leaving(reason="a beat"))
        await super().receive_into(buffer)


@pytest.mark.parametrize("channel", ["control", "data"])
def test_a_damaged_length_does_not_swallow_what_follows_for_ever(channel: str) -> None:
    async def main() -> None:
        frame = bytearray(framing.encode(Leaving(reason="damaged")))
        frame[5] = framing.Kind.CONTROL if channel == "control" else framing.Kind.DATA
        frame[10] |= 0x40  # 16 kB more
        receive = framed.receive_control if channel == "control" else framed.receive_data
        with pytest.raises(WireError, match="did not come to its end"):
            await receive(Drip(bytes(frame)), LIMITS, lambda *_: None)
        assert asyncio.get_running_loop().time() <= framed.LONG_SECONDS

    run(main())


def test_data_arrives_in_a_buffer_of_its_own() -> None:
    heard: list[tuple[Data, memoryview]] = []

    async def main() -> None:
        out = Stream()
        for fill in (1, 2):
            await framed.send_data(out, GRADIENT, (bytes((fill,)) * SIZE,))
        with pytest.raises(LinkError):
            await framed.receive_data(
                Stream(out.sent), LIMITS, lambda *arrived: heard.append(arrived)
            )

    run(main())
    assert [bytes(payload) for _, payload in heard] == [b"\1" * SIZE, b"\2" * SIZE]
    assert heard[0][1].obj is not heard[1][1].obj


def test_nothing_is_allocated_for_a_part_that_cannot_be() -> None:
    part = Part(
        at=AT,
        stage=Stage(0),
        ballot=Ballot(round=0, rank=0, digest=Digest(bytes(32))),
        what="own",
        start=0,
        stop=10**12,
    )
    head = bytearray(b"".join(framing.encode_data(part)))
    head[12:20] = (8 * 10**12).to_bytes(8, "big")
    stream = Stream(bytes(head))
    with pytest.raises(WireError, match=r"Part\.stop"):
        run(framed.receive_data(stream, LIMITS, lambda *_: None))
    assert max(stream.asked) < 1000


def test_a_damaged_payload_is_not_delivered() -> None:
    async def main() -> None:
        out = Stream()
        await framed.send_data(out, GRADIENT, (bytes(SIZE),))
        damaged = out.sent[:-1] + b"!"
        with pytest.raises(WireError, match="checksum"):
            await framed.receive_data(Stream(damaged), LIMITS, lambda *_: pytest.fail("delivered"))

    run(main())


def test_a_long_sum_gives_way_to_others() -> None:
    async def main() -> int:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as tasks:
            busy = tasks.create_task(others())
            await framed.send_data(Stream(), GRADIENT, (bytes(8 * framing.PIECE_BYTES),))
            busy.cancel()
        return turns

    assert run(main()) >= 7


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Refused(reason="not you"), framed.RefusedByPeerError),
        (HELLO, WireError),
        (Refused(reason="x" * 2000), WireError),
    ],
)
def test_greetings_that_fail(answer: Hello | Refused, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(framed.greet(Stream(framing.encode(answer)), HELLO, LIMITS))


def test_greetings_that_succeed() -> None:
    stream = Stream(framing.encode(Welcome(incarnation=5)))
    assert run(framed.greet(stream, HELLO, LIMITS)) == Welcome(incarnation=5)
    assert run(framed.read_hello(Stream(stream.sent), LIMITS)) == HELLO
    with pytest.raises(WireError, match="began a stream with Welcome"):
        run(framed.read_hello(Stream(framing.encode(Welcome(incarnation=1))), LIMITS))
