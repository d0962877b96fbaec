"""The simulated network fails in the ways a real one does, and repeats itself exactly."""

import asyncio

import pytest

from p2ptrain.errors import LinkError
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


def test_corruption_flips_bits_and_changes_no_length() -> None:
    async def main() -> None:
        async with SimNetwork(seed=3, link=Link(corruption=1.0)) as net:
            near, far = await join(net, A, B)
            await near.send(bytes(1000))
            wrong = await read(far, 1000)
            assert sum(byte.bit_count() for byte in wrong) == 1

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
