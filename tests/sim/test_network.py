"""The simulated network fails in the ways a real one does, and repeats itself exactly."""

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


def test_a_dead_peer_resets_its_streams_and_refuses_new_ones() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, _ = await join(net, A, B)
            died = now()
            net.kill(B)
            assert await expect_link_error(near) - died == pytest.approx(0.01)
            again = net.transport(C)
            with pytest.raises(LinkError):
                await again.open(B)
            assert now() - died < 1
            reborn = net.transport(B)
            await reborn.listen(lambda stream: stream.close())
            assert (await again.open(B)).peer == B

    loop.run(main())


def test_a_partition_is_silent_and_loses_nothing_when_it_heals() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, far = await join(net, A, B)
            net.partition([[A], [B]])
            await near.send(b"through the wall")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(20):
                    await read(far, 16)
            net.mend()
            assert await read(far, 16) == b"through the wall"

    loop.run(main())


def test_a_cut_during_the_repair_holds_on() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, far = await join(net, A, B)
            net.cut(A, B)
            await near.send(b"late")
            net.mend()
            net.cut(B, A)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(20):
                    await read(far, 4)
            net.mend()
            assert await read(far, 4) == b"late"

    loop.run(main())


def test_a_silent_peer_is_given_up_after_forty_seconds() -> None:
    async def main() -> None:
        async with SimNetwork() as net:
            near, far = await join(net, A, B)
            silent = now()
            net.isolate(B)
            assert await expect_link_error(near) - silent == pytest.approx(40)
            await expect_link_error(far)
            dialer = net.transport(C)
            with pytest.raises(LinkError, match="no answer"):
                await dialer.open(B)
            net.mend(B)
            with pytest.raises(LinkError):
                await near.send(b"that stream is gone")

    loop.run(main())


def test_a_broken_link_can_be_opened_again() -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Stream] = asyncio.Queue()
        async with SimNetwork() as net:
            host, guest = net.transport(A), net.transport(B)
            await host.listen(arrived.put)
            first = await guest.open(A)
            net.reset(A, B)
            with pytest.raises(LinkError):
                await first.send(b"x")
            second = await guest.open(A)
            await second.send(b"x")
            await arrived.get()
            assert await read(await arrived.get(), 1) == b"x"

    loop.run(main())


def test_a_frozen_process_neither_reads_nor_acts_but_what_it_sent_arrives() -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Stream] = asyncio.Queue()

        async def talk() -> None:
            loop.owner.set("process")
            stream = await net.transport(A).open(B)
            for i in range(100):
                await stream.send(bytes([i]))
                await asyncio.sleep(1)

        clock = asyncio.get_running_loop()
        assert isinstance(clock, loop.VirtualTimeLoop)
        async with SimNetwork(link=Link(latency_seconds=0.25)) as net, asyncio.TaskGroup() as tasks:
            host = net.transport(B)
            await host.listen(arrived.put)
            talking = tasks.create_task(talk())
            far = await arrived.get()
            assert await read(far, 1) == b"\0"
            clock.freeze("process")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(30):
                    await read(far, 1)
            clock.thaw("process")
            assert await read(far, 1) == b"\1"
            talking.cancel()

    loop.run(main())


def test_one_seed_gives_one_history_and_another_seed_another() -> None:
    def history(seed: int) -> list[float]:
        async def main() -> list[float]:
            times = []
            link = Link(latency_seconds=0.1, jitter_seconds=0.1)
            async with SimNetwork(seed=seed, link=link) as net:
                near, far = await join(net, A, B)
                for _ in range(20):
                    await near.send(b"x")
                    await read(far, 1)
                    times.append(now())
            return times

        return loop.run(main())

    assert history(1) == history(1)
    assert history(1) != history(2)
