import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2ptrain.compute.codecs import (
    BFloat16Codec,
    Codec,
    CodecContext,
    Float32Codec,
    decoded,
    encoded,
)
from p2ptrain.errors import MisbehaviourError
from p2ptrain.units import Slot, Step

CONTEXT = CodecContext(seed=1, step=Step(2), slot=Slot(3), boundary=0, direction="forward")
CPU = torch.device("cpu")
EXAMPLES = 10_000
FP32, BF16 = Float32Codec(), BFloat16Codec()
CODECS = pytest.mark.parametrize(("codec", "value_bytes"), [(FP32, 4), (BF16, 2)])

tensors = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(width=32, allow_nan=False),
).map(torch.from_numpy)


def there_and_back(codec: Codec, x_rk: torch.Tensor) -> torch.Tensor:
    rows, width = x_rk.shape
    return decoded(codec, encoded(codec, x_rk, CONTEXT), rows, width, CPU)


@CODECS
@given(x_rk=tensors)
def test_size_is_exact_and_decoding_is_stable(
    codec: Codec, value_bytes: int, x_rk: torch.Tensor
) -> None:
    blob = encoded(codec, x_rk, CONTEXT)
    assert len(blob) == value_bytes * x_rk.numel()
    there_rk = decoded(codec, blob, *x_rk.shape, CPU)
    assert there_rk.dtype == torch.float32
    assert encoded(codec, there_rk, CONTEXT) == blob


@given(x_rk=tensors)
def test_fp32_loses_nothing(x_rk: torch.Tensor) -> None:
    assert torch.equal(there_and_back(FP32, x_rk), x_rk)


@given(x_rk=tensors)
def test_bf16_rounds_as_torch_does(x_rk: torch.Tensor) -> None:
    assert torch.equal(there_and_back(BF16, x_rk), x_rk.to(torch.bfloat16).float())


def test_bf16_breaks_ties_to_even() -> None:
    x_rk = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]])
    assert there_and_back(BF16, x_rk).tolist() == [[1.0, 1 + 2**-6, -1.0]]


@CODECS
def test_what_is_not_finite_arrives_as_such(codec: Codec, value_bytes: int) -> None:
    x_rk = torch.tensor([[math.inf, -math.inf, math.nan]])
    low, high, odd = there_and_back(codec, x_rk)[0].tolist()
    assert (low, high) == (math.inf, -math.inf)
    assert math.isnan(odd)


@CODECS
@pytest.mark.parametrize("extra", [-1, 1, 2, 4])
def test_another_size_is_refused(codec: Codec, value_bytes: int, extra: int) -> None:
    with pytest.raises(MisbehaviourError, match="bytes"):
        decoded(codec, bytes(6 * value_bytes + extra), 2, 3, CPU)


@CODECS
def test_any_bytes_are_refused_or_are_the_numbers_that_they_stand_for(
    codec: Codec, value_bytes: int
) -> None:
    """NaN and infinities among them: a stage must see what is spoilt."""
    rng, refused, spoilt = random.Random(value_bytes), 0, 0
    honest = encoded(codec, torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), CONTEXT)
    low = bytes(4 - value_bytes)
    for _ in range(EXAMPLES):
        blob = bytearray(honest)
        match rng.randrange(4):
            case 0:
                blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
            case 1:
                del blob[rng.randrange(len(blob)) :]
            case 2:
                blob += rng.randbytes(rng.randint(1, 8))
            case _:
                blob[:] = rng.randbytes(len(blob))
        try:
            there_rk = decoded(codec, blob, 4, 16, CPU)
        except MisbehaviourError:
            refused += 1
            continue
        assert there_rk.shape == (4, 16)
        values = (blob[at : at + value_bytes] for at in range(0, len(blob), value_bytes))
        assert there_rk.numpy().tobytes() == b"".join(low + value for value in values)
        spoilt += not bool(torch.isfinite(there_rk).all())
    assert 0.4 * EXAMPLES < refused < 0.6 * EXAMPLES
    assert spoilt > 0.02 * EXAMPLES


@CODECS
def test_a_decoded_tensor_does_not_share_the_receive_buffer(codec: Codec, value_bytes: int) -> None:
    buffer = bytearray(encoded(codec, torch.ones(2, 2), CONTEXT))
    there_rk = decoded(codec, memoryview(buffer), 2, 2, CPU)
    buffer[:] = bytes(len(buffer))
    assert torch.equal(there_rk, torch.ones(2, 2))


def test_strided_tensors_encode_by_value() -> None:
    x_rk = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(there_and_back(BF16, x_rk), x_rk)
