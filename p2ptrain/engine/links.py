"""All links of one peer: who is connected, and the way in and out for messages.

Intuition: the rest of the engine says *what* to *whom*; streams, handshakes, heartbeats,
bounds and broken connections end here. A peer is a link; a link is opened by the first
message to it, or by the peer, and when it breaks it is forgotten: there is no half-open
state to reason about, only ``on_down``.

Invariants:
    * at most one live link per peer; a new incarnation, or a second call of the same one,
      replaces it (``on_down`` of the old comes before ``on_up`` of the new);
    * a peer's bad bytes end that link and nothing else;
    * callbacks come from the loop, never from inside a call into this class;
    * messages to ourselves take no network, but the same callbacks, in order;
    * when :meth:`Links.run` has ended, no task and no stream of ours is left.

Control messages are never promised: they are lost when the link breaks, and ``on_down``
says so. The alternative, a queue that survives reconnection, would deliver stale asks and
answers to another incarnation. What matters is asked again by the core's own deadlines.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING

from p2ptrain.engine.door import Door, start
from p2ptrain.engine.framed import RefusedByPeerError
from p2ptrain.engine.link import Link, LinkSettings
from p2ptrain.engine.loopback import Loopback
from p2ptrain.engine.retries import Retries
from p2ptrain.errors import InternalError, LinkError, MisbehaviourError, PeerError, WireError
from p2ptrain.observe import events as ev
from p2ptrain.wire import framing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.ports import Buffer, Transport
    from p2ptrain.units import Bytes, PeerId
    from p2ptrain.wire.limits import FrameLimits
    from p2ptrain.wire.messages import Control, Data, Heartbeat, Hello


def _unheard(*_: object) -> None:
    raise InternalError("set on_control and on_data before running the links")


class Links:
    """See the module. Set the callbacks, run :meth:`run`, then send.

    Args:
        transport: streams to other peers; we call its ``listen``.
        hello: who we are: run, incarnation, and arithmetic ('' takes any class).
        limits: the rules of the run.
        heartbeat: makes the message of a beat; called every ``heartbeat_seconds`` at least.
        emit: where events go.
        settings: bounds and deadlines.

    ``on_down`` comes once for every link that ends, also for one that never came up
    (it could not be opened); messages may arrive just before ``on_up``.
    """

    def __init__(
        self,
        transport: Transport,
        hello: Hello,
        limits: FrameLimits,
        *,
        heartbeat: Callable[[], Heartbeat],
        emit: ev.Emit,
        settings: LinkSettings | None = None,
    ) -> None:
        self.on_control: Callable[[PeerId, Control], None] = _unheard
        self.on_data: Callable[[PeerId, Data, memoryview], None] = _unheard
        self.on_up: Callable[[PeerId], None] = lambda _peer: None
        self.on_down: Callable[[PeerId, str], None] = lambda _peer, _reason: None
        # Whom heartbeats go to: who does not depend on us need not know that we live.
        self.beats_to: Callable[[PeerId], bool] = lambda _peer: True
        self.refusals: dict[PeerId, str] = {}  # who refused us, and why: one line each
        self._me = transport.peer
        self._transport = transport
        self._hello = hello
        self.limits = limits
        self._heartbeat = heartbeat
        self._emit = emit
        self._settings = settings if settings is not None else LinkSettings()
        self._tasks: asyncio.TaskGroup | None = None
        self._control_bytes: Bytes = 0
        self._links: dict[PeerId, Link] = {}
        self._retries = Retries(
            # Seeded by who we are: peers that lost the same peer do not call it in step.
            random.Random(f"{self._me}/{hello.incarnation}"),
            first_seconds=self._settings.retry_seconds,
            most_seconds=self._settings.retry_most_seconds,
        )
        self._door = Door(hello, limits, self._settings, self._admit, emit)
        self._loopback = Loopback()

    # --- sending -------------------------------------------------------------------------

    def send(self, peer: PeerId, message: Control) -> None:
        """Send a control message, opening a link if there is none; never blocks.

        At the queue's bound the link ends; before :meth:`run` and after, it is dropped.
        """
        self.broadcast((peer,), message)

    def broadcast(self, peers: Sequence[PeerId], message: Control) -> None:
        """Send one message to several peers, encoded once."""
        frame: bytes | None = None
        for peer in peers:
            if peer == self._me:
                self._loopback.post(message, partial(self.deliver_control, peer))
            elif (link := self._link(peer)) is not None:
                frame = frame if frame is not None else framing.encode(message)
                link.post(frame)

    async def send_data(self, peer: PeerId, message: Data, payload: Sequence[Buffer]) -> None:
        """Send a data message; returns when the stream has taken it whole.

        Waits as long as the peer does not read. Cancelled, a frame that has begun is still
        finished: keep its buffers unchanged.

        Raises:
            LinkError: the link broke, or the peer could not be reached lately.
        """
        await self.submit(peer, message, payload)

    def submit(
        self, peer: PeerId, message: Data, payload: Sequence[Buffer]
    ) -> asyncio.Future[None]:
        """Like :meth:`send_data`, for callers without a task; retrieve the future's error.

        Raises:
            LinkError: no link can be opened at present.
        """
        if peer == self._me:
            return self._loopback.submit(message, payload, partial(self.deliver_data, peer))
        link = self._link(peer)
        if link is None:
            raise LinkError("no link can be opened", peer=peer)
        if link.in_backoff:
            raise LinkError("it could not be reached a moment ago", peer=peer)
        return link.data.submit(message, payload)

    def open(self, peer: PeerId) -> None:
        """Have a link to ``peer``, without anything to say yet."""
        if peer != self._me:
            self._link(peer)

    def close_peer(self, peer: PeerId, reason: str) -> None:
        """End the link to ``peer``, if there is one; ``on_down`` follows."""
        if (link := self._links.get(peer)) is not None:
            link.end(reason)

    # --- looking ------------------------------------------------------------------------

    def peers(self) -> tuple[PeerId, ...]:
        """Peers with a link that is up, sorted."""
        return tuple(peer for peer, link in sorted(self._links.items()) if link.is_up)

    def queued_bytes(self, peer: PeerId) -> Bytes:
        """Payload bytes that wait for, or are on, the stream to ``peer``."""
        link = self._links.get(peer)
        return link.data.queued_bytes if link is not None else 0

    def incarnation(self, peer: PeerId) -> int | None:
        """Which start of ``peer`` the link speaks to, as far as known."""
        link = self._links.get(peer)
        return link.incarnation if link is not None else None

    async def flush(self) -> None:
        """Wait until every posted control message is written; give it a timeout."""
        for _, link in sorted(self._links.items()):
            if link.is_up:
                await link.control.drained()

    # --- life --------------------------------------------------------------------------

    async def run(self) -> None:
        """Own everything until cancelled. Then the streams are closed and nobody is told."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._beat())
                self._door.open(tasks)
                await self._transport.listen(self._door.accept)
                await self._loopback.run(self._refuse_own)
        finally:
            self._tasks = None
            for _, link in sorted(self._links.items()):
                link.release()
                self._control_bytes += link.control.sent_bytes
            self._links.clear()
            self._emit(ev.ControlSent(frame_bytes=self._control_bytes))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.heartbeat_seconds)
            frame = framing.encode(self._heartbeat())
            for _, link in sorted(self._links.items()):
                if link.is_up and self.beats_to(link.peer):
                    link.post(frame)

    # --- links ---------------------------------------------------------------------------

    def _link(self, peer: PeerId) -> Link | None:
        """The link to ``peer``, begun if there is none; None at the bound or when closing."""
        return self._links.get(peer) or self._begin(peer)

    def _begin(self, peer: PeerId) -> Link | None:
        if self._tasks is None or len(self._links) >= self._settings.most_links:
            return None
        link = Link(
            peer,
            transport=self._transport,
            hello=self._hello,
            limits=self.limits,
            settings=self._settings,
            owner=self,
        )
        if start(self._tasks, self._keep(link)) is None:
            return None
        self._links[peer] = link
        return link

    async def _keep(self, link: Link) -> None:
        now = asyncio.get_running_loop().time()
        await link.run(wait_seconds=self._retries.wait_seconds(link.peer, now=now))
        self._retire(link)

    def _retire(self, link: Link) -> None:
        """Forget a link that has ended, once, and say why."""
        if self._links.get(link.peer) is not link:
            return
        del self._links[link.peer]
        link.end("replaced")
        match link.blame:
            case WireError() | MisbehaviourError():
                self._emit(ev.FrameRefused(peer=link.peer, reason=link.reason))
            case RefusedByPeerError():
                self.refusals[link.peer] = link.reason
                self._emit(ev.LinkRefused(peer=link.peer, reason=f"it says: {link.reason}"))
            case _:
                pass
        if not link.is_up:
            self._retries.failed(link.peer, now=asyncio.get_running_loop().time())
        self._control_bytes += link.control.sent_bytes
        self._emit(ev.LinkDown(peer=link.peer, reason=link.reason))
        self.on_down(link.peer, link.reason)

    # --- incoming streams ------------------------------------------------------------------

    def _admit(self, peer: PeerId, hello: Hello) -> Link | str:
        """The link that takes a stream the door let in, or the line that refuses it."""
        if peer == self._me:
            return "a peer does not call itself"
        link = self._links.get(peer)
        known = link.incarnation if link is not None else None
        if known is not None and hello.incarnation < known:
            return "this peer has been started again since; stop the older process"
        if hello.channel == "data":
            fits = link is not None and not link.over and known == hello.incarnation
            if link is None or not fits or link.has_incoming("data"):
                return "open a control stream first"
            return link
        if link is not None and (
            link.over or link.has_incoming("control") or known not in (None, hello.incarnation)
        ):
            self._retire(link)  # it has begun anew, so its old streams are dead
            link = None
        if link is None:
            link = self._begin(peer)
        return link or f"this peer already has {self._settings.most_links} links; try another"

    # --- from links (LinkOwner) --------------------------------------------------------------

    def deliver_control(self, peer: PeerId, message: Control) -> None:
        """Hand on a control message."""
        self.on_control(peer, message)

    def deliver_data(self, peer: PeerId, message: Data, payload: memoryview) -> None:
        """Hand on a data message."""
        self.on_data(peer, message, payload)

    def went_up(self, link: Link) -> None:
        """Tell that both sides can speak; the first beat tells the peer our seats."""
        self._retries.reached(link.peer)
        self.refusals.pop(link.peer, None)
        link.post(framing.encode(self._heartbeat()))
        self._emit(ev.LinkUp(peer=link.peer))
        self.on_up(link.peer)

    def emit(self, event: ev.AnyEvent) -> None:
        """Pass an event of a link on."""
        self._emit(event)

    def _refuse_own(self, error: PeerError) -> None:
        self._emit(ev.FrameRefused(peer=self._me, reason=error.reason))
