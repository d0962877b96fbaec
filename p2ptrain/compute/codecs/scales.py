"""Scales: how large the values of a token or a block are, in one or two bytes.

Token scales are logarithmic, by eighths of an octave, rounded up so that nothing is ever clipped.
They are found on the bits of the float: eight times the exponent, and the count of the mantissa's
eighths passed. That is integer arithmetic, the same everywhere, where a logarithm is not.

    message   u16 highest level L; 0xFFFF: the message was not finite
    token     u8 code: 0 = a token of zeros; c = level L - 255 + c, so 32 octaves

A token that is smaller than that takes the lowest level: its values round to zero, or, with
noise, to the right mean. Block scales are bf16, rounded up.

Invariants: a level read from the wire lies in LEAST_LEVEL..MOST_LEVEL, or is refused; so what is
decoded is finite, whatever the bytes.

Refused: one fixed range of levels for all messages. Gradients are ten orders of magnitude
smaller than activations, and both drift over a run.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from p2ptrain.errors import MisbehaviourError

LARGEST = 2.0**100
"""Values beyond 1.3e30 count as not finite: nothing that is computed with them would be."""

LARGEST_ROTATED = 2.0**109
"""The same behind a mean and a rotation of 65,536 channels."""

LEAST_LEVEL = 8 * (127 - 100)
"""Of 2^-100, about 1e-30: what is smaller rounds to zero."""

MOST_LEVEL = 8 * (127 + 110)
"""Of 2^110, with room above LARGEST_ROTATED for the rounding up."""

CODES = 255
"""Of a token's level, beside the 0 of a token of zeros."""

SPOILT = 0xFFFF
"""Instead of the highest level: nothing but zeros follows, and every value is NaN."""

_MANTISSA_BITS, _MANTISSA_MASK = 23, (1 << 23) - 1


def levels(peak_r: Tensor) -> Tensor:
    """The least level whose scale is not below each peak (finite, not negative), as int32."""
    bits_r = peak_r.view(torch.int32)
    eighths_r = torch.bucketize(bits_r & _MANTISSA_MASK, _eighths(peak_r.device), out_int32=True)
    return ((bits_r >> _MANTISSA_BITS) * 8 + eighths_r).clamp_(min=LEAST_LEVEL)


def token_codes(peak_r: Tensor) -> tuple[int, Tensor]:
    """The message's highest level, and a code (uint8) for every token."""
    level_r = levels(peak_r)
    highest = int(level_r.max())
    code_r = (level_r - (highest - CODES)).clamp_(min=1)
    return highest, (code_r * (peak_r > 0)).to(torch.uint8)


def token_scales(highest: int, code_r: Tensor) -> Tensor:
    """The scales (float32) that codes stand for.

    Raises:
        MisbehaviourError: no encoder writes such a level.
    """
    if not LEAST_LEVEL <= highest <= MOST_LEVEL:
        raise MisbehaviourError(f"a scale of level {highest}, not {LEAST_LEVEL} to {MOST_LEVEL}")
    level_r = code_r.to(torch.int32) + (highest - CODES)
    zero_r = code_r == 0
    if bool(((level_r < LEAST_LEVEL) & ~zero_r).any()):
        raise MisbehaviourError("a scale below the least that any encoder writes")
    scale_r = _table(code_r.device)[(level_r - LEAST_LEVEL).clamp_(min=0)]
    return scale_r.masked_fill_(zero_r, 0.0)


def block_scales(peak_n: Tensor) -> Tensor:
    """The least bf16 that is not below each peak, and no smaller than 2^-100 unless it is zero."""
    low_n = peak_n.clamp(min=2.0**-100) * (peak_n > 0)
    bits_n = low_n.view(torch.int32)
    return (((bits_n + 0xFFFF) >> 16).to(torch.int16)).view(torch.bfloat16)


def checked_block_scales(scale_n: Tensor) -> Tensor:
    """Scales read from the wire, as float32.

    Raises:
        MisbehaviourError: one is negative, not finite or beyond what any encoder writes.
    """
    scale_n = scale_n.float()
    low, high = torch.aminmax(scale_n)
    if not (low >= 0 and high <= 2.0**110):
        raise MisbehaviourError("a block's scale that no encoder writes")
    return scale_n


def checked_means(mean_k: Tensor) -> Tensor:
    """Channel means read from the wire, as float32.

    Raises:
        MisbehaviourError: one is not finite or beyond what any encoder writes.
    """
    mean_k = mean_k.float()
    if not mean_k.abs().amax() <= LARGEST:
        raise MisbehaviourError("a channel mean that no encoder writes")
    return mean_k


@functools.cache
def _eighths(device: torch.device) -> Tensor:
    """Mantissas of 2^(0/8) .. 2^(7/8): how many are passed is how many eighths."""
    scale_8 = torch.tensor([2.0 ** (eighth / 8) for eighth in range(8)])
    return (scale_8.view(torch.int32) & _MANTISSA_MASK).to(device)


@functools.cache
def _table(device: torch.device) -> Tensor:
    """The scale of every level from LEAST_LEVEL to MOST_LEVEL: bits of floats, no power taken."""
    level = torch.arange(LEAST_LEVEL, MOST_LEVEL + 1, dtype=torch.int32)
    bits = ((level // 8) << _MANTISSA_BITS) | _eighths(torch.device("cpu"))[(level % 8).long()]
    return bits.view(torch.float32).to(device)
