"""Which codec stands at a boundary, and that its bytes are those that the sizes promise."""

import pytest
import torch

from p2ptrain.compute.codecs import BFloat16Codec, CodecContext, Float32Codec, codec_at
from p2ptrain.compute.codecs.contract import check_size
from p2ptrain.core.sizes import Direction, boundary_bytes
from p2ptrain.errors import MisbehaviourError
from p2ptrain.run import Batch, Codec, Composition, Model, RunSpec
from p2ptrain.run.codecs import composition_of
from p2ptrain.units import Slot, Step

WARMING = Composition(name="warming", forward=((0, 32), (5, 16)), backward=((0, 16),))
SPEC = RunSpec(
    model=Model(d_model=8, context=4),
    batch=Batch(sequences=2),
    codec=Codec(name="warming", compositions=(WARMING,)),
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
    assert len(codec.encode(torch.ones(8, 8), context)) == boundary_bytes(SPEC, 1, direction, step)


@pytest.mark.parametrize("given", [b"", b"12", b"1234"])
def test_another_size_is_refused(given: bytes) -> None:
    check_size(memoryview(b"123"), 3)
    with pytest.raises(MisbehaviourError, match="not 3"):
        check_size(given, 3)
