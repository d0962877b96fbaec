"""What every ``ports.Transport`` promises, in the simulated network and on libp2p."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from p2ptrain.errors import LinkError
from p2ptrain.ports import Stream
from p2ptrain.units import PeerId

MEBIBYTE = 1 << 20
STRANGER = PeerId("12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp")


async def read(stream: Stream, size: int) -> bytes:
    buffer = bytearray(size)
    await stream.receive_into(memoryview(buffer))
    return bytes(buffer)


async def join(opener: Any, acceptor: Any) -> tuple[Stream, Stream]:
    arrived: asyncio.Queue[Stream] = asyncio.Queue()

    async def handler(stream: Stream) -> None:
        await arrived.put(stream)
        await asyncio.Event().wait()

    await acceptor.transport.listen(handler)
    near = await opener.transport.open(acceptor.transport.peer)
    await near.send(b"!")  # libp2p may announce a stream only with its first byte
    far = await arrived.get()
    assert await read(far, 1) == b"!"
    return near, far


async def flood(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1 << 16))
        await asyncio.sleep(0.01)


def test_bytes_arrive_whole_and_in_order_both_ways(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        near, far = await join(a, b)
        assert (near.peer, far.peer) == (b.transport.peer, a.transport.peer)
        payload = bytes(range(256)) * 20_000
        for writer, reader in ((near, far), (far, near)):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(writer.send(b"head", memoryview(payload), bytearray(b"tail")))
                assert await read(reader, 4) == b"head"
                assert await read(reader, len(payload)) == payload
                assert await read(reader, 4) == b"tail"

    world(scenario, peers=2)


def test_a_reader_that_stops_stops_the_writer_but_no_other_stream(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        arrived: asyncio.Queue[Stream] = asyncio.Queue()

        async def handler(stream: Stream) -> None:
            await arrived.put(stream)
            await asyncio.Event().wait()

        await b.transport.listen(handler)
        stuck, free = [await a.transport.open(b.transport.peer) for _ in range(2)]
        await stuck.send(b"s")
        await free.send(b"f")
        ends = {await read(stream, 1): stream for stream in [await arrived.get() for _ in range(2)]}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await stuck.send(bytes(64 * MEBIBYTE))
        await free.send(b"still here")
        assert await read(ends[b"f"], 10) == b"still here"
        await stuck.close()

    world(scenario, peers=2)


def test_what_was_sent_before_close_arrives_and_then_the_end(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        near, far = await join(a, b)
        await near.send(b"farewell")
        await near.close()
        await near.close()
        assert await read(far, 8) == b"farewell"
        with pytest.raises(LinkError):
            await read(far, 1)
        with pytest.raises(LinkError):
            await read(near, 1)
        with pytest.raises(LinkError):
            await near.send(b"after close")
        with pytest.raises(LinkError):
            await flood(far)

    world(scenario, peers=2)


def test_a_stream_that_ends_inside_a_message_is_an_error(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        near, far = await join(a, b)
        await near.send(b"half of")
        await near.close()
        with pytest.raises(LinkError):
            await read(far, 14)

    world(scenario, peers=2)


def test_a_stranger_cannot_be_reached(world: Any) -> None:
    async def scenario(a: Any) -> None:
        with pytest.raises(LinkError):
            await a.transport.open(STRANGER)

    world(scenario, peers=1)


def test_peers_know_themselves(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        assert a.transport.peer == a.signer.peer != b.transport.peer
        assert all(address.endswith(f"/p2p/{a.signer.peer}") for address in a.transport.addresses())

    world(scenario, peers=2)


def test_a_sent_buffer_may_be_reused(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        near, far = await join(a, b)
        buffer = bytearray(300_000)
        async with asyncio.TaskGroup() as tasks:
            received = tasks.create_task(read(far, 3 * len(buffer)))
            for value in range(3):
                buffer[:] = bytes([value]) * len(buffer)
                await near.send(buffer)
        assert received.result() == b"".join(bytes([value]) * len(buffer) for value in range(3))

    world(scenario, peers=2)


def test_a_sender_goes_on_when_the_reader_does(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        near, far = await join(a, b)
        sent = 0

        async def fill() -> None:
            nonlocal sent
            while sent < 16 * MEBIBYTE:
                await near.send(bytes(1 << 16))
                sent += 1 << 16

        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(fill())
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert not flooding.done()
            assert sent <= 4 * MEBIBYTE, "windows and kernel buffers hold no more"
            assert await read(far, 16 * MEBIBYTE) == bytes(16 * MEBIBYTE)

    world(scenario, peers=2)


def test_closing_ends_our_own_waiting_receiver_and_sender(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        near, _ = await join(a, b)

        async def fails(waiting: Coroutine[Any, Any, Any]) -> None:
            with pytest.raises(LinkError):
                await waiting

        async with asyncio.TaskGroup() as tasks:
            waits = [
                tasks.create_task(fails(read(near, 1))),
                tasks.create_task(fails(near.send(bytes(16 * MEBIBYTE)))),
            ]
            await asyncio.sleep(0.2)
            assert not any(wait.done() for wait in waits)
            await near.close()

    world(scenario, peers=2)


def test_a_link_error_names_the_peer_in_one_line(world: Any) -> None:
    async def scenario(a: Any) -> None:
        with pytest.raises(LinkError) as caught:
            await a.transport.open(STRANGER)
        assert caught.value.peer == STRANGER
        assert "\n" not in str(caught.value)

    world(scenario, peers=1)
