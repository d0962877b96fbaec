"""The Hadamard rotation: an outlier under one scale is spread over all values under it.

Rows are multiplied by a symmetric orthogonal matrix of +-1 / sqrt(g), which is its own inverse,
by log2(g) rounds of sums and differences. One round is element by element, so the result does not
depend on the number of threads, as that of a matrix product might.

Refused: a random rotation. It would have to be shared, and costs g x g where this costs g log g.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def rotated(x_ng: Tensor) -> Tensor:
    """``x_ng`` with every row rotated; g is a power of two. Twice gives the row again."""
    count, group = x_ng.shape
    half = 1
    while half < group:
        pairs = x_ng.view(count, group // (2 * half), 2, half)
        low, high = pairs.unbind(2)
        x_ng = torch.stack((low + high, low - high), dim=2).view(count, group)
        half *= 2
    return x_ng * (1 / math.sqrt(group))
