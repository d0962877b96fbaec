"""What waits in front of a link's two outgoing streams.

    ControlLane   bounded in bytes; ``post`` never blocks and says when the bound is hit
    DataLane      the caller waits; one frame at a time, first come first served

Invariants:
    * control frames go out whole and in order, small ones joined into one write;
    * a data frame's future is done when the stream has taken all of it, and fails when the
      lane is closed: nobody waits for ever on a link that has ended;
    * the lane holds references to a caller's buffers, never copies.

Refused: a bounded queue of data frames that callers put into and forget. The bound would
be in frames of very unequal size, and the caller would not learn what went out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from p2ptrain.engine import framed
from p2ptrain.errors import LinkError
from p2ptrain.observe.events import FrameSent
from p2ptrain.units import Slot, Stage, Step
from p2ptrain.wire.messages import Chunk, CorpusChunk, Deposit, Forward, Gradient, Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.observe.events import Emit
    from p2ptrain.ports import Buffer, Stream
    from p2ptrain.units import Bytes, PeerId
    from p2ptrain.wire.limits import FrameLimits
    from p2ptrain.wire.messages import Data

BATCH_BYTES = 64 << 10
"""Small frames joined into one write: saves system calls, delays nobody."""

_WHAT: dict[type[Data], Literal["forward", "gradient", "part", "deposit", "chunk", "corpus"]] = {
    Forward: "forward",
    Gradient: "gradient",
    Part: "part",
    Deposit: "deposit",
    Chunk: "chunk",
    CorpusChunk: "corpus",
}


class ControlLane:
    """Encoded control frames on their way out."""

    def __init__(self, bound_bytes: Bytes) -> None:
        self.sent_bytes: Bytes = 0
        self._bound_bytes = bound_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._writer: asyncio.Future[None] | None = None  # while it waits for a frame
        self._empty = asyncio.Event()
        self._empty.set()

    def post(self, frame: bytes) -> bool:
        """Queue a frame; False when it does not fit any more (nothing is queued then)."""
        if self._bytes + len(frame) > self._bound_bytes:
            return False
        self._frames.append(frame)
        self._bytes += len(frame)
        self._empty.clear()
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        return True

    async def drained(self) -> None:
        """Return when everything posted has been written, or dropped by ``close``."""
        await self._empty.wait()

    async def write(self, stream: Stream) -> NoReturn:
        """Write what is posted, for ever. Cancelled, an unknown prefix has gone out.

        Raises:
            LinkError: the stream broke.
        """
        loop = asyncio.get_running_loop()
        while True:
            if not self._frames:
                self._writer = loop.create_future()
                await self._writer
            while self._frames:
                batch = self._take_batch()
                await stream.send(batch)
                self.sent_bytes += len(batch)
                self._bytes -= len(batch)
            self._empty.set()

    def close(self) -> None:
        """Drop what waits: control messages are never promised."""
        self._frames.clear()
        self._bytes = 0
        self._empty.set()

    def _take_batch(self) -> bytes:
        if len(self._frames) == 1:  # as most often
            return self._frames.popleft()
        frames = [self._frames.popleft()]
        size = len(frames[0])
        while self._frames and size + len(self._frames[0]) <= BATCH_BYTES:
            frames.append(self._frames.popleft())
            size += len(frames[-1])
        return b"".join(frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    message: Data
    payload: Sequence[Buffer]
    size_bytes: Bytes
    sent: asyncio.Future[None]


class DataLane:
    """Data frames whose callers wait."""

    def __init__(self, peer: PeerId, limits: FrameLimits, emit: Emit) -> None:
        self.queued_bytes: Bytes = 0
        self._peer = peer
        self._limits = limits
        self._emit = emit
        self._waiting: deque[_Outgoing] = deque()
        self._wake = asyncio.Event()
        self._closed: str | None = None

    def submit(self, message: Data, payload: Sequence[Buffer]) -> asyncio.Future[None]:
        """Queue a frame; the future is done when it has been written whole.

        Cancelling the future withdraws a frame that has not begun; one that has is
        finished, and needs its buffers unchanged until then.
        """
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            sent.set_exception(LinkError(self._closed, peer=self._peer))
            return sent
        size = sum(memoryview(buffer).nbytes for buffer in payload)
        self._waiting.append(
            _Outgoing(message=message, payload=payload, size_bytes=size, sent=sent)
        )
        self.queued_bytes += size
        self._wake.set()
        return sent

    async def wait(self) -> None:
        """Return when the first frame waits: only then is a stream worth opening."""
        await self._wake.wait()

    async def write(self, stream: Stream) -> NoReturn:
        """Write what is submitted, for ever. Cancelled, an unknown prefix has gone out.

        Raises:
            LinkError: the stream broke.
        """
        while True:
            while self._waiting:
                outgoing = self._waiting[0]
                if not outgoing.sent.cancelled():
                    frame_bytes = await framed.send_data(stream, outgoing.message, outgoing.payload)
                    if not outgoing.sent.done():
                        outgoing.sent.set_result(None)
                    self._emit(self._sent_event(outgoing, frame_bytes))
                self._waiting.popleft()
                self.queued_bytes -= outgoing.size_bytes
            self._wake.clear()
            await self._wake.wait()

    def close(self, reason: str) -> None:
        """Fail every frame that waits, and all that come."""
        self._closed = reason
        for outgoing in self._waiting:
            if not outgoing.sent.done():
                outgoing.sent.set_exception(LinkError(reason, peer=self._peer))
        self._waiting.clear()
        self.queued_bytes = 0

    def _sent_event(self, outgoing: _Outgoing, frame_bytes: Bytes) -> FrameSent:
        message = outgoing.message
        bound = None if isinstance(message, Chunk | CorpusChunk) else message.at
        return FrameSent(
            what=_WHAT[type(message)],
            peer=self._peer,
            stage=Stage(0) if isinstance(message, CorpusChunk) else message.stage,
            step=Step(-1) if bound is None else bound.step,
            slot=message.slot if isinstance(message, Forward | Gradient) else Slot(-1),
            frame_bytes=frame_bytes,
            tensor_bytes=self._limits.tensor_bytes(message, outgoing.size_bytes),
            replay=isinstance(message, Forward) and message.replay,
        )
