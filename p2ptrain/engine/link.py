"""The link to one peer: four streams that live and die together.

    we open     control ->  (handshake) ->  messages, heartbeats
    we open     data    ->  (handshake) ->  frames with payload; opened by the first of them
    peer opens  control <-                  mirrored
    peer opens  data    <-

    BACKOFF --time is over, or the peer calls--> OPENING --both controls open--> UP
        any of them --a stream breaks, bad bytes, a bound, end()--> ENDED (for good)

Invariants:
    * what breaks one stream ends the link: nobody has to reason about half a link;
    * control never waits behind data: streams of their own (see lanes);
    * when :meth:`run` returns, no task and no stream that we opened is left; the streams
      that the peer opened are closed by whoever accepted them, who is told.

Refused: one stream for both (a 150 MB frame would hold the heartbeats back for seconds),
and a retry inside the link (the engine knows better where else to send).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Protocol

import msgspec

from p2ptrain.engine import framed
from p2ptrain.engine.lanes import ControlLane, DataLane
from p2ptrain.errors import LinkError, PeerError, WireError
from p2ptrain.wire import framing
from p2ptrain.wire.messages import Welcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2ptrain.observe.events import AnyEvent
    from p2ptrain.ports import Stream, Transport
    from p2ptrain.units import Bytes, PeerId, Seconds
    from p2ptrain.wire.limits import FrameLimits
    from p2ptrain.wire.messages import Control, Data, Hello

Channel = Literal["control", "data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Bounds and deadlines of links.

    ``handshake_seconds``: a few round trips on a slow path, and a stranger may hold a
    stream for no longer. ``control_queue_bytes``: four of the longest messages, or minutes
    of ordinary ones. ``retry_seconds`` doubles with every failed attempt up to
    ``retry_most_seconds``. ``most_links``, ``most_handshakes``: beyond, peers are refused.
    """

    heartbeat_seconds: Seconds = 1.0
    handshake_seconds: Seconds = 10.0
    control_queue_bytes: Bytes = 4 << 20
    retry_seconds: Seconds = 0.5
    retry_most_seconds: Seconds = 8.0
    most_links: int = 4096
    most_handshakes: int = 64


class _OverError(Exception):
    """Leaves the task group when the link has ended."""


class LinkOwner(Protocol):
    """What a link tells the set of links; all calls are synchronous, on the loop."""

    def deliver_control(self, peer: PeerId, message: Control) -> None:
        """A control message has arrived."""
        ...

    def deliver_data(self, peer: PeerId, message: Data, payload: memoryview) -> None:
        """A data message has arrived; the payload is the receiver's to keep."""
        ...

    def went_up(self, link: Link) -> None:
        """Control flows in both directions from now on; called at most once a link."""
        ...

    def emit(self, event: AnyEvent) -> None:
        """Something happened."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Incoming:
    """A stream that the peer opened; ``served`` tells its owner that it may be closed."""

    channel: Channel
    stream: Stream
    served: asyncio.Future[None]


class Link:
    """See the module. Start :meth:`run` in a task at once; use the rest until it returns."""

    def __init__(
        self,
        peer: PeerId,
        *,
        transport: Transport,
        hello: Hello,
        limits: FrameLimits,
        settings: LinkSettings,
        owner: LinkOwner,
    ) -> None:
        self.peer: Final = peer
        self.incarnation: int | None = None
        self.reason = ""
        self.blame: PeerError | None = None  # the error that ended it, if it was no decision
        self.is_up = False
        self.in_backoff = False
        self.control: Final = ControlLane(settings.control_queue_bytes)
        self.data: Final = DataLane(peer, limits, owner.emit)
        self._transport = transport
        self._hello = hello
        self._limits = limits
        self._settings = settings
        self._owner = owner
        self._tasks: asyncio.TaskGroup | None = None
        self._over = asyncio.Event()
        self._called = asyncio.Event()  # the peer has opened a stream: it can be reached
        self._welcomed = asyncio.Event()
        self._incoming: dict[Channel, _Incoming] = {}

    def post(self, frame: bytes) -> None:
        """Queue an encoded control frame; at the lane's bound the link ends."""
        if not self.over and not self.control.post(frame):
            self.end("it does not read: the control queue is full")

    def end(self, reason: str) -> None:
        """End the link; the first reason counts."""
        if not self.over:
            self.reason = reason
            self._over.set()

    @property
    def over(self) -> bool:
        """Whether the link has ended: it takes nothing any more."""
        return self._over.is_set()

    def has_incoming(self, channel: Channel) -> bool:
        """Whether the peer has this stream open to us."""
        return channel in self._incoming

    def attach(self, channel: Channel, stream: Stream, incarnation: int) -> asyncio.Future[None]:
        """Take over a stream that the peer opened; close it when the future is done."""
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        incoming = _Incoming(channel=channel, stream=stream, served=served)
        self.incarnation = incarnation
        self._incoming[channel] = incoming
        self._called.set()
        if self.over:
            served.set_result(None)
        elif self._tasks is not None:
            self._start(partial(self._read, incoming))
        return served  # before run() begins, run() starts the reader

    # --- life --------------------------------------------------------------------------

    async def run(self, *, wait_seconds: Seconds) -> None:
        """Open and work until something ends the link; then see ``reason`` and ``blame``.

        Args:
            wait_seconds: backoff before opening; cut short when the peer calls.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for incoming in list(self._incoming.values()):
                    self._start(partial(self._read, incoming))
                self._start(partial(self._write_control, wait_seconds))
                self._start(self._write_data)
                await self._leave_when_over()
        except* _OverError:
            pass
        finally:
            self.release()

    async def _leave_when_over(self) -> NoReturn:
        await self._over.wait()
        raise _OverError  # a task group is left early by an error only

    def release(self) -> None:
        """End the link if it has not, and give everybody who waits an answer."""
        self.end("links are closing")
        self.control.close()
        self.data.close(self.reason)
        for incoming in self._incoming.values():
            if not incoming.served.done():
                incoming.served.set_result(None)

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._blame_for(work))

    async def _blame_for(self, work: Callable[[], Awaitable[None]]) -> None:
        """One of the link's tasks: what breaks it ends the link."""
        try:
            await work()
        except PeerError as error:
            if not self.over:
                self.blame = error
            self.end(error.reason)

    # --- the four streams ----------------------------------------------------------------

    async def _read(self, incoming: _Incoming) -> None:
        peer, owner = self.peer, self._owner
        await incoming.stream.send(framing.encode(Welcome(incarnation=self._hello.incarnation)))
        if incoming.channel == "data":
            await framed.receive_data(
                incoming.stream,
                self._limits,
                partial(owner.deliver_data, peer),
            )
        self._rise()
        await framed.receive_control(
            incoming.stream, self._limits, partial(owner.deliver_control, peer)
        )

    async def _write_control(self, wait_seconds: Seconds) -> None:
        await self._back_off(wait_seconds)
        stream = await self._transport.open(self.peer)
        try:
            await self._greet(stream, "control")
            self._start(partial(self._watch, stream))
            self._welcomed.set()
            if not self._called.is_set():
                self._start(self._expect_return)
            self._rise()
            await self.control.write(stream)
        finally:
            await stream.close()

    async def _write_data(self) -> None:
        await self._welcomed.wait()
        await self.data.wait()
        stream = await self._transport.open(self.peer)
        try:
            await self._greet(stream, "data")
            self._start(partial(self._watch, stream))
            await self.data.write(stream)
        finally:
            await stream.close()

    async def _watch(self, stream: Stream) -> None:
        """See that the peer closes a stream of ours although we may have nothing to write.

        Else its next call would be taken into a link that is half dead, and end with it; then
        the peer is left with such a link, and our next call ends as well, and so on.
        """
        await stream.receive_into(memoryview(bytearray(1)))
        raise WireError("it speaks on a stream that is ours alone", peer=self.peer)

    # --- opening -------------------------------------------------------------------------

    async def _back_off(self, wait_seconds: Seconds) -> None:
        if wait_seconds <= 0:
            return
        self.in_backoff = True
        try:
            async with asyncio.timeout(wait_seconds):
                await self._called.wait()
        except TimeoutError:
            pass  # the wait is over
        finally:
            self.in_backoff = False

    async def _greet(self, stream: Stream, channel: Channel) -> None:
        hello = msgspec.structs.replace(self._hello, channel=channel)
        try:
            async with asyncio.timeout(self._settings.handshake_seconds):
                welcome = await framed.greet(stream, hello, self._limits)
        except TimeoutError:
            raise LinkError("no answer to our Hello", peer=self.peer) from None
        if self.incarnation not in (None, welcome.incarnation):
            raise LinkError("it has restarted", peer=self.peer)
        self.incarnation = welcome.incarnation

    async def _expect_return(self) -> None:
        """A peer that takes our control stream opens its own, or the link is of no use."""
        try:
            async with asyncio.timeout(self._settings.handshake_seconds):
                await self._called.wait()
        except TimeoutError:
            raise LinkError("it opened no stream to us", peer=self.peer) from None

    def _rise(self) -> None:
        if self._welcomed.is_set() and "control" in self._incoming and not self.is_up:
            self.is_up = True
            self._owner.went_up(self)
