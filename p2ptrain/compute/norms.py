"""Squared norms of a whole integer sum: the same float64 on every machine.

Norms are taken in float64 over blocks of 2^16 elements by a tree of pairwise additions:
elementwise operations only, which IEEE 754 fixes to the bit on any device and with any
number of threads, unlike a library's own reduction. Block sums are added by ``math.fsum``,
which rounds once.

Alternative refused: norms of floats. They would depend on who had added what before whom.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2ptrain.compute.accumulator import Layout

NORM_BLOCK_ELEMENTS = 1 << 16
"""Large enough that block sums are few, small enough to stay in cache (512 kB of float64)."""

NORM_GROUP_BLOCKS = 512
"""256 MB of float64 on a GPU at a time: little there, and enough to keep it busy."""


def squared_norm(integers: Tensor, exponent: int) -> float:
    """Squared norm of one parameter's decoded sum: the same float64 on every machine."""
    total: list[float] = []
    # 16 blocks at a time: 8 MB of float64, so that no copy of a large tensor is made.
    for chunk in torch.split(integers, 16 * NORM_BLOCK_ELEMENTS):
        squares = _squares(chunk, exponent)
        blocks = -(-squares.numel() // NORM_BLOCK_ELEMENTS)
        width = NORM_BLOCK_ELEMENTS
        if blocks == 1:  # zeros change no sum: pad to a power of two only
            width = 1 << (squares.numel() - 1).bit_length()
        tree = torch.zeros(blocks * width, dtype=torch.float64)
        tree[: squares.numel()] = squares
        total.extend(_block_sums(tree.view(blocks, width)))
    return math.fsum(total)


def squared_norms(
    whole: Tensor, layout: Layout, exponents: Sequence[int], device: torch.device
) -> tuple[float, ...]:
    """:func:`squared_norm` of all parameters, to the bit, many at a time on ``device``.

    For a GPU, where a launch costs more than the additions of a block of zeros, and one look at
    results more than either.
    """
    sums: list[list[float]] = [[] for _ in layout.names]
    for group in _groups(layout):
        blocks = [-(-(piece.stop - piece.start) // NORM_BLOCK_ELEMENTS) for _, piece in group]
        shape = sum(blocks), NORM_BLOCK_ELEMENTS
        tree = torch.zeros(shape, dtype=torch.float64, device=device)
        flat, start = tree.view(-1), 0
        for (place, piece), count in zip(group, blocks, strict=True):
            squares = _squares(whole[piece].to(device), exponents[place])
            flat[start : start + len(squares)] = squares
            start += count * NORM_BLOCK_ELEMENTS
        found = iter(_block_sums(tree))
        for (place, _), count in zip(group, blocks, strict=True):
            sums[place].extend(islice(found, count))
    return tuple(map(math.fsum, sums))


def _groups(layout: Layout) -> Iterator[list[tuple[int, slice]]]:
    """Pieces of parameters (place in the layout, elements), together at most NORM_GROUP_BLOCKS.

    A piece begins where a block of its parameter does.
    """
    group: list[tuple[int, slice]] = []
    room = NORM_GROUP_BLOCKS
    for place, part in enumerate(layout.slices()):
        start = part.start
        while start < part.stop:
            stop = min(part.stop, start + room * NORM_BLOCK_ELEMENTS)
            group.append((place, slice(start, stop)))
            room -= -(-(stop - start) // NORM_BLOCK_ELEMENTS)
            start = stop
            if not room:
                yield group
                group, room = [], NORM_GROUP_BLOCKS
    if group:
        yield group


def _squares(integers: Tensor, exponent: int) -> Tensor:
    return integers.to(torch.float64).mul_(2.0**-exponent).square_()


def _block_sums(tree: Tensor) -> list[float]:
    """Sum of every row (a power of two wide) by pairs: one order on every machine."""
    width = tree.shape[1]
    while width > 1:
        width //= 2
        tree = tree[:, :width] + tree[:, width:]
    sums: list[float] = tree.flatten().tolist()
    return sums
