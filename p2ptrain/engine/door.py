"""Where streams that peers open come in: handshake first, then they belong to a link.

Invariants: at most ``most_handshakes`` strangers stand here, each for ``handshake_seconds``
at most (beyond, the stream is closed unread); whoever is not let in is told why in one
line; a stream is closed here, and only here, when its link has done with it.

The alternative, reading the Hello inside the transport, would put the run's rules there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from p2ptrain.engine import framed
from p2ptrain.engine.link import Link
from p2ptrain.errors import LinkError, WireError
from p2ptrain.observe.events import FrameRefused, LinkRefused
from p2ptrain.wire import framing
from p2ptrain.wire.handshake import refusal
from p2ptrain.wire.messages import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.engine.link import LinkSettings
    from p2ptrain.observe.events import Emit
    from p2ptrain.ports import Stream
    from p2ptrain.units import PeerId
    from p2ptrain.wire.limits import FrameLimits
    from p2ptrain.wire.messages import Hello


def start(tasks: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
    """Start ``work`` in ``tasks``; None when the group is already ending."""
    try:
        return tasks.create_task(work)
    except RuntimeError:  # its only way to say so
        work.close()
        return None


class Door:
    """The handshake of every incoming stream. ``admit`` decides who owns it afterwards."""

    def __init__(
        self,
        hello: Hello,
        limits: FrameLimits,
        settings: LinkSettings,
        admit: Callable[[PeerId, Hello], Link | str],
        emit: Emit,
    ) -> None:
        self._hello = hello
        self._limits = limits
        self._settings = settings
        self._admit = admit
        self._emit = emit
        self._tasks: asyncio.TaskGroup | None = None
        self._standing = 0

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """Let streams in from now on; their tasks live in ``tasks``."""
        self._tasks = tasks

    async def accept(self, stream: Stream) -> None:
        """Serve a stream until it has done, in a task of ours: this one is the transport's."""
        task = None
        if self._tasks is not None and self._standing < self._settings.most_handshakes:
            self._standing += 1
            task = start(self._tasks, self._serve(stream))
        try:
            if task is not None:
                await asyncio.wait((task,))
        finally:
            await stream.close()  # also where the task was cancelled before it began

    async def _serve(self, stream: Stream) -> None:
        try:
            served = await self._welcome(stream)
            if served is not None:
                await served
        finally:
            await stream.close()

    async def _welcome(self, stream: Stream) -> asyncio.Future[None] | None:
        """Read the Hello and hand the stream to its link; None: it was refused."""
        try:
            async with asyncio.timeout(self._settings.handshake_seconds):
                hello = await framed.read_hello(stream, self._limits)
                admitted = refusal(self._hello, hello) or self._admit(stream.peer, hello)
                if isinstance(admitted, Link):
                    return admitted.attach(hello.channel, stream, hello.incarnation)
                self._emit(LinkRefused(peer=stream.peer, reason=admitted))
                await stream.send(framing.encode(Refused(reason=admitted)))
        except WireError as error:
            self._emit(FrameRefused(peer=stream.peer, reason=error.reason))
        except (LinkError, TimeoutError):
            pass  # it went away, or never spoke: nothing had begun
        finally:
            self._standing -= 1
        return None
