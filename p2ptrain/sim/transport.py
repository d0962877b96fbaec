"""One peer's end of the simulated network: its streams and its port into the network.

``SimStream`` and ``SimTransport`` implement the ports of the same names. A ``Wire`` is a
stream as the network sees it: both ends, and whether anything gets through at present.

Invariant: whoever closes, dies or gives up, each end hears of it at most once, behind
the data that was on its way; a silent wire is given up by both ends after 40 s.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

from p2ptrain.errors import InternalError, LinkError
from p2ptrain.sim.pipes import REPAIR_SECONDS

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from p2ptrain.ports import Buffer, Stream, StreamHandler
    from p2ptrain.sim.network import SimNetwork
    from p2ptrain.sim.pipes import Pipe, Uplink
    from p2ptrain.units import PeerId

SILENCE_SECONDS = 40.0
"""libp2p gives a silent connection up after 40 s (measured: yamux keepalive, 30 s + 10 s)."""

OPEN_SECONDS = 10.0
"""The transport's own deadline for opening a stream."""


class SimStream:
    """One end of a stream: implements ``ports.Stream``."""

    def __init__(self, peer: PeerId, outgoing: Pipe, incoming: Pipe) -> None:
        self._peer = peer
        self.closed = False
        self.handed_over = False  # to the peer; until then it is the network's
        self._out = outgoing
        self._in = incoming
        incoming.on_end = outgoing.break_off

    @property
    def peer(self) -> PeerId:
        """The peer at the other end."""
        return self._peer

    # The pipe's own coroutines: one of ours around each would be resumed with every message.

    def send(self, *buffers: Buffer) -> Coroutine[Any, Any, None]:
        """See ``ports.Stream``."""
        return self._out.send(buffers)

    def receive_into(self, buffer: memoryview) -> Coroutine[Any, Any, None]:
        """See ``ports.Stream``."""
        return self._in.receive_into(buffer)

    async def close(self) -> None:
        """See ``ports.Stream``; what was sent before still arrives."""
        self.shut("the peer closed the stream", flush=True)

    def shut(self, reason: str, *, flush: bool) -> None:
        """Close; without ``flush``, what has not left yet is lost."""
        self.closed = True
        self._in.abandon("the stream is closed")
        self._out.finish(reason, flush=flush)

    def fail(self, reason: str) -> None:
        """Break both directions here and now, without a word to the other end."""
        self._in.end(reason)
        self._out.break_off(reason)


class Wire:
    """Both ends of one stream, as the network sees it."""

    def __init__(self, ends: tuple[SimStream, SimStream], pipes: tuple[Pipe, Pipe]) -> None:
        self.ends = ends
        self.peers = (ends[1].peer, ends[0].peer)
        self._pipes = pipes
        self._cut = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def over(self) -> bool:
        """Whether both ends know that it has ended."""
        return all(pipe.over for pipe in self._pipes)

    def hold(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        """Nothing arrives from now on; after a long silence both ends give up."""
        if not self._cut:
            self._cut = True
            self._restart(loop.call_later(SILENCE_SECONDS, self._give_up, context=context))
            for pipe in self._pipes:
                pipe.hold()

    def mend(self, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        """What was held arrives soon, unless a new cut comes first."""
        if self._cut:
            self._cut = False
            self._restart(loop.call_later(REPAIR_SECONDS, self._release, context=context))

    def _restart(self, timer: asyncio.TimerHandle) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _release(self) -> None:
        for pipe in self._pipes:
            pipe.release()

    def _give_up(self) -> None:
        for end in self.ends:
            end.fail(f"no sign of life for {SILENCE_SECONDS:.0f} s")


class SimTransport:
    """One peer's port into the network: implements ``ports.Transport``."""

    def __init__(self, network: SimNetwork, peer: PeerId, uplink: Uplink) -> None:
        self._network = network
        self._peer = peer
        self.uplink = uplink
        self.alive = True
        self.retired = False  # its process is going: nobody is let in any more
        self._handler: StreamHandler | None = None
        self._context = network.context
        self._tasks: dict[asyncio.Task[None], None] = {}

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        """None: peers of the simulated network are known by their ids."""
        return ()

    async def listen(self, handler: StreamHandler) -> None:
        """See ``ports.Transport``. Handlers run as part of the caller's simulated process."""
        if self._handler is not None:
            msg = "listen is called once"
            raise InternalError(msg)
        self._handler = handler
        self._context = contextvars.copy_context()

    async def open(self, peer: PeerId) -> Stream:
        """See ``ports.Transport``; takes a round trip."""
        if not self.alive:
            raise LinkError("this peer is dead", peer=peer)
        answer: asyncio.Future[SimStream] = asyncio.get_running_loop().create_future()
        self._network.knock(self, peer, answer)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await answer
        except TimeoutError:
            raise LinkError(f"no answer within {OPEN_SECONDS:.0f} s", peer=peer) from None
        except asyncio.CancelledError:
            # The stream may have come in the very turn in which we were cancelled.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                await answer.result().close()
            raise

    # --- for the network ------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether a stream can be accepted."""
        return self.alive and not self.retired and self._handler is not None

    def accept(self, stream: SimStream, group: asyncio.TaskGroup) -> None:
        """Run the handler in a task of this peer's process."""
        assert self._handler is not None
        stream.handed_over = True
        task = group.create_task(self._serve(self._handler, stream), context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._forget, context=self._network.context)

    async def _serve(self, handler: StreamHandler, stream: SimStream) -> None:
        await handler(stream)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]

    def die(self) -> None:
        """The process is gone: its tasks end, its calls fail."""
        self.alive = False
        for task in list(self._tasks):
            task.cancel()
