"""Links open themselves, keep control and data apart, and survive whatever a peer does."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from p2ptrain.core.agreement import Position
from p2ptrain.engine.link import LinkSettings
from p2ptrain.engine.links import Links
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.run import Batch, Cut, Model, RunSpec
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import (
    Control,
    Data,
    Forward,
    Gradient,
    Heartbeat,
    Hello,
    Leaving,
    Refused,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from p2ptrain.ports import Buffer, Stream

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
SPEC = RunSpec(
    model=Model(d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=16, context=64),
    cut=Cut(stages=2),
    batch=Batch(sequences=2),
)
LIMITS = FrameLimits(SPEC)
AT = Position(epoch=0, step=Step(0), chain=Chain(bytes(32)))
GRADIENT_BYTES = 2 * 2 * 64 * 8
WINDOW_BYTES = 1024  # of a stream; small, so that a stopped reader is felt at once


class Pipe:
    """One direction of a stream: a bounded buffer that breaks when either end closes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        self.changed = asyncio.Event()

    def end(self) -> None:
        self.ended = True
        self.changed.set()

    async def until_changed(self) -> None:
        self.changed.clear()
        await self.changed.wait()

    async def send(self, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        while len(view):
            if self.ended:
                raise LinkError("stream closed")
            room = WINDOW_BYTES - len(self.data)
            if room > 0:
                self.data += view[:room]
                view = view[room:]
                self.changed.set()
            else:
                await self.until_changed()

    async def receive_into(self, view: memoryview) -> None:
        while len(view):
            if self.data:
                size = min(len(view), len(self.data))
                view[:size] = self.data[:size]
                del self.data[:size]
                view = view[size:]
                self.changed.set()
            elif self.ended:
                raise LinkError("stream ended")
            else:
                await self.until_changed()


class MemoryStream:
    def __init__(self, peer: PeerId, outgoing: Pipe, incoming: Pipe) -> None:
        self.peer = peer
        self.outgoing = outgoing
        self.incoming = incoming
        self.closed = False

    async def send(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            await self.outgoing.send(buffer)

    async def receive_into(self, buffer: memoryview) -> None:
        await self.incoming.receive_into(buffer)

    async def close(self) -> None:
        self.closed = True
        self.outgoing.end()
        self.incoming.end()


class Network:
    """Transports that reach each other by name; every stream is remembered."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.handlers: dict[PeerId, Callable[[Stream], Awaitable[None]]] = {}
        self.streams: list[tuple[MemoryStream, MemoryStream]] = []
        self.attempts = 0

    def transport(self, peer: PeerId) -> MemoryTransport:
        return MemoryTransport(self, peer)

    def open(self, opener: PeerId, peer: PeerId) -> MemoryStream:
        self.attempts += 1
        if peer not in self.handlers:
            raise LinkError("nobody there", peer=peer)
        there, back = Pipe(), Pipe()
        ours, theirs = MemoryStream(peer, there, back), MemoryStream(opener, back, there)
        self.streams.append((ours, theirs))
        self.tasks.create_task(self._handle(peer, theirs))
        return ours

    async def _handle(self, peer: PeerId, stream: MemoryStream) -> None:
        await self.handlers[peer](stream)


class MemoryTransport:
    def __init__(self, network: Network, peer: PeerId) -> None:
        self.network = network
        self.peer = peer

    def addresses(self) -> tuple[str, ...]:
        return ()

    async def listen(self, handler: Callable[[Stream], Awaitable[None]]) -> None:
        self.network.handlers[self.peer] = handler

    async def open(self, peer: PeerId) -> Stream:
        await asyncio.sleep(0.01)
        return self.network.open(self.peer, peer)


class Node:
    """Links with a memory of what they said."""

    def __init__(
        self,
        network: Network,
        peer: PeerId,
        *,
        hello: Hello | None = None,
        settings: LinkSettings | None = None,
    ) -> None:
        self.peer = peer
        self.controls: list[tuple[PeerId, Control]] = []
        self.payloads: list[tuple[PeerId, Data, bytes]] = []
        self.ups: list[PeerId] = []
        self.downs: list[tuple[PeerId, str]] = []
        self.events: list[ev.AnyEvent] = []
        self.beats = 0
        self.links = Links(
            network.transport(peer),
            hello or greeting(),
            LIMITS,
            heartbeat=self.beat,
            emit=self.events.append,
            settings=settings,
        )
        self.links.on_control = lambda who, message: self.controls.append((who, message))
        self.links.on_data = lambda who, message, payload: self.payloads.append(
            (who, message, bytes(payload))
        )
        self.links.on_up = self.ups.append
        self.links.on_down = lambda who, reason: self.downs.append((who, reason))

    def beat(self) -> Heartbeat:
        self.beats += 1
        return Heartbeat(count=self.beats, lag_seconds=0.0, seats=())

    @property
    def said(self) -> list[tuple[PeerId, str]]:
        """The text of the messages heard, heartbeats left out."""
        return [(who, each.reason) for who, each in self.controls if isinstance(each, Leaving)]

    def refused(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, ev.FrameRefused)]


def greeting(
    run: str = "run", incarnation: int = 1, arithmetic: str = "cpu", protocol: int = 1
) -> Hello:
    return Hello(
        protocol=protocol,
        run=RunId(run),
        channel="control",
        incarnation=incarnation,
        arithmetic=arithmetic,
    )


def say(text: str) -> Leaving:
    return Leaving(reason=text)


def gradient(slot: int = 0) -> Gradient:
    return Gradient(at=AT, slot=Slot(slot), stage=Stage(0))


@contextlib.asynccontextmanager
async def network() -> AsyncIterator[Network]:
    async with asyncio.TaskGroup() as tasks:
        yield Network(tasks)


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Run links, and see that they leave nothing behind."""
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(node.links.run()) for node in nodes]
        await asyncio.sleep(0)
        yield
        for each in runs:
            each.cancel()
    for node in nodes:
        assert not node.links.peers()


@contextlib.asynccontextmanager
async def pair(**bob: Any) -> AsyncIterator[tuple[Node, Node, Network]]:
    async with network() as net:
        nodes = Node(net, ANN), Node(net, BOB, **bob)
        async with running(*nodes):
            yield *nodes, net
        assert all(end.closed for ends in net.streams for end in ends)


async def settle(seconds: float = 0.5) -> None:
    await asyncio.sleep(seconds)


def virtual(main: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        run(main(), ceiling_seconds=1000.0)

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test


async def raw_stream(net: Network, hello: Hello, to: PeerId = ANN, me: PeerId = EVE) -> Stream:
    """A stream opened by hand: what an evil or odd peer would do."""
    stream = net.open(me, to)
    await stream.send(framing.encode(hello))
    return stream


async def read_frame(stream: Stream, kind: framing.Kind) -> tuple[framing.Header, bytes]:
    head = bytearray(framing.HEADER_BYTES)
    await stream.receive_into(memoryview(head))
    header = framing.decode_header(head, kind)
    body = bytearray(header.message_bytes)
    await stream.receive_into(memoryview(body))
    return header, bytes(body)


async def answer_of(stream: Stream) -> Hello | Welcome | Refused:
    return framing.decode_handshake(*await read_frame(stream, framing.Kind.HANDSHAKE))


# --- opening and speaking --------------------------------------------------------------


@virtual
async def test_the_first_message_opens_a_link_both_ways() -> None:
    async with pair() as (ann, bob, _):
        ann.links.send(BOB, say("one"))
        ann.links.send(BOB, say("two"))
        await settle()
        assert bob.said == [(ANN, "one"), (ANN, "two")]
        assert (ann.ups, bob.ups) == ([BOB], [ANN])
        assert (ann.links.peers(), bob.links.peers()) == ((BOB,), (ANN,))
        assert ann.links.incarnation(BOB) == 1
        bob.links.send(ANN, say("three"))
        await settle()
        assert ann.said == [(BOB, "three")]
        assert ann.downs == bob.downs == []


@virtual
async def test_both_open_at_once() -> None:
    async with pair() as (ann, bob, net):
        ann.links.send(BOB, say("a"))
        bob.links.send(ANN, say("b"))
        await settle()
        assert (ann.said, bob.said) == ([(BOB, "b")], [(ANN, "a")])
        assert len(net.streams) == 2
        assert ann.downs == bob.downs == []


@virtual
async def test_beats_come_at_once_and_then_every_second() -> None:
    async with pair() as (ann, bob, _):
        ann.links.open(BOB)
        await settle(10.5)
        for node in (ann, bob):
            counts = [m.count for _, m in node.controls if isinstance(m, Heartbeat)]
            assert 10 <= len(counts) <= 12
            assert counts == sorted(counts)


@virtual
async def test_beats_can_be_kept_for_those_who_need_them() -> None:
    async with pair() as (ann, bob, _):
        ann.links.beats_to = lambda _peer: False
        ann.links.open(BOB)
        await settle(10.5)
        assert sum(isinstance(m, Heartbeat) for _, m in bob.controls) == 1
        assert sum(isinstance(m, Heartbeat) for _, m in ann.controls) > 9


@virtual
async def test_data_arrives_whole_and_is_told_to_the_log() -> None:
    async with pair() as (ann, bob, _):
        payload = bytes(range(256)) * (GRADIENT_BYTES // 256)
        await ann.links.send_data(BOB, gradient(), (payload[:100], memoryview(payload)[100:]))
        await settle()
        assert bob.payloads == [(ANN, gradient(), payload)]
        (sent,) = [event for event in ann.events if isinstance(event, ev.FrameSent)]
        assert (sent.what, sent.peer, sent.tensor_bytes) == ("gradient", BOB, 2 * GRADIENT_BYTES)
        assert 0 < sent.frame_bytes - GRADIENT_BYTES < 200
        assert ann.links.queued_bytes(BOB) == 0


@virtual
async def test_frames_go_out_in_the_order_of_their_callers() -> None:
    async with pair() as (ann, bob, _):
        async with asyncio.TaskGroup() as tasks:
            for slot in range(5):
                tasks.create_task(
                    ann.links.send_data(BOB, gradient(slot), (bytes(GRADIENT_BYTES),))
                )
        await settle()
        assert [m.slot for _, m, _ in bob.payloads if isinstance(m, Gradient)] == [0, 1, 2, 3, 4]


@virtual
async def test_messages_to_oneself_take_the_same_way_in_order() -> None:
    async with network() as net:
        ann = Node(net, ANN)
        async with running(ann):
            ann.links.send(ANN, say("one"))
            assert ann.controls == []  # never from inside the call
            given = bytearray(b"abc")
            await ann.links.send_data(ANN, gradient(), (given, b"def"))
            given[:] = b"xyz"
            ann.links.broadcast((ANN,), say("two"))
            await settle()
            assert ann.said == [(ANN, "one"), (ANN, "two")]
            assert ann.payloads == [(ANN, gradient(), b"abcdef")]
            assert net.streams == []


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        (greeting(run="other"), "this peer trains run run, you other"),
        (greeting(arithmetic="cuda"), "sync.agreement"),
        (greeting(protocol=2), "update the older"),
    ],
)
def test_a_stranger_is_refused_in_one_line(theirs: Hello, line: str) -> None:
    async def main() -> None:
        async with pair(hello=theirs) as (ann, bob, _):
            bob.links.send(ANN, say("hello"))
            await settle(0.2)
            assert line in bob.links.refusals[ANN]
            assert "\n" not in bob.links.refusals[ANN]
            assert [peer for peer, _ in bob.downs] == [ANN]
            assert any(isinstance(event, ev.LinkRefused) for event in ann.events)
            assert ann.said == []
            assert ann.ups == bob.ups == []

    run(main(), ceiling_seconds=100.0)


@virtual
async def test_any_arithmetic_passes_where_the_run_says_so() -> None:
    async with network() as net:
        ann = Node(net, ANN, hello=greeting(arithmetic=""))
        bob = Node(net, BOB, hello=greeting(arithmetic=""))
        async with running(ann, bob):
            ann.links.open(BOB)
            await settle()
            assert ann.ups == [BOB]


@virtual
async def test_a_data_stream_without_control_is_refused() -> None:
    async with pair() as (_, __, net):
        hello = Hello(protocol=1, run=RunId("run"), channel="data", incarnation=1, arithmetic="cpu")
        stream = await raw_stream(net, hello)
        answer = await answer_of(stream)
        assert isinstance(answer, Refused)
        assert "control" in answer.reason
        await stream.close()


@virtual
async def test_bounds_on_links_and_on_handshakes() -> None:
    async with network() as net:
        ann = Node(net, ANN, settings=LinkSettings(most_links=1, most_handshakes=2))
        bob = Node(net, BOB)
        async with running(ann, bob):
            bob.links.open(ANN)
            await settle()
            answer = await answer_of(await raw_stream(net, greeting()))
            assert isinstance(answer, Refused)
            ann.links.send(EVE, say("dropped"))
            with pytest.raises(LinkError):
                await ann.links.send_data(EVE, gradient(), ())
            silent = [net.open(EVE, ANN) for _ in range(3)]
            await settle(1.0)
            assert [each.incoming.ended for each in silent] == [False, False, True]
            await settle(15.0)
            assert all(each.incoming.ended for each in silent)
            assert ann.links.peers() == (BOB,)


# --- what a bad peer can do ----------------------------------------------------------------


async def befriend(net: Network, node: Node) -> tuple[Stream, Stream]:
    """Eve becomes a proper peer by hand: her control stream, and the one to her."""
    calls: asyncio.Queue[Stream] = asyncio.Queue()
    done = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await calls.put(stream)
        await done.wait()

    net.handlers[EVE] = handler
    control = await raw_stream(net, greeting())
    assert isinstance(await answer_of(control), Welcome)
    back = await calls.get()
    assert isinstance(await answer_of(back), Hello)
    await back.send(framing.encode(Welcome(incarnation=1)))
    await settle(0.1)
    assert EVE in node.links.peers()
    done.set()
    return control, back


def damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes((frame[-1] ^ 1,))


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: ann\r\n", "magic"),
        (damaged(framing.encode(say("hello"))), "checksum"),
        (framing.encode(say("x" * 2000)), "Leaving.reason"),
        (framing.encode(Welcome(incarnation=1)), "kind 0"),
        (b"p2pt\x01\x01\0\0\xff\xff\xff\xff" + bytes(12), "at most"),
    ],
)
def test_bad_bytes_end_that_link_and_nothing_else(noise: bytes, reason: str) -> None:
    async def main() -> None:
        async with pair() as (ann, bob, net):
            bob.links.open(ANN)
            control, back = await befriend(net, ann)
            await control.send(noise)
            await settle(0.2)
            (refused,) = ann.refused()
            assert reason in refused
            assert [peer for peer, _ in ann.downs] == [EVE]
            bob.links.send(ANN, say("still here"))
            await settle()
            assert ann.said == [(BOB, "still here")]
            await control.close()
            await back.close()

    run(main(), ceiling_seconds=100.0)


@virtual
async def test_a_payload_of_a_wrong_size_is_refused_before_a_byte_of_it_is_read() -> None:
    async with pair() as (ann, _, net):
        control, back = await befriend(net, ann)
        data = await raw_stream(
            net,
            Hello(protocol=1, run=RunId("run"), channel="data", incarnation=1, arithmetic="cpu"),
        )
        assert isinstance(await answer_of(data), Welcome)
        head, _payload = framing.encode_data(gradient(), b"")
        forged = bytearray(head)
        forged[12:20] = (10**12).to_bytes(8, "big")
        await data.send(forged)
        await settle(0.2)
        assert "1000000000000 bytes behind Gradient" in ann.refused()[0]
        for stream in (control, back, data):
            await stream.close()


@virtual
async def test_a_rule_broken_above_ends_the_link_too() -> None:
    async with pair() as (ann, bob, _):

        def refuse(peer: PeerId, message: Control) -> None:
            if isinstance(message, Leaving):
                raise MisbehaviourError("not yours", peer=peer)

        bob.links.on_control = refuse
        ann.links.send(BOB, say("x"))
        bob.links.send(BOB, say("x"))
        await settle(0.3)
        assert bob.refused() == ["not yours"] * 2
        assert bob.downs == [(ANN, "not yours")]


@virtual
async def test_a_peer_that_stops_reading_control_is_let_go_at_the_bound() -> None:
    async with pair() as (ann, _, net):
        control, back = await befriend(net, ann)
        ann.links.send(EVE, say("x"))
        for _ in range(4300):
            ann.links.send(EVE, say("y" * 1000))
        await settle(0.2)
        assert ann.downs == [(EVE, "it does not read: the control queue is full")]
        assert back.incoming.ended  # type: ignore[attr-defined]  # our own test stream
        await control.close()
        await back.close()


@virtual
async def test_a_peer_that_stops_reading_data_blocks_its_sender_but_no_heartbeat() -> None:
    async with pair() as (ann, bob, net):
        ann.links.open(BOB)
        await settle()
        forward = Forward(at=AT, slot=Slot(0), stage=Stage(1), attempt=0, replay=False, path=(ANN,))
        size = LIMITS.payload_bytes(forward)
        assert size > WINDOW_BYTES
        await ann.links.send_data(BOB, gradient(), (bytes(GRADIENT_BYTES),))
        stopped = net.streams[-1][1]
        halt = asyncio.Event()

        async def stuck(_view: memoryview) -> None:
            await halt.wait()

        stopped.receive_into = stuck  # type: ignore[method-assign]  # the reader stops here
        await settle()
        async with asyncio.TaskGroup() as tasks:
            sends = [
                tasks.create_task(ann.links.send_data(BOB, forward, (bytes(size),)))
                for _ in range(3)
            ]
            beats = len(bob.controls)
            await settle(20.0)
            assert sum(send.done() for send in sends) < 3
            assert ann.links.queued_bytes(BOB) >= size
            assert len(bob.controls) >= beats + 19
            for send in sends:
                send.cancel()
        ann.links.close_peer(BOB, "too slow")
        await settle()
        assert ann.links.queued_bytes(BOB) == 0
        assert ann.downs == [(BOB, "too slow")]


# --- ends -----------------------------------------------------------------------------------


@virtual
async def test_a_restarted_peer_replaces_its_old_link() -> None:
    async with network() as net:
        ann, bob = Node(net, ANN), Node(net, BOB)
        async with running(ann):
            async with running(bob):
                ann.links.open(BOB)
                await settle()
            again = Node(net, BOB, hello=greeting(incarnation=2))
            async with running(again):
                again.links.send(ANN, say("back"))
                await settle()
                assert ann.ups == [BOB, BOB]
                assert [peer for peer, _ in ann.downs] == [BOB]
                assert ann.said == [(BOB, "back")]
                assert ann.links.incarnation(BOB) == 2
                old = await raw_stream(net, greeting(incarnation=1), me=BOB)
                answer = await answer_of(old)
                assert isinstance(answer, Refused)
                assert "started again" in answer.reason
                assert ann.links.peers() == (BOB,)


@virtual
async def test_a_second_call_of_the_same_start_replaces_a_dead_link() -> None:
    async with pair() as (ann, _, net):
        control, back = await befriend(net, ann)
        again, back_again = await befriend(net, ann)
        await settle()
        assert ann.ups == [EVE, EVE]
        assert ann.downs == [(EVE, "replaced")]
        assert control.incoming.ended  # type: ignore[attr-defined]  # our own test stream
        assert not again.incoming.ended  # type: ignore[attr-defined]  # our own test stream
        for stream in (control, back, again, back_again):
            await stream.close()


@virtual
async def test_who_waits_is_told_when_the_link_breaks() -> None:
    async with network() as net:
        ann, bob = Node(net, ANN), Node(net, BOB)
        async with running(ann):
            async with running(bob):
                ann.links.open(BOB)
                await settle()
                del net.handlers[BOB]
                send = asyncio.ensure_future(  # noqa: TID251 - the test awaits it itself
                    ann.links.send_data(BOB, gradient(), (bytes(GRADIENT_BYTES),))
                )
                await settle(0.1)
            with pytest.raises(LinkError):
                await send
            assert [peer for peer, _ in ann.downs] == [BOB]


@virtual
async def test_a_peer_that_cannot_be_reached_is_tried_ever_more_seldom() -> None:
    async with network() as net:
        ann = Node(net, ANN)
        async with running(ann):
            for _ in range(600):
                ann.links.send(BOB, say("anybody there?"))
                await settle(0.1)
            assert 7 <= net.attempts <= 20
            assert len(ann.downs) == net.attempts
            assert ann.ups == []
            ann.links.send(BOB, say("now in backoff"))
            await settle(0.01)
            with pytest.raises(LinkError, match="a moment ago"):
                await ann.links.send_data(BOB, gradient(), (bytes(GRADIENT_BYTES),))
            bob = Node(net, BOB)
            async with running(bob):
                bob.links.open(ANN)  # cuts the backoff short
                await settle(0.2)
                assert ann.links.peers() == (BOB,)


@virtual
async def test_a_peer_that_opens_nothing_back_is_let_go() -> None:
    async with network() as net:
        ann = Node(net, ANN)

        async def polite(stream: Stream) -> None:
            await answer_of(stream)
            await stream.send(framing.encode(Welcome(incarnation=1)))
            with contextlib.suppress(LinkError):
                await stream.receive_into(memoryview(bytearray(10_000)))

        net.handlers[EVE] = polite
        async with running(ann):
            ann.links.open(EVE)
            await settle(15.0)
            assert ann.downs == [(EVE, "it opened no stream to us")]


@virtual
async def test_a_peer_that_closes_our_stream_is_noticed_before_we_write() -> None:
    """Else its next call would find half of a dead link, end it, and leave us with the same."""
    async with network() as net:
        ann = Node(net, ANN)

        async def brief(stream: Stream) -> None:
            await answer_of(stream)
            await stream.send(framing.encode(Welcome(incarnation=1)))
            await stream.close()

        net.handlers[EVE] = brief
        async with running(ann):
            ann.links.open(EVE)
            await settle()
            assert ann.downs == [(EVE, "stream ended")]


@virtual
async def test_a_peer_that_answers_more_than_welcome_is_let_go() -> None:
    async with network() as net:
        ann = Node(net, ANN)

        async def talkative(stream: Stream) -> None:
            await answer_of(stream)
            await stream.send(framing.encode(Welcome(incarnation=1)) + b"and more")
            await settle(5.0)

        net.handlers[EVE] = talkative
        async with running(ann):
            ann.links.open(EVE)
            await settle()
            assert ann.refused() == ["it speaks on a stream that is ours alone"]


@virtual
async def test_flush_waits_for_the_last_words() -> None:
    async with pair() as (ann, bob, _):
        ann.links.open(BOB)
        await settle()
        for index in range(100):
            ann.links.send(BOB, say(f"{index} {'z' * 500}"))
        async with asyncio.timeout(1.0):
            await ann.links.flush()
        await settle(0.01)
        assert len(bob.said) == 100


@virtual
async def test_cancelling_a_sender_leaves_the_stream_whole() -> None:
    async with pair() as (ann, bob, _):
        ann.links.open(BOB)
        await settle()
        async with asyncio.TaskGroup() as tasks:
            sends = [
                tasks.create_task(
                    ann.links.send_data(BOB, gradient(slot), (bytes(GRADIENT_BYTES),))
                )
                for slot in range(3)
            ]
            await asyncio.sleep(0)
            sends[1].cancel()
        await settle()
        assert [m.slot for _, m, _ in bob.payloads if isinstance(m, Gradient)] == [0, 2]
        assert ann.downs == []


def test_the_same_on_uvloop_with_a_long_payload() -> None:
    big = RunSpec(
        model=Model(d_model=256, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=16, context=4096),
        cut=Cut(stages=2),
        batch=Batch(sequences=1),
    )

    async def main() -> None:
        limits = FrameLimits(big)
        payload = bytes(limits.payload_bytes(gradient()))
        arrived = asyncio.Event()
        sums: list[int] = []

        def arrive(_peer: PeerId, _message: Data, payload: memoryview) -> None:
            sums.append(zlib.crc32(payload))
            arrived.set()

        async with network() as net:
            links = [
                Links(
                    net.transport(peer),
                    greeting(),
                    limits,
                    heartbeat=lambda: Heartbeat(count=0, lag_seconds=0.0, seats=()),
                    emit=lambda _event: None,
                )
                for peer in (ANN, BOB)
            ]
            links[0].on_control = links[1].on_control = lambda _peer, _message: None
            links[1].on_data = arrive
            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(each.run()) for each in links]
                await asyncio.sleep(0)
                await links[0].send_data(BOB, gradient(), (payload,))
                await arrived.wait()
                for each in runs:
                    each.cancel()
        assert sums == [zlib.crc32(payload)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
