"""Pipes keep order, rate and window, and take turns on their uplink."""

import asyncio

import pytest

from p2ptrain.ports import Stream
from p2ptrain.sim import loop
from p2ptrain.sim.network import SimNetwork
from p2ptrain.sim.pipes import WINDOW_BYTES, Link
from p2ptrain.units import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


async def read(stream: Stream, size: int) -> bytes:
    buffer = bytearray(size)
    await stream.receive_into(memoryview(buffer))
    return bytes(buffer)


def now() -> float:
    return asyncio.get_running_loop().time()


async def join(network: SimNetwork, opener: PeerId, acceptor: PeerId) -> tuple[Stream, Stream]:
    """Both ends of a stream; plugs in whoever is not yet there."""
    arrived: asyncio.Queue[Stream] = asyncio.Queue()
    ports = [network.transport(peer) for peer in (opener, acceptor)]
    await ports[1].listen(arrived.put)
    return await ports[0].open(acceptor), await arrived.get()


def test_bytes_arrive_in_order_after_the_latency() -> None:
    async def main() -> None:
        async with SimNetwork(seed=1, link=Link(latency_seconds=0.5, jitter_seconds=0.3)) as net:
            near, far = await join(net, A, B)
            assert (near.peer, far.peer) == (B, A)
            began = now()
            for i in range(100):
                await near.send(bytes([i]), memoryview(bytearray([i])))
            assert await read(far, 200) == bytes(i for i in range(100) for _ in range(2))
            assert 0.5 <= now() - began <= 0.8
            await far.send(b"back")
            assert await read(near, 4) == b"back"

    loop.run(main())


def test_a_reader_that_stops_stops_the_writer_a_window_later() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, far = await join(net, A, B)
            await near.send(bytes(WINDOW_BYTES))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(100):
                    await near.send(b"one more")
            assert await read(far, WINDOW_BYTES) == bytes(WINDOW_BYTES)
            await near.send(b"room again")
            assert await read(far, 10) == b"room again"

    loop.run(main())


def test_a_message_larger_than_the_window_flows_while_it_is_read() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, far = await join(net, A, B)
            payload = bytes(range(256)) * 20_000
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(near.send(b"head", payload))
                assert await read(far, 4) == b"head"
                assert await read(far, len(payload)) == payload

    loop.run(main())


def test_the_rate_of_the_uplink_holds() -> None:
    async def main() -> None:
        link = Link(latency_seconds=0.0, rate_bytes_per_second=1e6)
        async with SimNetwork(link=link) as net:
            near, far = await join(net, A, B)
            began = now()
            await near.send(bytes(1_000_000))
            assert await read(far, 1_000_000) == bytes(1_000_000)
            assert now() - began == pytest.approx(1.0)

    loop.run(main())


def test_streams_of_one_peer_take_turns_on_its_uplink() -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Stream] = asyncio.Queue()
        link = Link(latency_seconds=0.0, rate_bytes_per_second=1e6)
        async with SimNetwork(link=link) as net:
            sender, receiver = net.transport(A), net.transport(B)
            await receiver.listen(arrived.put)
            bulk, beat = await sender.open(B), await sender.open(B)
            _, beat_end = await arrived.get(), await arrived.get()
            began = now()
            await bulk.send(bytes(1_000_000))
            await beat.send(b"alive")
            assert await read(beat_end, 5) == b"alive"
            assert now() - began < 0.2

    loop.run(main())


def test_corruption_flips_bits_and_changes_no_length() -> None:
    async def main() -> None:
        async with SimNetwork(seed=3, link=Link(corruption=1.0)) as net:
            near, far = await join(net, A, B)
            await near.send(bytes(1000))
            wrong = await read(far, 1000)
            assert sum(byte.bit_count() for byte in wrong) == 1

    loop.run(main())
