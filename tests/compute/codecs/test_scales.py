import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.compute.codecs import scales
from p2ptrain.errors import MisbehaviourError

peaks = st.floats(2.0**-100, 2.0**109, width=32)


@given(st.lists(peaks, min_size=1, max_size=9))
def test_a_tokens_scale_is_the_least_eighth_of_an_octave_above_its_peak(found: list[float]) -> None:
    peak_r = torch.tensor(found)
    highest, code_r = scales.token_codes(peak_r)
    scale_r = scales.token_scales(highest, code_r)
    assert bool((scale_r >= peak_r).all())
    exact = scale_r / peak_r < 2 ** (1 / 8) * (1 + 1e-6)
    far_below = peak_r < float(peak_r.max()) * 2.0**-31
    assert bool((exact | far_below).all())


def test_a_power_of_two_is_its_own_scale_and_zero_has_none() -> None:
    highest, code_r = scales.token_codes(torch.tensor([1.0, 0.5, 0.0, 2.0**-60]))
    assert highest == 8 * 127
    assert code_r.tolist() == [255, 247, 0, 1]
    assert scales.token_scales(highest, code_r).tolist()[:3] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("highest", [scales.LEAST_LEVEL - 1, scales.MOST_LEVEL + 1, 0, 0xFFFE])
def test_a_level_that_no_encoder_writes_is_refused(highest: int) -> None:
    with pytest.raises(MisbehaviourError, match="level"):
        scales.token_scales(highest, torch.tensor([255], dtype=torch.uint8))


def test_a_token_below_the_least_level_is_refused() -> None:
    code_r = torch.tensor([0, 254], dtype=torch.uint8)
    with pytest.raises(MisbehaviourError, match="below"):
        scales.token_scales(scales.LEAST_LEVEL, code_r)


@given(st.lists(st.just(0.0) | peaks, min_size=1, max_size=9))
def test_a_blocks_scale_is_the_least_bf16_above_its_peak(found: list[float]) -> None:
    peak_n = torch.tensor(found)
    scale_n = scales.block_scales(peak_n)
    assert bool((scale_n.float() >= peak_n).all())
    assert bool((scale_n.float() <= peak_n * (1 + 2**-7)).all())
    assert torch.equal(scales.checked_block_scales(scale_n), scale_n.float())


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 2.0**111])
def test_scales_and_means_that_no_encoder_writes_are_refused(value: float) -> None:
    with pytest.raises(MisbehaviourError, match="scale"):
        scales.checked_block_scales(torch.tensor([1.0, value], dtype=torch.bfloat16))
    if value != -1.0:
        with pytest.raises(MisbehaviourError, match="mean"):
            scales.checked_means(torch.tensor([1.0, value], dtype=torch.bfloat16))
