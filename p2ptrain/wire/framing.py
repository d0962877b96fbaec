"""Frames: how a message, and the tensor bytes behind it, lie on a stream.

    +-------+----------+------+-------+---------------+---------------+----------+
    | magic | protocol | kind | flags | message bytes | payload bytes | checksum |  24 bytes
    | p2pt  | u8       | u8   | u16 0 | u32           | u64           | u32      |
    +-------+----------+------+-------+---------------+---------------+----------+
    | message: msgpack, strict                                                   |
    +----------------------------------------------------------------------------+
    | payload: raw bytes, only behind data messages                              |
    +----------------------------------------------------------------------------+

Every length stands before the bytes it counts, so a receiver decides what it is willing to
hold before it holds anything. The checksum (crc32 of message and payload) catches faulty
memory and our own mistakes; libp2p's authenticated encryption keeps strangers out.

Invariants:
    * no function allocates by a length that it has not compared with a bound;
    * whatever the bytes, decoding gives a message or one WireError, and never blocks;
    * a payload is never copied, and summed in pieces, so that the loop can breathe.

Refused: a length prefix inside a general serialiser (the serialiser then decides how much
to allocate), and protobuf of 4 MiB messages (measured 5 to 14 times slower than streams).
"""

from __future__ import annotations

import enum
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple, TypeVar, get_args

import msgspec

from p2ptrain.errors import WireError
from p2ptrain.wire.messages import Control, Data, Handshake

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2ptrain.units import Bytes

    Buffer = bytes | bytearray | memoryview

M = TypeVar("M")

PROTOCOL = 1
"""Raised by whoever changes the meaning of any byte on a stream, from the first release on: until
then there is no other p2ptrain to speak to, and two checkouts that differ part in one line."""

MAGIC = b"p2pt"

_HEADER = struct.Struct(">4sBBHIQI")

HEADER_BYTES = _HEADER.size

PIECE_BYTES = 1 << 20
"""Summing or reading 1 MiB takes about a millisecond: the longest the loop is held."""

HANDSHAKE_BYTES = 4096
"""A handshake is three short strings; a stranger's may cost no more memory than this."""

CONTROL_BYTES = 1 << 20
"""The long ones are StageManifest (34 bytes a leaf: 100 GB of stage in 4 MiB chunks is 0.8 MB,
and at most 128 KiB of SUMs), Nack (about 350 bytes and a bitmap for each of at most a thousand
replicas) and Sum (9 bytes a parameter tensor); 1 MiB holds them all."""

DATA_BYTES = 64 << 10
"""A data message's only list is its path: 54 bytes for each of at most 1024 stages."""


class Kind(enum.IntEnum):
    """What a frame carries; a stream takes handshake frames first, then one kind only."""

    HANDSHAKE = 0
    CONTROL = 1
    DATA = 2


_MOST_BYTES = (HANDSHAKE_BYTES, CONTROL_BYTES, DATA_BYTES)  # by Kind: an Enum's hash is slow
_KINDS: dict[type, Kind] = {
    **dict.fromkeys(get_args(Handshake), Kind.HANDSHAKE),
    **dict.fromkeys(get_args(Control), Kind.CONTROL),
    **dict.fromkeys(get_args(Data), Kind.DATA),
}
_HANDSHAKES: msgspec.msgpack.Decoder[Handshake] = msgspec.msgpack.Decoder(Handshake)
_CONTROLS: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)
_DATAS: msgspec.msgpack.Decoder[Data] = msgspec.msgpack.Decoder(Data)
_ENCODER = msgspec.msgpack.Encoder()


class Header(NamedTuple):
    """What a frame says of itself, its lengths within their bounds.

    A tuple: one is made for every message, and a frozen dataclass takes four times as long.
    """

    kind: Kind
    message_bytes: Bytes
    payload_bytes: Bytes
    checksum: int


def encode(message: Handshake | Control) -> bytes:
    """Return the whole frame of a message that carries no payload.

    Raises:
        ValueError: our own message is longer than a receiver takes.
    """
    body = _ENCODER.encode(message)
    return _head(_KINDS[type(message)], body, 0, zlib.crc32(body)) + body


class DataFrame:
    """A data message on its way out: sum it piece by piece, then send its buffers.

    Call :meth:`advance` until it returns False, giving way to the loop in between, then
    send :attr:`buffers` in order. The payload must not change meanwhile.
    """

    def __init__(self, message: Data, payload: Sequence[Buffer]) -> None:
        self._body = _ENCODER.encode(message)
        self._payload = tuple(memoryview(buffer).cast("B") for buffer in payload)
        self._checksum = zlib.crc32(self._body)
        self._todo = pieces(self._payload)
        self.payload_bytes: Bytes = sum(len(view) for view in self._payload)

    def advance(self) -> bool:
        """Sum at most PIECE_BYTES of the payload; False when nothing is left."""
        piece = next(self._todo, None)
        if piece is None:
            return False
        self._checksum = zlib.crc32(piece, self._checksum)
        return True

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """Header and message in one buffer, then the payload as given.

        Raises:
            ValueError: our own message is longer than a receiver takes.
        """
        head = _head(Kind.DATA, self._body, self.payload_bytes, self._checksum)
        return (head + self._body, *self._payload)

    @property
    def frame_bytes(self) -> Bytes:
        """Length of the whole frame."""
        return HEADER_BYTES + len(self._body) + self.payload_bytes


def encode_data(message: Data, *payload: Buffer) -> tuple[Buffer, ...]:
    """Return the buffers of a data frame at once; for small payloads, see DataFrame."""
    frame = DataFrame(message, payload)
    while frame.advance():
        pass
    return frame.buffers


def pieces(buffers: Sequence[memoryview]) -> Iterator[memoryview]:
    """Cut byte views into consecutive pieces of at most PIECE_BYTES."""
    return (
        view[start : start + PIECE_BYTES]
        for view in buffers
        for start in range(0, len(view), PIECE_BYTES)
    )


def decode_header(head: Buffer, expected: Kind) -> Header:
    """Read a header on a stream where only ``expected`` frames may come.

    Raises:
        WireError: it is no header of ours, or its lengths are beyond their bounds.
    """
    if len(head) != HEADER_BYTES:
        raise WireError(f"a header of {len(head)} bytes instead of {HEADER_BYTES}")
    magic, protocol, kind, flags, message_bytes, payload_bytes, checksum = _HEADER.unpack(head)
    if magic != MAGIC:
        raise WireError("no frame of p2ptrain: the magic bytes are wrong")
    if protocol != PROTOCOL:
        raise WireError(
            f"protocol {protocol} here, protocol {PROTOCOL} there: update the older p2ptrain"
        )
    if kind != expected or flags:
        raise WireError(f"frame of kind {kind}, flags {flags} where kind {expected} must come")
    if message_bytes > _MOST_BYTES[expected]:
        raise WireError(f"a message of {message_bytes} bytes: at most {_MOST_BYTES[expected]}")
    if payload_bytes and expected is not Kind.DATA:
        raise WireError(f"{payload_bytes} bytes of payload where none may come")
    return Header(expected, message_bytes, payload_bytes, checksum)


def decode_handshake(header: Header, body: Buffer) -> Handshake:
    """Check and read the message of a handshake frame.

    Raises:
        WireError: wrong checksum, or no handshake message.
    """
    check_sum(header, zlib.crc32(body))
    return _decode(_HANDSHAKES, body)


def decode_control(header: Header, body: Buffer) -> Control:
    """Check and read the message of a control frame.

    Raises:
        WireError: wrong checksum, or no control message.
    """
    check_sum(header, zlib.crc32(body))
    return _decode(_CONTROLS, body)


def decode_data(body: Buffer) -> Data:
    """Read the message of a data frame; its checksum awaits the payload (``check_sum``).

    Raises:
        WireError: no data message.
    """
    return _decode(_DATAS, body)


def check_sum(header: Header, checksum: int) -> None:
    """Compare the crc32 of what has arrived with what the header promised.

    Raises:
        WireError: they differ.
    """
    if checksum != header.checksum:
        raise WireError("wrong checksum: the frame was damaged on its way")


def _head(kind: Kind, body: bytes, payload_bytes: Bytes, checksum: int) -> bytes:
    if len(body) > _MOST_BYTES[kind]:
        msg = f"a {kind.name.lower()} message of {len(body)} bytes: at most {_MOST_BYTES[kind]}"
        raise ValueError(msg)
    return _HEADER.pack(MAGIC, PROTOCOL, kind, 0, len(body), payload_bytes, checksum)


def _decode(decoder: msgspec.msgpack.Decoder[M], body: Buffer) -> M:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:  # ValidationError is one of them
        raise WireError(f"no message of protocol {PROTOCOL}: {error}") from error
    except UnicodeDecodeError as error:
        raise WireError(f"no message of protocol {PROTOCOL}: text that is no UTF-8") from error
    except RecursionError as error:  # whatever stands before the tag is skipped, level by level
        raise WireError(f"no message of protocol {PROTOCOL}: nested too deep") from error
