"""First weights, from (seed, parameter name) alone.

Any peer makes any stage's weights without asking anybody, and a run cut in four
starts where the same run cut in one starts, because the layers' global names do not
change with the cut.

Values are uniform, not normal: a uniform float is an exact function of the generator's
bits, while a normal one passes through logarithms and cosines that differ in the last
bit from one processor to another. The variance is what matters for training.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p2ptrain.compute.model import Slice, initial_deviation, parameter_shapes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.run import Model


def initial_weights(seed: int, model: Model, part: Slice) -> dict[str, Tensor]:
    """Weights of a slice in float32 on the CPU, by global name, in name order."""
    return {
        name: initial_tensor(seed, name, shape, initial_deviation(model, name))
        for name, shape in parameter_shapes(model, part).items()
    }


def initial_tensor(seed: int, name: str, shape: Sequence[int], deviation: float) -> Tensor:
    """One parameter: vectors are ones, matrices uniform with this standard deviation."""
    if len(shape) == 1:
        return torch.ones(*shape)
    generator = torch.Generator()
    generator.manual_seed(_tensor_seed(seed, name))
    # A uniform on (-1, 1) has variance 1/3.
    return torch.rand(*shape, generator=generator).mul_(2).sub_(1).mul_(deviation * math.sqrt(3))


def _tensor_seed(seed: int, name: str) -> int:
    """63 bits: what every torch generator takes."""
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=8, person=b"p2ptrain init").digest()
    return int.from_bytes(digest, "little") >> 1
