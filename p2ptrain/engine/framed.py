"""Frames over a stream: the reading and writing loops of one channel.

Each function here works on one stream and raises at the first thing that is wrong; who owns
the stream closes it. Nothing here knows links or peers' states.

Invariants: a payload is allocated only after its declared size equals the exact one; the
loop is given way after every PIECE_BYTES that are read, summed or written.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING

from p2ptrain.errors import LinkError, WireError
from p2ptrain.wire import framing
from p2ptrain.wire.framing import HEADER_BYTES, PIECE_BYTES, DataFrame, Kind
from p2ptrain.wire.messages import Hello, Refused, Welcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.ports import Buffer, Stream
    from p2ptrain.units import Bytes
    from p2ptrain.wire.limits import FrameLimits
    from p2ptrain.wire.messages import Control, Data, Handshake

SHORT_BYTES = 4096
"""Messages of a usual size are read without a timer: two beats fill up whatever was promised."""

LONG_SECONDS = 20.0
"""For the body of a longer one: 1 MiB, the longest, at 0.4 Mbit/s."""


class RefusedByPeerError(LinkError):
    """The peer answered our Hello with a refusal; ``reason`` is its line."""


async def greet(stream: Stream, hello: Hello, limits: FrameLimits) -> Welcome:
    """Say hello on a stream that we opened, and return the peer's welcome.

    Raises:
        RefusedByPeerError: the peer does not take us.
        WireError: it answered with something else.
        LinkError: the stream broke.
    """
    await stream.send(framing.encode(hello))
    answer = await _read_handshake(stream)
    limits.check(answer)
    match answer:
        case Welcome():
            return answer
        case Refused(reason=reason):
            raise RefusedByPeerError(reason, peer=stream.peer)
        case Hello():
            raise WireError("answered our Hello with another", peer=stream.peer)


async def read_hello(stream: Stream, limits: FrameLimits) -> Hello:
    """Return the Hello with which a peer opened ``stream``.

    Raises:
        WireError: it began with something else.
        LinkError: the stream broke.
    """
    message = await _read_handshake(stream)
    limits.check(message)
    if not isinstance(message, Hello):
        raise WireError(f"began a stream with {type(message).__name__}", peer=stream.peer)
    return message


async def receive_control(
    stream: Stream, limits: FrameLimits, deliver: Callable[[Control], None]
) -> None:
    """Deliver control messages until the stream breaks; never returns.

    Raises:
        WireError: bytes or values that cannot be.
        LinkError: the stream ended.
    """
    head = bytearray(HEADER_BYTES)
    view = memoryview(head)
    while True:
        await stream.receive_into(view)
        header = framing.decode_header(head, Kind.CONTROL)
        if header.message_bytes <= SHORT_BYTES:
            body = bytearray(header.message_bytes)
            await stream.receive_into(memoryview(body))
        else:
            body = await _read_body(stream, header.message_bytes)
        message = framing.decode_control(header, body)
        limits.check(message)
        deliver(message)


async def receive_data(
    stream: Stream, limits: FrameLimits, deliver: Callable[[Data, memoryview], None]
) -> None:
    """Deliver data messages, each with a payload of its own, until the stream breaks.

    Raises:
        WireError: bytes, values or sizes that cannot be.
        LinkError: the stream ended.
    """
    head = bytearray(HEADER_BYTES)
    while True:
        await stream.receive_into(memoryview(head))
        header = framing.decode_header(head, Kind.DATA)
        body = await _read_body(stream, header.message_bytes)
        message = framing.decode_data(body)
        limits.admits(message, header.payload_bytes)
        payload = memoryview(bytearray(header.payload_bytes))
        checksum = zlib.crc32(body)
        for piece in framing.pieces((payload,)):
            await stream.receive_into(piece)
            checksum = zlib.crc32(piece, checksum)
        framing.check_sum(header, checksum)
        deliver(message, payload)


async def send_data(stream: Stream, message: Data, payload: Sequence[Buffer]) -> Bytes:
    """Send one data frame; return its length. Cancelled, an unknown prefix has gone out.

    Raises:
        LinkError: the stream broke.
    """
    frame = DataFrame(message, payload)
    while frame.advance():
        if frame.payload_bytes > PIECE_BYTES:
            await asyncio.sleep(0)  # the heartbeat must not wait for a long sum
    await stream.send(*frame.buffers)
    return frame.frame_bytes


async def _read_body(stream: Stream, size_bytes: Bytes) -> bytearray:
    """The message behind a header.

    A damaged length is noticed by the checksum, but only once so much has come: meanwhile it
    would swallow whatever follows, and the peer would look silent on a link that is up.
    """
    body = bytearray(size_bytes)
    if size_bytes <= SHORT_BYTES:
        await stream.receive_into(memoryview(body))
        return body
    try:
        async with asyncio.timeout(LONG_SECONDS):
            await stream.receive_into(memoryview(body))
    except TimeoutError:
        line = f"a message of {size_bytes} bytes did not come to its end"
        raise WireError(line, peer=stream.peer) from None
    return body


async def _read_handshake(stream: Stream) -> Handshake:
    head = bytearray(HEADER_BYTES)
    await stream.receive_into(memoryview(head))
    header = framing.decode_header(head, Kind.HANDSHAKE)
    body = bytearray(header.message_bytes)
    await stream.receive_into(memoryview(body))
    return framing.decode_handshake(header, body)
