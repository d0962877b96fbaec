"""Integers of 8, 4, 3 or 2 bits, side by side in bytes.

Eight codes, a byte each, are read as one 64-bit word and drawn together in three rounds: bytes
to pairs, pairs to fours, fours to eight; the word then ends after ``bits`` bytes. Code i of
eight stands in bits i x ``bits`` onwards, little-endian. The way back is the same, backwards.

    00000dcba  ->  shift by s, 2s, 4s (s = 8 - bits), masking what was moved away

Invariants: whatever the bytes, unpacking gives codes below 2^bits; a last group that is not full is
filled with zeros.

Refused: a shift for every place of a byte (strided reads of single bytes, eight times slower).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

GROUP = 8
"""Codes in a word."""

_WORDS: dict[int, torch.dtype] = {4: torch.int32, 2: torch.int16}
"""What is left of a word, where that is a type; of 3 bits three bytes are left."""


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes that so many codes take."""
    return -(-codes * bits // 8)


def pack(codes: Tensor, bits: int, out: Tensor) -> None:
    """Write codes (flat uint8, each below 2^bits) to ``out`` (flat uint8, of exact size)."""
    if bits == GROUP:
        out.copy_(codes)
        return
    whole = codes.numel() // GROUP * GROUP
    out_whole = out[: whole * bits // GROUP]
    words = _gathered(codes[:whole].view(torch.int64), bits)
    if bits in _WORDS:
        out_whole.copy_(words.to(_WORDS[bits]).view(torch.uint8))
    else:
        out_whole.view(-1, bits).copy_(words.view(torch.uint8).view(-1, GROUP)[:, :bits])
    if whole < codes.numel():
        last = codes.new_zeros(GROUP)
        last[: codes.numel() - whole] = codes[whole:]
        rest = _gathered(last.view(torch.int64), bits).view(torch.uint8)
        out[len(out_whole) :].copy_(rest[: out.numel() - len(out_whole)])


def unpack(packed: Tensor, bits: int, codes: int) -> Tensor:
    """So many codes (flat uint8) from ``packed`` (flat uint8, of exact size)."""
    if bits == GROUP:
        return packed
    groups = -(-codes // GROUP)
    # Copied, for only at the start of a storage may bytes be read as words.
    aligned = packed.new_empty(groups * bits)
    aligned[: packed.numel()] = packed
    aligned[packed.numel() :] = 0
    if bits in _WORDS:
        mask = (1 << bits * GROUP) - 1
        words = aligned.view(_WORDS[bits]).to(torch.int64).bitwise_and_(mask)
    else:
        bytes_g8 = packed.new_zeros(groups, GROUP)
        bytes_g8[:, :bits] = aligned.view(groups, bits)
        words = bytes_g8.view(torch.int64).view(groups)
    return _scattered(words, bits).view(torch.uint8)[:codes]


def _gathered(words: Tensor, bits: int) -> Tensor:
    moved, gathered = torch.empty_like(words), torch.empty_like(words)
    for shift, mask in _rounds(bits):
        torch.bitwise_right_shift(words, shift, out=moved)
        words = torch.bitwise_or(words, moved, out=gathered).bitwise_and_(mask)
    return words


def _scattered(words: Tensor, bits: int) -> Tensor:
    """The reverse, where ``words`` stand."""
    single = int.from_bytes(bytes([(1 << bits) - 1]) * GROUP, "little")
    masks = [single, *(mask for _, mask in _rounds(bits)[:-1])]
    moved = torch.empty_like(words)
    for (shift, _), mask in zip(reversed(_rounds(bits)), reversed(masks), strict=True):
        torch.bitwise_left_shift(words, shift, out=moved)
        words.bitwise_or_(moved).bitwise_and_(mask)
    return words


@functools.cache
def _rounds(bits: int) -> tuple[tuple[int, int], ...]:
    """(shift, mask of what is then in place) for 2, 4 and 8 codes drawn together."""
    rounds = []
    for codes in (2, 4, 8):
        span, used = 8 * codes, bits * codes
        mask = sum(((1 << used) - 1) << place for place in range(0, 64, span))
        rounds.append(((8 - bits) * codes // 2, mask))
    return tuple(rounds)
