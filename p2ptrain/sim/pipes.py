"""One direction of a simulated stream, and the uplink that the pipes of a peer share.

A pipe is what TCP and libp2p make of the wire: ordered, reliable, with a bounded window.
Bytes leave through the sender's uplink (one segment at a time, the pipes taking turns,
so that a heartbeat does not wait for a whole tensor), arrive after the link's latency
and jitter but never before their forerunners, and wait for the reader. A writer that is
a window ahead of the reader waits.

    send -> [backlog -> uplink] -> latency -> (held while the wire is cut) -> chunks -> receive

The end of a pipe travels the same way, behind the data, as a string: its reason.

One timer and one wake-up per message, whatever its size up to a segment: a swarm of 64
peers sends a million of them in a test.

Refused: packets, loss and retransmission. The engine sees streams; what loss does to a
stream is delay and a lower rate, which the link states directly.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from p2ptrain.errors import LinkError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from contextvars import Context
    from random import Random

    from p2ptrain.ports import Buffer
    from p2ptrain.units import Bytes, PeerId, Seconds

    Tap = Callable[[Literal["sent", "arrived"], tuple[PeerId, PeerId], bytes | memoryview], None]

WINDOW_BYTES = 1 << 20
"""Sent and not read, at most, beside what the wire itself holds (libp2p: 1.05 MB measured)."""

SEGMENT_BYTES = 1 << 16
"""What a pipe sends before it is the next pipe's turn on the uplink."""

REPAIR_SECONDS = 0.2
"""From the mending of a wire to the first retransmission: TCP's least timeout on Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A peer's way into the network; shapes what it *sends*.

    ``corruption``: chance that one bit of a send is flipped (what checksums are for).
    """

    latency_seconds: Seconds = 0.01
    jitter_seconds: Seconds = 0.0
    rate_bytes_per_second: float = math.inf
    corruption: float = 0.0

    def window_bytes(self) -> Bytes:
        """The reader's window and, as auto-tuned windows do, what fits on the wire."""
        if math.isinf(self.rate_bytes_per_second):
            return WINDOW_BYTES
        return WINDOW_BYTES + int(self.rate_bytes_per_second * self.latency_seconds)


Item: TypeAlias = "bytes | memoryview | str"
"""A segment of data, or the reason why the pipe ends."""


class Uplink:
    """One peer's outgoing line: a queue of pipes that take turns, a segment each.

    ``tap``: hears what each pipe of the line takes from its writer and hands to its reader,
    as somebody would who sits on the wire.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: Context,
        link: Link,
        tap: Tap | None = None,
    ) -> None:
        self.tap = tap
        self.loop = loop
        self.context = context
        self.link = link
        self._free_at: Seconds = 0.0
        self._turns: deque[Pipe] = deque()

    def transmit(self, pipe: Pipe, item: Item) -> None:
        """Send ``item`` behind what ``pipe`` has already queued."""
        if math.isinf(self.link.rate_bytes_per_second):
            pipe.depart(item, at=self.loop.time())
            return
        now = self.loop.time()
        if now >= self._free_at and not self._turns and len(item) <= SEGMENT_BYTES:
            self._send(pipe, item, now)
            return
        if isinstance(item, str) or len(item) <= SEGMENT_BYTES:
            pipe.backlog.append(item)
        else:
            whole = memoryview(item)
            for start in range(0, len(whole), SEGMENT_BYTES):
                pipe.backlog.append(whole[start : start + SEGMENT_BYTES])
        if pipe not in self._turns:
            self._turns.append(pipe)
            if len(self._turns) == 1:
                self.loop.call_at(max(now, self._free_at), self._next, context=self.context)

    def _next(self) -> None:
        pipe = self._turns[0]
        if pipe.backlog:
            self._send(pipe, pipe.backlog.popleft(), self.loop.time())
        self._turns.popleft()
        if pipe.backlog:
            self._turns.append(pipe)
        if self._turns:
            self.loop.call_at(self._free_at, self._next, context=self.context)

    def _send(self, pipe: Pipe, item: Item, now: Seconds) -> None:
        self._free_at = now + len(item) / self.link.rate_bytes_per_second
        pipe.depart(item, at=self._free_at)


class Pipe:
    """One direction of a stream: the writer's and the reader's end in one place.

    ``link``: the pair's own; the sender's applies without.
    """

    def __init__(
        self, uplink: Uplink, ends: tuple[PeerId, PeerId], rng: Random, link: Link | None = None
    ) -> None:
        self._from, self._to = ends
        self.backlog: deque[Item] = deque()
        self._uplink = uplink
        self._loop = uplink.loop
        self._own_link = link
        self._rng = rng
        self.on_end: Callable[[str], None] | None = None
        self._unread = 0
        self._last_arrival: Seconds = 0.0
        self._held: deque[Item] | None = None
        self._chunks: deque[bytes | memoryview] = deque()
        self._offset = 0
        self._broken = ""  # why nothing more can be sent
        self._ended = ""  # why nothing more will come, once the chunks are read
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()

    @property
    def link(self) -> Link:
        """The pair's own link, or else the sender's."""
        return self._own_link or self._uplink.link

    @property
    def over(self) -> bool:
        """Whether both ends know that it has ended."""
        return bool(self._broken and self._ended)

    # --- the writer's end ---------------------------------------------------------------

    async def send(self, buffers: tuple[Buffer, ...]) -> None:
        """Hand over all bytes; wait while the reader is a window behind."""
        if self._broken:
            raise LinkError(self._broken, peer=self._to)
        data = b"".join(buffers)
        if self._uplink.tap is not None:
            self._uplink.tap("sent", (self._from, self._to), data)
        window = self.link.window_bytes()
        if len(data) + self._unread <= window:
            self._unread += len(data)
            self._uplink.transmit(self, data)
            return
        rest = memoryview(data)
        while rest:
            room = min(len(rest), window - self._unread)
            if room <= 0:
                await self._wait_for_room()
                continue
            self._unread += room
            self._uplink.transmit(self, rest[:room])
            rest = rest[room:]

    async def _wait_for_room(self) -> None:
        future = self._loop.create_future()
        self._writers.append(future)
        await future
        if self._broken:
            raise LinkError(self._broken, peer=self._to)

    def finish(self, reason: str, *, flush: bool) -> None:
        """Nothing more is sent; the reader learns ``reason`` behind what is on the way."""
        if self._broken:
            return
        if not flush:
            self.backlog.clear()
        self.break_off("the stream is closed")
        self._uplink.transmit(self, reason)

    def break_off(self, reason: str) -> None:
        """Sends fail from now on, those that wait as well."""
        self._broken = self._broken or reason
        self._let_write()

    def _let_write(self) -> None:
        while self._writers:
            future = self._writers.popleft()
            if not future.done():
                future.set_result(None)

    # --- the wire -------------------------------------------------------------------------

    def depart(self, item: Item, *, at: Seconds) -> None:
        """Put ``item`` on the wire, its last bit leaving ``at``."""
        link = self.link
        arrival = at + link.latency_seconds
        if link.jitter_seconds:
            arrival += self._rng.random() * link.jitter_seconds
        if link.corruption and self._rng.random() < link.corruption:
            item = self._flip(item)
        self._last_arrival = arrival = max(arrival, self._last_arrival)
        self._loop.call_at(arrival, self._arrive, item, context=self._uplink.context)

    def _flip(self, item: Item) -> Item:
        if isinstance(item, str) or not len(item):
            return item
        flipped = bytearray(item)
        flipped[self._rng.randrange(len(flipped))] ^= 1 << self._rng.randrange(8)
        return bytes(flipped)

    def hold(self) -> None:
        """The wire is cut: what arrives now waits."""
        if self._held is None:
            self._held = deque()

    def release(self) -> None:
        """The wire is mended."""
        held, self._held = self._held, None
        for item in held or ():
            self._arrive(item)

    def _arrive(self, item: Item) -> None:
        if self._held is not None:
            self._held.append(item)
        elif isinstance(item, str):
            self.end(item)
            if self.on_end is not None:
                self.on_end(item)
        elif not self._ended:
            if self._uplink.tap is not None:
                self._uplink.tap("arrived", (self._from, self._to), item)
            self._chunks.append(item)
            self._let_read()

    # --- the reader's end -------------------------------------------------------------------

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill ``buffer``; bytes are taken as they come, which makes room for the writer."""
        filled, wanted = 0, len(buffer)
        while filled < wanted:
            if not self._chunks:
                if self._ended:
                    raise LinkError(self._ended, peer=self._from)
                self._reader = self._loop.create_future()
                try:
                    await self._reader
                finally:
                    self._reader = None
                continue
            chunk, start = self._chunks[0], self._offset
            size = min(wanted - filled, len(chunk) - start)
            if size == wanted:
                buffer[:] = chunk[start : start + size]
            else:
                buffer[filled : filled + size] = chunk[start : start + size]
            filled += size
            self._offset += size
            self._unread -= size
            if self._offset == len(chunk):
                self._chunks.popleft()
                self._offset = 0
            if self._writers:
                self._let_write()

    def _let_read(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def end(self, reason: str) -> None:
        """Nothing more will come; what came can still be read."""
        self._ended = self._ended or reason
        self._let_read()

    def abandon(self, reason: str) -> None:
        """The reader reads no more: forget what came and what is still to come."""
        self._ended = self._ended or reason
        self._chunks.clear()
        self._offset = 0
        self._let_read()
