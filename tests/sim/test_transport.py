"""A peer's streams end in one way only, whoever ends them and whenever."""

import asyncio

import pytest

from p2ptrain.errors import LinkError
from p2ptrain.ports import Stream
from p2ptrain.sim import loop
from p2ptrain.sim.network import SimNetwork
from p2ptrain.sim.pipes import Link
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


async def expect_link_error(stream: Stream) -> float:
    with pytest.raises(LinkError):
        await read(stream, 1)
    return now()


def test_what_was_sent_before_close_arrives_then_the_end() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, far = await join(net, A, B)
            await near.send(b"farewell")
            await near.close()
            await near.close()
            assert await read(far, 8) == b"farewell"
            with pytest.raises(LinkError) as caught:
                await read(far, 1)
            assert caught.value.peer == A
            with pytest.raises(LinkError):
                await far.send(b"too late")
            with pytest.raises(LinkError):
                await near.send(b"after close")
            with pytest.raises(LinkError):
                await read(near, 1)

    loop.run(main())


def test_closing_wakes_the_own_reader() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, _ = await join(net, A, B)
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(expect_link_error(near))
                await asyncio.sleep(1)
                await near.close()
            assert reading.result() == pytest.approx(
                1.02
            )  # the round trip of opening, then the second

    loop.run(main())


def test_a_dead_peers_handlers_end_and_its_calls_fail() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def handler(stream: Stream) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(stream.peer)

        async with SimNetwork() as net:
            host, guest = net.transport(A), net.transport(B)
            await host.listen(handler)
            await guest.listen(handler)
            await guest.open(A)
            net.kill(A)
            await asyncio.sleep(0)
            assert ended == [B]
            with pytest.raises(LinkError):
                await host.open(B)

    loop.run(main())


def test_a_cancelled_open_leaves_no_stream() -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Stream] = asyncio.Queue()
        async with SimNetwork(link=Link(latency_seconds=1)) as net:
            host, guest = net.transport(A), net.transport(B)
            await host.listen(arrived.put)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await guest.open(A)
            await expect_link_error(await arrived.get())

    loop.run(main())
