"""Frames survive the way, and nothing else gets in."""

import struct
import zlib

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.core.agreement import Ballot, Position, Tallies
from p2ptrain.errors import WireError
from p2ptrain.run import frames
from p2ptrain.units import Chain, Digest, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire.framing import DataFrame, Kind
from p2ptrain.wire.messages import (
    Control,
    Forward,
    Gradient,
    Hello,
    Leaving,
    Part,
    Refused,
    Welcome,
)

CHAIN = Chain(bytes(32))
AT = Position(epoch=0, step=Step(3), chain=CHAIN)
FORWARD = Forward(
    at=AT, slot=Slot(1), stage=Stage(1), attempt=0, replay=False, path=(PeerId("ann"),)
)


def header_of(frame: bytes, kind: Kind) -> framing.Header:
    return framing.decode_header(frame[: framing.HEADER_BYTES], kind)


def reframe(body: bytes, kind: Kind, payload_bytes: int = 0) -> bytes:
    head = struct.pack(">4sBBHIQI", b"p2pt", 1, kind, 0, len(body), payload_bytes, zlib.crc32(body))
    return head + body


def read_control(frame: bytes) -> Control:
    return framing.decode_control(
        header_of(frame, Kind.CONTROL), memoryview(frame)[framing.HEADER_BYTES :]
    )


# Every control message that the schema allows; the round trip needs no list of our own.
ids = st.integers(0, 2**31)
texts = st.text(max_size=20)
positions = st.builds(
    Position, epoch=ids, step=ids, chain=st.binary(min_size=32, max_size=32).map(Chain)
)
ballots = st.builds(Ballot, round=ids, rank=ids, digest=st.binary(max_size=32).map(Digest))
st.register_type_strategy(Position, positions)
st.register_type_strategy(Ballot, ballots)
st.register_type_strategy(int, st.integers(-(2**63), 2**63 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(
    Tallies,
    st.builds(Tallies, loss=ids, tokens=ids, val_loss=ids, val_tokens=ids, poisoned=ids),
)


@settings(max_examples=150, deadline=None)
@given(st.from_type(Control))
def test_control_messages_survive(message: Control) -> None:
    assert read_control(framing.encode(message)) == message


def test_handshake_messages_survive() -> None:
    for message in (
        Hello(protocol=1, run=RunId("r"), channel="data", incarnation=7, arithmetic="cpu"),
        Welcome(incarnation=3),
        Refused(reason="no"),
    ):
        frame = framing.encode(message)
        header = header_of(frame, Kind.HANDSHAKE)
        assert framing.decode_handshake(header, frame[framing.HEADER_BYTES :]) == message


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=4))
def test_data_frames_carry_their_payload_uncopied(payload: list[bytes]) -> None:
    head, *buffers = framing.encode_data(FORWARD, *payload)
    assert [memoryview(given).obj for given in buffers] == payload
    header = framing.decode_header(bytes(head[: framing.HEADER_BYTES]), Kind.DATA)
    body = bytes(head[framing.HEADER_BYTES :])
    assert framing.decode_data(body) == FORWARD
    assert header.payload_bytes == sum(map(len, payload))
    framing.check_sum(header, zlib.crc32(body + b"".join(payload)))


def test_a_long_payload_is_summed_in_pieces() -> None:
    payload = bytes(3 * framing.PIECE_BYTES + 1)
    part = Part(
        at=AT,
        stage=Stage(0),
        ballot=Ballot(round=0, rank=0, digest=Digest(bytes(32))),
        what="own",
        start=0,
        stop=9,
    )
    frame = framing.DataFrame(part, (payload,))
    steps = 0
    while frame.advance():
        steps += 1
    assert steps == 4
    assert sum(map(len, frame.buffers)) == frame.frame_bytes
    assert frame.buffers == framing.encode_data(part, payload)


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, b"HTTP", "magic"),
        (4, b"\x02", "protocol 2 here, protocol 1 there"),
        (5, b"\x02", "kind 2"),
        (5, b"\x09", "kind 9"),
        (6, b"\x00\x01", "flags 1"),
        (8, b"\xff\xff\xff\xff", "at most"),
        (12, b"\x00\x00\x00\x00\x00\x00\x00\x01", "payload where none"),
        (20, b"\x00\x00\x00\x00", "checksum"),
        (30, b"!", "checksum"),
    ],
)
def test_damage_is_refused_with_its_reason(offset: int, value: bytes, reason: str) -> None:
    frame = bytearray(framing.encode(Leaving(reason="done")))
    frame[offset : offset + len(value)] = value
    with pytest.raises(WireError, match=reason):
        read_control(bytes(frame))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "Nonsense"}),
        msgspec.msgpack.encode({"type": "Leaving", "reason": 3}),
        msgspec.msgpack.encode({"type": "Leaving", "reason": "x", "more": 1}),
        msgspec.msgpack.encode({"type": "Leaving"}),
        msgspec.msgpack.encode({"type": "Leaving", "reason": "x"}) + b"x",
        b"\x82\xa4type\xa7Leaving\xa6reason\xa2\xff\xfe",
        b"\x82\xa4type\xa7Leaving\xa6reason\xdb\xff\xff\xff\xff",
        b"\x82\xa4type\xa7Leaving\xa1x" + b"\x91" * 10_000,
        b"\x82\xa1x" + b"\x91" * 10_000 + b"\xc0\xa4type\xa7Leaving",  # skipped to find the tag
        b"\x83\xa4type\xa8WantSums\xa2at\x93\x00\x01\xc4\x01x\xa6stages\xdd\xff\xff\xff\xff\x01",
    ],
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        read_control(reframe(body, Kind.CONTROL))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_a_message_or_one_wire_error(noise: bytes) -> None:
    for attempt in (noise, reframe(noise, Kind.CONTROL)):
        try:
            read_control(attempt)
        except WireError as error:
            assert error.reason  # noqa: PT017 - either outcome is allowed, no third
    with pytest.raises(WireError):
        framing.decode_header(noise[:24], Kind.DATA)


def test_our_own_oversized_message_is_our_error() -> None:
    with pytest.raises(ValueError, match="at most"):
        framing.encode(Refused(reason="x" * framing.HANDSHAKE_BYTES))


@pytest.mark.parametrize(("least", "most"), [(0, 0), (2**62, 2**31)])
def test_frames_are_no_longer_than_a_codec_was_sized_for(least: int, most: int) -> None:
    """The longest numbers reach the bound; small ones stay within 30 bytes of it."""
    at = Position(epoch=least, step=Step(most), chain=Chain(bytes(32)))
    gradient = Gradient(at=at, slot=Slot(8191 if most else 0), stage=Stage(1023))
    assert 0 <= frames.GRADIENT_FRAME_BYTES - DataFrame(gradient, ()).frame_bytes <= 30
    for stage in (1, 3, 1023):
        forward = Forward(
            at=at,
            slot=gradient.slot,
            stage=Stage(stage),
            attempt=least,
            replay=False,
            path=(PeerId("1" * 52),) * stage,
        )
        bound = frames.FORWARD_FRAME_BYTES + stage * frames.PATH_PEER_BYTES
        assert 0 <= bound - DataFrame(forward, ()).frame_bytes <= 30
