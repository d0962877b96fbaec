"""Link emulation: a Transport whose outgoing bytes meet a rate, a delay and jitter.

Intuition: all streams of one program share one uplink. A piece of a message books the
uplink for size / rate seconds, leaves then, and arrives a delay later; nothing overtakes
anything within a stream. The real transport below carries the bytes at that moment.

Invariants: ``send`` returns when the last piece has left, so pressure stays end to end: at
most ``window_bytes`` of a stream are on their way, and when the reader stops, ``send``
waits. What a finished ``send`` gave still arrives after ``close``. Time is the loop's;
waits are sleeps until a known instant, never polls.

Refused: tc and netem (root, and absent on many machines), and shaping per stream (a peer
with more streams would have a faster line).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from p2ptrain.errors import LinkError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.ports import Buffer, Stream, StreamHandler, Transport
    from p2ptrain.units import Bytes, PeerId, Seconds

Pump: TypeAlias = "Coroutine[Any, Any, None]"

PIECE_BYTES: Final = 64 * 1024  # streams take turns on the uplink by pieces of this size
# The uplink may be booked this far ahead before a sender waits: one timer per burst, not
# per message.
BURST_SECONDS: Final = 0.005
# libp2p's own window, measured; a long fat link holds more, or the delay would cap its rate.
LEAST_WINDOW_BYTES: Final = 1 << 20
_BITS: Final = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_SHAPE: Final = re.compile(
    r"(?:(?P<rate>\d+(?:\.\d+)?)(?P<bits>[kmg]bit)(?:/s)?(?:,|$))?"
    r"(?:(?P<delay>\d+(?:\.\d+)?)(?P<delay_unit>m?s)"
    r"(?:,(?P<jitter>\d+(?:\.\d+)?)(?P<jitter_unit>m?s)(?:jitter)?)?)?"
)
EXAMPLE: Final = "write for instance --link 200mbit,50ms or --link 100mbit,50ms,5ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """One direction of a peer's line: bytes per second out (None: no limit), delay, jitter.

    Jitter adds up to so many seconds to the delay of a piece, uniformly.
    """

    rate: float | None = None
    delay_seconds: Seconds = 0.0
    jitter_seconds: Seconds = 0.0

    @property
    def window_bytes(self) -> Bytes:
        """How much of one stream may be on its way."""
        flight = (self.rate or 0.0) * (self.delay_seconds + self.jitter_seconds)
        return max(LEAST_WINDOW_BYTES, int(2 * flight))


def parse_link(text: str) -> LinkShape:
    """Read ``RATE[,DELAY[,JITTER]]`` or ``DELAY[,JITTER]``: 200mbit,50ms,5ms.

    Raises:
        UserError: one line with what is wrong and an example.
    """
    found = _SHAPE.fullmatch("".join(text.lower().split()))
    if found is None or found[0] == "" or found[0].endswith(","):
        raise UserError(f"--link {text!r} is not understood; {EXAMPLE}")
    if found["rate"] and float(found["rate"]) == 0:
        raise UserError(f"--link {text!r}: a rate of 0 lets nothing through; {EXAMPLE}")
    return LinkShape(
        rate=float(found["rate"]) * _BITS[found["bits"]] / 8 if found["rate"] else None,
        delay_seconds=_seconds(found["delay"], found["delay_unit"]),
        jitter_seconds=_seconds(found["jitter"], found["jitter_unit"]),
    )


def _seconds(number: str | None, unit: str) -> Seconds:
    return 0.0 if number is None else float(number) / (1000 if unit == "ms" else 1)


class Uplink:
    """The line out of one program. Pure: time is given."""

    def __init__(self, shape: LinkShape, rng: Random) -> None:
        self.shape = shape
        self._rng = rng
        self._free_at: Seconds = 0.0

    def book(self, size: Bytes, *, now: Seconds) -> Seconds:
        """Book the line for ``size`` bytes; return when the last of them has left."""
        if self.shape.rate is None:
            return now
        self._free_at = max(self._free_at, now) + size / self.shape.rate
        return self._free_at

    def flight_seconds(self) -> Seconds:
        """How long the next piece is under way once it has left."""
        return self.shape.delay_seconds + self.shape.jitter_seconds * self._rng.random()


class EmulatedStream:
    """A stream whose outgoing bytes take their time (ports.Stream)."""

    def __init__(
        self, stream: Stream, uplink: Uplink, start: Callable[[Pump], asyncio.Task[None]]
    ) -> None:
        self._stream = stream
        self._uplink = uplink
        self._start = start
        self._flying: deque[tuple[Seconds, bytes]] = deque()
        self._flying_bytes = 0
        self._last_arrival: Seconds = 0.0
        self._pump: asyncio.Task[None] | None = None
        self._landed = asyncio.Event()
        self._closed = False
        self._fault: str | None = None

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self._stream.peer

    async def send(self, *buffers: Buffer) -> None:
        """As ports.Stream; returns when the last byte has left the emulated line."""
        whole = memoryview(b"".join(buffers) if len(buffers) != 1 else buffers[0]).cast("B")
        for start in range(0, len(whole), PIECE_BYTES):
            await self._send_piece(bytes(whole[start : start + PIECE_BYTES]))

    async def _send_piece(self, piece: bytes) -> None:
        while self._flying_bytes >= self._uplink.shape.window_bytes and self._fault is None:
            self._landed.clear()
            await self._landed.wait()
        if self._closed or self._fault is not None:
            raise LinkError(self._fault or "stream closed", peer=self.peer)
        loop = asyncio.get_running_loop()
        now = loop.time()
        leaves_at = self._uplink.book(len(piece), now=now)
        arrival = leaves_at + self._uplink.flight_seconds()
        self._last_arrival = max(arrival, self._last_arrival)
        self._flying.append((self._last_arrival, piece))
        self._flying_bytes += len(piece)
        if self._pump is None:
            self._pump = self._start(self._land())
        if leaves_at > now + BURST_SECONDS:
            await asyncio.sleep(leaves_at - now)

    async def _land(self) -> None:
        """Hand the pieces to the real stream as they arrive; end when none is under way."""
        loop = asyncio.get_running_loop()
        try:
            while self._flying:
                arrival, piece = self._flying[0]
                if arrival > loop.time():
                    await asyncio.sleep(arrival - loop.time())
                await self._stream.send(piece)
                self._flying.popleft()
                self._flying_bytes -= len(piece)
                self._landed.set()
        except LinkError as error:
            self._fault = error.reason
        finally:
            self._pump = None
            self._landed.set()
            if self._closed or self._fault is not None:
                await self._stream.close()

    async def receive_into(self, buffer: memoryview) -> None:
        """As ports.Stream: the other end's line has shaped these bytes."""
        if self._closed:
            raise LinkError("stream closed", peer=self.peer)
        await self._stream.receive_into(buffer)

    async def close(self) -> None:
        """As ports.Stream; what is under way still arrives."""
        self._closed = True
        self._landed.set()
        if self._pump is None:
            await self._stream.close()


class EmulatedTransport:
    """A transport behind one emulated line (ports.Transport)."""

    def __init__(self, transport: Transport, shape: LinkShape, tasks: asyncio.TaskGroup) -> None:
        self._transport = transport
        self._uplink = Uplink(shape, Random(transport.peer))
        self._tasks = tasks
        self._pumps: set[asyncio.Task[None]] = set()

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self._transport.peer

    def addresses(self) -> tuple[str, ...]:
        """As ports.Transport."""
        return self._transport.addresses()

    async def listen(self, handler: StreamHandler) -> None:
        """As ports.Transport; answers on incoming streams go out by the emulated line."""

        async def shaped(stream: Stream) -> None:
            await handler(EmulatedStream(stream, self._uplink, self._start))

        await self._transport.listen(shaped)

    async def open(self, peer: PeerId) -> Stream:
        """As ports.Transport. Opening costs no round trip: libp2p negotiates lazily."""
        stream = await self._transport.open(peer)
        return EmulatedStream(stream, self._uplink, self._start)

    def close(self) -> None:
        """Drop what is still under way; the transport below closes the streams."""
        for pump in self._pumps:
            pump.cancel()

    def _start(self, pump: Pump) -> asyncio.Task[None]:
        task = self._tasks.create_task(pump)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        return task
