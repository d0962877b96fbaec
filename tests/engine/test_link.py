"""One link by itself: it opens, ends once, says why, and leaves nobody waiting."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.engine.link import Link, LinkSettings
from p2ptrain.errors import LinkError
from p2ptrain.run import RunSpec
from p2ptrain.sim.loop import run
from p2ptrain.sim.network import SimNetwork
from p2ptrain.units import Chain, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import Control, Data, Gradient, Hello, Leaving, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.observe.events import AnyEvent
    from p2ptrain.ports import Stream
    from p2ptrain.sim.transport import SimTransport

ANN, BOB = PeerId("ann"), PeerId("bob")
LIMITS = FrameLimits(RunSpec())
HELLO = Hello(protocol=1, run=RunId("r"), channel="control", incarnation=1, arithmetic="")
GRADIENT = Gradient(
    at=Position(epoch=0, step=Step(0), chain=Chain(bytes(32))), slot=Slot(0), stage=Stage(0)
)


class Owner:
    def __init__(self) -> None:
        self.ups = 0
        self.heard: list[Control] = []

    def deliver_control(self, _peer: PeerId, message: Control) -> None:
        self.heard.append(message)

    def deliver_data(self, _peer: PeerId, message: Data, payload: memoryview) -> None:
        raise AssertionError(message, payload)

    def went_up(self, _link: Link) -> None:
        self.ups += 1

    def emit(self, event: AnyEvent) -> None:
        raise AssertionError(event)


def virtual(main: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    def test() -> None:
        run(main(), ceiling_seconds=100.0)

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test


def link(transport: SimTransport, owner: Owner) -> Link:
    return Link(
        BOB,
        transport=transport,
        hello=HELLO,
        limits=LIMITS,
        settings=LinkSettings(control_queue_bytes=1000),
        owner=owner,
    )


@virtual
async def test_a_peer_that_cannot_be_reached_ends_the_link_and_its_callers() -> None:
    async with SimNetwork(seed=1) as network:
        one = link(network.transport(ANN), Owner())
        sent = one.data.submit(GRADIENT, (b"x",))
        await one.run(wait_seconds=0.0)
        assert one.over
        assert isinstance(one.blame, LinkError)
        assert one.reason == one.blame.reason
        with pytest.raises(LinkError):
            await sent
        assert not one.is_up


@virtual
async def test_an_end_by_decision_has_no_blame_and_the_first_reason_counts() -> None:
    async with SimNetwork(seed=1) as network:
        one = link(network.transport(ANN), Owner())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(one.run(wait_seconds=50.0))
            await asyncio.sleep(1.0)
            assert one.in_backoff
            one.end("enough")
            one.end("too late")
            await running
        assert (one.reason, one.blame, one.in_backoff) == ("enough", None, False)
        one.post(framing.encode(Leaving(reason="nobody hears")))
        await one.control.drained()


@virtual
async def test_the_bound_of_the_control_lane_ends_the_link() -> None:
    async with SimNetwork(seed=1) as network:
        one = link(network.transport(ANN), Owner())
        for _ in range(20):
            one.post(b"x" * 100)
        assert one.over
        assert "does not read" in one.reason
        one.release()


@virtual
async def test_a_call_of_the_peer_cuts_the_backoff_short_and_both_ways_make_it_up() -> None:
    async with SimNetwork(seed=1) as network:
        owner, ann, bob = Owner(), network.transport(ANN), network.transport(BOB)
        one = link(ann, owner)
        arrived: asyncio.Queue[Stream] = asyncio.Queue()

        async def handler(stream: Stream) -> None:
            await arrived.put(stream)

        await bob.listen(handler)
        calls: asyncio.Queue[Stream] = asyncio.Queue()

        async def call(stream: Stream) -> None:
            await calls.put(stream)

        await ann.listen(call)
        theirs = await bob.open(ANN)
        ours = await calls.get()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(one.run(wait_seconds=80.0))
            served = one.attach("control", ours, incarnation=7)
            assert one.has_incoming("control")
            stream = await arrived.get()
            await stream.receive_into(memoryview(bytearray(len(framing.encode(HELLO)))))
            await stream.send(framing.encode(Welcome(incarnation=7)))
            await theirs.send(framing.encode(Leaving(reason="hello")))
            await asyncio.sleep(1.0)
            assert (owner.ups, owner.heard) == (1, [Leaving(reason="hello")])
            assert one.is_up
            await theirs.close()
            await running
            assert served.done()
        assert isinstance(one.blame, LinkError)
        await stream.close()
        await ours.close()


@virtual
async def test_a_welcome_of_another_start_ends_the_link() -> None:
    async with SimNetwork(seed=1) as network:

        async def handler(stream: Stream) -> None:
            await stream.receive_into(memoryview(bytearray(len(framing.encode(HELLO)))))
            await stream.send(framing.encode(Welcome(incarnation=8)))

        await network.transport(BOB).listen(handler)
        one = link(network.transport(ANN), Owner())
        one.incarnation = 7
        await one.run(wait_seconds=0.0)
        assert one.reason == "it has restarted"
