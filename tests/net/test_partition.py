"""A played partition: what is sent beyond the cut waits for its end, or for the stream's."""

import asyncio
from pathlib import Path

import pytest

from p2ptrain.errors import LinkError
from p2ptrain.net.partition import LOOK_SECONDS, Cut, CutStream, CutTransport, write_cut
from p2ptrain.sim.loop import run
from p2ptrain.units import PeerId

ME, ANN, BOB = PeerId("me"), PeerId("ann"), PeerId("bob")


class Pipe:
    """A stream that keeps what arrives."""

    def __init__(self, peer: PeerId = ANN) -> None:
        self.peer = peer
        self.arrived = b""
        self.closed = False

    async def send(self, *buffers) -> None:
        self.arrived += b"".join(buffers)

    async def receive_into(self, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))

    async def close(self) -> None:
        self.closed = True


class Pipes:
    """A transport of such streams; ``come`` plays one that another opens."""

    peer = ME

    def __init__(self) -> None:
        self.handler = None

    def addresses(self) -> tuple[str, ...]:
        return ("here",)

    async def open(self, peer: PeerId) -> Pipe:
        return Pipe(peer)

    async def listen(self, handler) -> None:
        self.handler = handler

    async def come(self, pipe: Pipe) -> None:
        assert self.handler is not None
        await self.handler(pipe)


def cut_at(path: Path, **names) -> Cut:
    write_cut(path, **names)
    cut = Cut(path)
    cut.look()
    return cut


def test_the_file_names_those_beyond_the_cut_or_all_who_are_not(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    cut = Cut(path)
    cut.look()
    assert not cut.severs(ANN)  # no file, no cut
    write_cut(path, without=[ANN])
    cut.look()
    assert (cut.severs(ANN), cut.severs(BOB)) == (True, False)
    write_cut(path, only=[ANN])
    cut.look()
    assert (cut.severs(ANN), cut.severs(BOB)) == (False, True)
    path.write_text("perhaps ann")
    cut.look()
    assert (cut.severs(ANN), cut.severs(BOB)) == (False, True)
    path.write_text("")
    cut.look()
    assert not cut.severs(BOB)


def test_what_is_sent_beyond_the_cut_arrives_when_it_heals(tmp_path: Path) -> None:
    async def main() -> None:
        path, pipe = tmp_path / "cut", Pipe()
        cut = cut_at(path, without=[ANN])
        stream = CutStream(pipe, cut)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(cut.watch())
            sending = tasks.create_task(stream.send(b"to ", b"ann"))
            await asyncio.sleep(7.0)
            assert pipe.arrived == b""
            write_cut(path)
            await asyncio.sleep(2 * LOOK_SECONDS)
            assert sending.done()
            assert pipe.arrived == b"to ann"
            await stream.send(b"!")
            assert pipe.arrived == b"to ann!"
            watch.cancel()

    run(main(), ceiling_seconds=20.0)


def test_closing_ends_a_send_that_is_held_back_and_drops_it(tmp_path: Path) -> None:
    async def main() -> None:
        pipe = Pipe()
        stream = CutStream(pipe, cut_at(tmp_path / "cut", without=[ANN]))

        async def send() -> None:
            with pytest.raises(LinkError, match="stream closed"):
                await stream.send(b"lost")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            await asyncio.sleep(1.0)
            await stream.close()
        assert (pipe.closed, pipe.arrived) == (True, b"")

    run(main(), ceiling_seconds=20.0)


def test_cancelling_a_send_that_is_held_back_sends_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        pipe = Pipe()
        stream = CutStream(pipe, cut_at(tmp_path / "cut", without=[ANN]))
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(stream.send(b"lost"))
            await asyncio.sleep(1.0)
            sending.cancel()
        assert sending.cancelled()
        assert pipe.arrived == b""

    run(main(), ceiling_seconds=20.0)


def test_nobody_answers_beyond_the_cut_but_streams_to_others_open(tmp_path: Path) -> None:
    async def main() -> None:
        transport = CutTransport(Pipes(), cut_at(tmp_path / "cut", only=[BOB]))
        with pytest.raises(LinkError, match="no answer in 20 s"):
            await transport.open(ANN)
        assert (await transport.open(BOB)).peer == BOB
        assert (transport.peer, transport.addresses()) == (ME, ("here",))

    run(main(), ceiling_seconds=30.0)


def test_answers_on_streams_that_others_opened_are_held_back_too(tmp_path: Path) -> None:
    async def main() -> None:
        pipes = Pipes()
        transport = CutTransport(pipes, cut_at(tmp_path / "cut", without=[ANN]))

        async def answer(stream) -> None:
            buffer = bytearray(3)
            await stream.receive_into(memoryview(buffer))
            await stream.send(b"answer")

        await transport.listen(answer)
        near, far = Pipe(BOB), Pipe(ANN)
        await pipes.come(near)
        assert near.arrived == b"answer"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.0):
                await pipes.come(far)
        assert far.arrived == b""

    run(main(), ceiling_seconds=30.0)
