"""Which codec stands at a boundary, and that its bytes are those that the sizes promise."""

import math

import msgspec
import pytest
import torch

from p2ptrain import run
from p2ptrain.compute.codecs import (
    BFloat16Codec,
    Codec,
    CodecContext,
    Float32Codec,
    codec_at,
    decoded,
    encoded,
)
from p2ptrain.compute.codecs.contract import check_size
from p2ptrain.core.sizes import Direction, boundary_bytes
from p2ptrain.errors import MisbehaviourError
from p2ptrain.run import Batch, Bits, Composition, Model, RunSpec
from p2ptrain.run.codecs import composition_of
from p2ptrain.units import Slot, Step

CPU = torch.device("cpu")
WARMING = Composition(name="warming", forward=((0, 32), (5, 16)), backward=((0, 16),))
SPEC = RunSpec(
    model=Model(d_model=8, context=4),
    batch=Batch(sequences=2),
    codec=run.Codec(name="warming", compositions=(WARMING,)),
)


@pytest.mark.parametrize(
    ("direction", "step", "kind"),
    [
        ("forward", 0, Float32Codec),
        ("forward", 4, Float32Codec),
        ("forward", 5, BFloat16Codec),
        ("forward", 99, BFloat16Codec),
        ("backward", 0, BFloat16Codec),
    ],
)
def test_bits_follow_the_schedule_and_sizes_follow_the_bits(
    direction: Direction, step: int, kind: type
) -> None:
    codec = codec_at(composition_of(SPEC, 1), direction, step)
    assert isinstance(codec, kind)
    context = CodecContext(seed=0, step=Step(step), slot=Slot(0), boundary=1, direction=direction)
    size = boundary_bytes(SPEC, 1, direction, step)
    assert len(encoded(codec, torch.ones(8, 8), context)) == codec.encoded_bytes(8, 8) == size


def codec_of(composition: Composition, bits: Bits) -> Codec:
    levels = ((0, bits),)
    whole = msgspec.structs.replace(composition, forward=levels, backward=levels)
    return codec_at(whole, "backward", 0)


BITS = pytest.mark.parametrize("bits", [32, 16, 8, 4, 3, 2])
SHAPES = pytest.mark.parametrize("rows", [48, 5])  # of 16 values: whole blocks, and a broken one


@BITS
@SHAPES
def test_every_byte_is_written_whatever_the_buffer_held(
    composition: Composition, bits: Bits, rows: int, x_rk: torch.Tensor, backward: CodecContext
) -> None:
    codec, x_rk = codec_of(composition, bits), x_rk[:rows]
    frame = encoded(codec, x_rk, backward)
    assert frame.readonly
    for spoilt in (False, True):
        if spoilt:
            x_rk = x_rk * math.nan
            frame = encoded(codec, x_rk, backward)
        for held in (0, 0x55, 0xFF):
            out = torch.full((len(frame),), held, dtype=torch.uint8)
            codec.encode_into(x_rk, backward, out)
            assert out.numpy().tobytes() == frame


@BITS
@SHAPES
def test_a_tensor_is_decoded_into_again_and_again_from_any_address(
    composition: Composition, bits: Bits, rows: int, x_rk: torch.Tensor, backward: CodecContext
) -> None:
    codec = codec_of(composition, bits)
    out_rk = torch.full((rows, 16), math.nan)
    address = out_rk.data_ptr()
    for index, before in enumerate((b"", b"x", bytearray(b""), bytearray(b"two"))):
        frame = encoded(codec, (-1) ** index * x_rk[:rows], backward)
        payload = memoryview(before + frame)[len(before) :]
        codec.decode_into(payload, out_rk)
        assert torch.equal(out_rk, decoded(codec, frame, rows, 16, CPU))
        assert payload == frame
    assert out_rk.data_ptr() == address


@BITS
def test_another_size_leaves_the_tensor_alone(composition: Composition, bits: Bits) -> None:
    codec, out_rk = codec_of(composition, bits), torch.ones(5, 16)
    size = codec.encoded_bytes(5, 16)
    for given in (0, size - 1, size + 1):
        with pytest.raises(MisbehaviourError, match="bytes"):
            codec.decode_into(bytes(given), out_rk)
        assert bool((out_rk == 1).all())


@pytest.mark.parametrize("given", [b"", b"12", b"1234"])
def test_another_size_is_refused(given: bytes) -> None:
    check_size(memoryview(b"123"), 3)
    with pytest.raises(MisbehaviourError, match="not 3"):
        check_size(given, 3)
