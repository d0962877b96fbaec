"""Emulated lines: rate, delay, order and backpressure, in virtual time."""

import asyncio
import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import LinkError, UserError
from p2ptrain.net.emulation import EmulatedTransport, LinkShape, Uplink, parse_link
from p2ptrain.sim.loop import run
from p2ptrain.units import PeerId

ME, OTHER = PeerId("me"), PeerId("other")


class Pipe:
    """A stream that notes when what arrives, and stops reading after ``room`` bytes."""

    peer = OTHER

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self.arrived = bytearray()
        self.times: list[float] = []
        self.closed = False
        self.read = asyncio.Event()

    async def send(self, *buffers) -> None:
        while len(self.arrived) >= self.room:
            await self.read.wait()
        if self.closed:
            raise LinkError("gone", peer=OTHER)
        for buffer in buffers:
            self.arrived += buffer
            self.times.append(asyncio.get_running_loop().time())

    async def receive_into(self, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))

    async def close(self) -> None:
        self.closed = True


class Pipes:
    """A transport of such streams."""

    peer = ME

    def __init__(self, make: Callable[[], Pipe] = Pipe) -> None:
        self.make = make
        self.pipes: list[Pipe] = []

    def addresses(self) -> tuple[str, ...]:
        return ("here",)

    async def listen(self, handler) -> None:
        await handler(self.make())

    async def open(self, _: PeerId) -> Pipe:
        self.pipes.append(self.make())
        return self.pipes[-1]


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("200mbit,50ms", LinkShape(rate=25e6, delay_seconds=0.05)),
        ("1gbit", LinkShape(rate=125e6)),
        ("800kbit/s, 1s, 20ms jitter", LinkShape(rate=1e5, delay_seconds=1, jitter_seconds=0.02)),
        ("50ms,5ms", LinkShape(delay_seconds=0.05, jitter_seconds=0.005)),
    ],
)
def test_a_link_is_read_as_people_write_it(text, shape):
    assert parse_link(text) == shape


@pytest.mark.parametrize("text", ["", "fast", "200mbit,", "200,50ms", "0mbit", "1s,1s,1s", "50"])
def test_a_wrong_link_gets_one_line_with_an_example(text):
    with pytest.raises(UserError, match=r"--link .*200mbit,50ms") as caught:
        parse_link(text)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1)), max_size=30),
    st.floats(1e3, 1e9),
)
def test_no_history_lets_more_through_than_the_rate(history, rate):
    uplink, now, sent = Uplink(LinkShape(rate=rate), Random(0)), 0.0, 0
    for size, pause in history:
        now, sent = now + pause, sent + size
        assert uplink.book(size, now=now) >= max(now, sent / rate) - 1e-6


def test_bytes_arrive_in_order_after_transmission_and_delay():
    async def main() -> tuple[Pipe, float]:
        pipes = Pipes()
        async with asyncio.TaskGroup() as tasks:
            shape = LinkShape(rate=1e6, delay_seconds=0.05, jitter_seconds=0.03)
            stream = await EmulatedTransport(pipes, shape, tasks).open(OTHER)
            for number in range(100):
                await stream.send(number.to_bytes(4, "big"), bytes(9_996))
            left = asyncio.get_running_loop().time()
        return pipes.pipes[0], left

    pipe, left = run(main())
    starts = [pipe.arrived[start : start + 4] for start in range(0, 10**6, 10**4)]
    assert starts == [number.to_bytes(4, "big") for number in range(100)]
    assert left == pytest.approx(1.0, abs=0.01)
    assert 1.05 <= pipe.times[-1] <= 1.08
    assert pipe.times == sorted(pipe.times)


def test_two_streams_share_one_line():
    async def main() -> list[float]:
        pipes = Pipes()
        async with asyncio.TaskGroup() as tasks:
            transport = EmulatedTransport(pipes, LinkShape(rate=1e6), tasks)
            for _ in range(2):
                tasks.create_task((await transport.open(OTHER)).send(bytes(500_000)))
        return [pipe.times[-1] for pipe in pipes.pipes]

    first, second = run(main())
    assert second == pytest.approx(1.0, abs=0.01)
    assert first > 0.9, "they take turns"


def test_a_delay_does_not_lower_the_rate():
    async def main() -> float:
        async with asyncio.TaskGroup() as tasks:
            shape = LinkShape(rate=25e6, delay_seconds=0.2)
            stream = await EmulatedTransport(Pipes(), shape, tasks).open(OTHER)
            await stream.send(bytes(25_000_000))
            return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(1.0, abs=0.05)


def test_a_sender_waits_while_the_reader_stops_and_goes_on_when_it_reads():
    async def main() -> None:
        pipes = Pipes(lambda: Pipe(room=1))
        async with asyncio.TaskGroup() as tasks:
            shape = LinkShape(delay_seconds=0.01)
            stream = await EmulatedTransport(pipes, shape, tasks).open(OTHER)
            sending = tasks.create_task(stream.send(bytes(8 << 20)))
            await asyncio.sleep(60)
            assert not sending.done()
            assert len(pipes.pipes[0].arrived) <= 64 * 1024
            pipes.pipes[0].room = math.inf
            pipes.pipes[0].read.set()
            await sending
        assert len(pipes.pipes[0].arrived) == 8 << 20

    run(main())


def test_what_was_sent_arrives_after_close_and_nothing_can_be_sent_then():
    async def main() -> None:
        pipes = Pipes()
        async with asyncio.TaskGroup() as tasks:
            transport = EmulatedTransport(pipes, LinkShape(delay_seconds=0.5), tasks)
            stream = await transport.open(OTHER)
            await stream.send(b"last words")
            await stream.close()
            assert not pipes.pipes[0].closed
            with pytest.raises(LinkError):
                await stream.send(b"more")
            with pytest.raises(LinkError):
                await stream.receive_into(memoryview(bytearray(1)))
        assert pipes.pipes[0].arrived == b"last words"
        assert pipes.pipes[0].closed

    run(main())


def test_a_broken_stream_is_told_to_the_sender():
    async def main() -> None:
        pipes = Pipes()
        async with asyncio.TaskGroup() as tasks:
            transport = EmulatedTransport(pipes, LinkShape(delay_seconds=0.5), tasks)
            stream = await transport.open(OTHER)
            pipes.pipes[0].closed = True
            await stream.send(b"x")
            await asyncio.sleep(1)
            with pytest.raises(LinkError, match="gone"):
                await stream.send(b"y")

    run(main())


def test_answers_on_incoming_streams_are_shaped_too():
    async def main() -> list[float]:
        pipe = Pipe()

        async def answer(stream) -> None:
            await stream.receive_into(memoryview(bytearray(3)))
            await stream.send(b"answer")

        async with asyncio.TaskGroup() as tasks:
            transport = EmulatedTransport(Pipes(lambda: pipe), LinkShape(delay_seconds=0.25), tasks)
            await transport.listen(answer)
        return pipe.times

    assert run(main()) == [0.25]


def test_closing_the_transport_drops_what_is_under_way():
    async def main() -> float:
        async with asyncio.TaskGroup() as tasks:
            transport = EmulatedTransport(Pipes(), LinkShape(delay_seconds=9), tasks)
            await (await transport.open(OTHER)).send(b"x")
            transport.close()
        return asyncio.get_running_loop().time()

    assert run(main()) == 0
