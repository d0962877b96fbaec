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

from p2ptrain.compute.bottleneck import complement, orthonormal
from p2ptrain.compute.model import (
    EMBEDDING,
    EMBEDDING_DEVIATION,
    Slice,
    initial_deviation,
    parameter_shapes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.bottleneck import Bottleneck
    from p2ptrain.run import Model


def initial_weights(seed: int, model: Model, part: Slice) -> dict[str, Tensor]:
    """Weights of a slice in float32 on the CPU, by global name, in name order."""
    shapes = parameter_shapes(model, part)
    weights = {
        name: initial_tensor(seed, name, shape, initial_deviation(model, name))
        for name, shape in shapes.items()
    }
    if part.above is not None and part.above.width:
        weights[part.above.encoder] = _basis(seed, model, part.above).float()
    if part.below is not None:
        weights |= _receiver(seed, model, part.below)
    return weights


def initial_tensor(seed: int, name: str, shape: Sequence[int], deviation: float) -> Tensor:
    """One parameter: vectors are ones, matrices uniform with this standard deviation."""
    if len(shape) == 1:
        return torch.ones(*shape)
    generator = torch.Generator()
    generator.manual_seed(_tensor_seed(seed, name))
    # A uniform on (-1, 1) has variance 1/3.
    return torch.rand(*shape, generator=generator).mul_(2).sub_(1).mul_(deviation * math.sqrt(3))


def _receiver(seed: int, model: Model, bottleneck: Bottleneck) -> dict[str, Tensor]:
    """A decoder that undoes what its encoder did, and anchors that say nothing but the token."""
    weights: dict[str, Tensor] = {}
    basis_kd = _basis(seed, model, bottleneck) if bottleneck.width else None
    if basis_kd is not None:
        weights[bottleneck.decoder] = basis_kd.T.float().contiguous()
    for back in range(bottleneck.order):
        table, lift = bottleneck.anchor(back), bottleneck.lift(back)
        if bottleneck.rank:  # one factor zero, the other not: else neither would learn
            shape = (model.vocab_size, bottleneck.rank)
            weights[table] = initial_tensor(seed, table, shape, EMBEDDING_DEVIATION)
            weights[lift] = torch.zeros(model.d_model, bottleneck.rank)
        elif back or basis_kd is None:  # without a width nothing was dropped
            weights[table] = torch.zeros(model.vocab_size, model.d_model)
        else:
            shape = (model.vocab_size, model.d_model)
            embedding_vd = initial_tensor(seed, EMBEDDING, shape, EMBEDDING_DEVIATION)
            weights[table] = complement(embedding_vd, basis_kd).float()
    return weights


def _basis(seed: int, model: Model, bottleneck: Bottleneck) -> Tensor:
    """Orthonormal rows (k, d) in float64: both sides of a boundary make the same."""
    shape = (bottleneck.width, model.d_model)
    return orthonormal(initial_tensor(seed, f"{bottleneck.prefix}basis", shape, 1.0))


def _tensor_seed(seed: int, name: str) -> int:
    """63 bits: what every torch generator takes."""
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=8, person=b"p2ptrain init").digest()
    return int.from_bytes(digest, "little") >> 1
