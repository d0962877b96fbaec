"""The mathematics of a learned bottleneck, and where its parameters begin.

    stage b:      h (b, t, d) -- norm, E --> z (b, t, k) -- codec --> wire
    stage b + 1:  wire -- codec --> z -- D --> + anchors(token ids) --> x (b, t, d)

Intuition: near its start the residual stream is little more than the token's embedding,
which the receiver can look up. E and D begin as a random projection and its transpose,
and the first anchor as the part of the first embedding that this projection drops; so an
untrained bottleneck already hands over nearly what it was given. (With
anchors that began at zero, a short run lost more than one without a wire.) The norm keeps
the wire's scale while the residual stream grows through training.

Invariants:
    * the decoded z is a leaf of the receiving stage's graph, and z the output of the
      sending stage's: the gradient on the wire is k wide;
    * both maps are float32, whatever the layers compute in: k numbers stand for d;
    * first values follow from (seed, name) by elementwise operations, in one order, in
      float64: IEEE 754 fixes them, where a library's QR differs between processors.

Alternative refused: an identity on the first k coordinates (k = d/8: 1.446 nats per byte
against 1.337 for a random orthonormal start with anchors).

Legend: b sequences, t tokens, d d_model, k latent width, v vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody reads
from torch import Tensor

from p2ptrain.compute.model import rms_norm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.core.bottleneck import Bottleneck


def compress(
    weights: Mapping[str, Tensor], bottleneck: Bottleneck, x_btd: Tensor, eps: float
) -> Tensor:
    """The latent (b, t, k) of a stage's output; without a width the normed output itself."""
    with torch.autocast(x_btd.device.type, enabled=False):
        normed_btd = rms_norm(x_btd, weights[bottleneck.norm], eps)
        return F.linear(normed_btd, weights[bottleneck.encoder]) if bottleneck.width else normed_btd


def expand(
    weights: Mapping[str, Tensor], bottleneck: Bottleneck, z_btk: Tensor, ids_bt: Tensor
) -> Tensor:
    """The input (b, t, d) of a stage: what came over the wire and what the tokens tell."""
    with torch.autocast(z_btk.device.type, enabled=False):
        x_btd = F.linear(z_btk, weights[bottleneck.decoder]) if bottleneck.width else z_btk
        for back in range(min(bottleneck.order, ids_bt.shape[1])):
            # The first tokens of a sequence have none before them: nothing is added there.
            row_btd = F.embedding(
                ids_bt[:, : ids_bt.shape[1] - back], weights[bottleneck.anchor(back)]
            )
            if bottleneck.rank:
                row_btd = F.linear(row_btd, weights[bottleneck.lift(back)])
            x_btd = x_btd + F.pad(row_btd, (0, 0, back, 0))
        return x_btd


def orthonormal(rows_kd: Tensor) -> Tensor:
    """Modified Gram-Schmidt over the rows, in float64 and a fixed order."""
    basis_kd = rows_kd.to(torch.float64)
    for row in range(len(basis_kd)):
        basis_kd[row] /= _sums(basis_kd[row].square()).sqrt()
        rest = basis_kd[row + 1 :]
        rest -= _sums(rest * basis_kd[row]).unsqueeze(-1) * basis_kd[row]
    return basis_kd


def complement(rows_vd: Tensor, basis_kd: Tensor) -> Tensor:
    """``rows_vd`` without their part in the span of an orthonormal basis."""
    rest_vd = rows_vd.to(torch.float64)
    for row_d in basis_kd:
        rest_vd = rest_vd - _sums(rest_vd * row_d).unsqueeze(-1) * row_d
    return rest_vd


def _sums(x: Tensor) -> Tensor:
    """Sums over the last dimension by a tree of pairwise additions, the same anywhere."""
    width = 1 << (x.shape[-1] - 1).bit_length()
    x = F.pad(x, (0, width - x.shape[-1]))
    while width > 1:
        width //= 2
        x = x[..., :width] + x[..., width:]
    return x.squeeze(-1)
