import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2ptrain.compute.codecs import CodecContext, codec_named
from p2ptrain.core.sizes import codec_bytes
from p2ptrain.errors import MisbehaviourError
from p2ptrain.run import CodecName
from p2ptrain.units import Slot, Step

CONTEXT = CodecContext(seed=1, step=Step(2), slot=Slot(3), boundary=0, direction="forward")
NAMES: tuple[CodecName, ...] = ("fp32", "bf16")

tensors = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(width=32, allow_nan=False),
).map(torch.from_numpy)


@pytest.mark.parametrize("name", NAMES)
@given(x_rw=tensors)
def test_size_is_exact_and_decoding_is_stable(name: CodecName, x_rw: torch.Tensor) -> None:
    codec = codec_named(name)
    blob = codec.encode(x_rw, CONTEXT)
    assert len(blob) == codec.size_bytes(*x_rw.shape) == codec_bytes(name, *x_rw.shape)
    decoded = codec.decode(blob, *x_rw.shape)
    assert decoded.dtype == torch.float32
    assert codec.encode(decoded, CONTEXT) == blob


@given(x_rw=tensors)
def test_fp32_loses_nothing(x_rw: torch.Tensor) -> None:
    codec = codec_named("fp32")
    assert torch.equal(codec.decode(codec.encode(x_rw, CONTEXT), *x_rw.shape), x_rw)


@given(x_rw=tensors)
def test_bf16_rounds_as_torch_does(x_rw: torch.Tensor) -> None:
    codec = codec_named("bf16")
    decoded = codec.decode(codec.encode(x_rw, CONTEXT), *x_rw.shape)
    assert torch.equal(decoded, x_rw.to(torch.bfloat16).float())


def test_bf16_breaks_ties_to_even() -> None:
    codec = codec_named("bf16")
    x_rw = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]])
    decoded = codec.decode(codec.encode(x_rw, CONTEXT), 1, 3)
    assert decoded.tolist() == [[1.0, 1 + 2**-6, -1.0]]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_arrives_as_such(name: CodecName) -> None:
    codec = codec_named(name)
    x_rw = torch.tensor([[math.inf, -math.inf, math.nan]])
    low, high, odd = codec.decode(codec.encode(x_rw, CONTEXT), 1, 3)[0].tolist()
    assert (low, high) == (math.inf, -math.inf)
    assert math.isnan(odd)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", [-1, 1, 2, 4])
def test_another_size_is_refused(name: CodecName, extra: int) -> None:
    codec = codec_named(name)
    with pytest.raises(MisbehaviourError, match="bytes"):
        codec.decode(bytes(codec.size_bytes(2, 3) + extra), 2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_decoded_tensor_does_not_share_the_receive_buffer(name: CodecName) -> None:
    codec = codec_named(name)
    buffer = bytearray(codec.encode(torch.ones(2, 2), CONTEXT))
    decoded = codec.decode(memoryview(buffer), 2, 2)
    buffer[:] = bytes(len(buffer))
    assert torch.equal(decoded, torch.ones(2, 2))


def test_strided_tensors_encode_by_value() -> None:
    codec = codec_named("bf16")
    x_rw = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(codec.decode(codec.encode(x_rw, CONTEXT), 3, 2), x_rw)
