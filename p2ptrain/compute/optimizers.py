"""How a stage turns its gradient into new weights: Muon for matrices, AdamW for the rest.

Muon (Jordan 2024) takes the momentum of a matrix and replaces it by the nearest
orthogonal matrix, found by five Newton-Schulz iterations: all directions of a layer
then learn at one rate, which small batches and one step of delay both like. Embedding,
head and norms are no maps between hidden spaces and take AdamW, as is usual. So does
all of a bottleneck: its encoder and decoder learnt worse under Muon. These two are short maps
whose rows begin orthonormal, and AdamW moves every element by its rate: at the rate of an embedding
they turned by a tenth and more a step, and the stages above learnt from what kept moving. So
they take ``bottleneck_ratio`` of it.

Invariants:
    * a step is a function of (weights, state, gradients, t) and runs parameter by
      parameter, so the cut does not change it: nothing is batched across layers;
    * a skipped step touches neither weights nor state; ``updates`` counts the others;
    * state is a flat mapping of tensors, equal on all replicas.

Alternative refused: ``torch.optim``. Its state hides in per-parameter dictionaries, and its
Muon rounds to bfloat16 inside. The tests hold ours against it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p2ptrain.core.bottleneck import is_map

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.run import Optimizer

NEWTON_SCHULZ_ITERATIONS = 5
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Quintic whose five-fold iterate maps (0, 1] into about 0.7..1.2, steepest at zero (Jordan)."""


def learning_rate_factor(config: Optimizer, step: int) -> float:
    """Share of the peak learning rate at ``step``: linear warm-up, then cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.final_ratio + (1.0 - config.final_ratio) * cosine


def clip_factor(clip_norm: float, norm: float) -> float:
    """What to multiply a gradient of this global norm with; ``clip_norm`` 0 means never."""
    return clip_norm / (norm + 1e-6) if 0.0 < clip_norm < norm else 1.0


def takes_muon(config: Optimizer, name: str) -> bool:
    """Whether this parameter is a matrix between hidden spaces, and the run uses Muon."""
    return config.name == "muon" and name.endswith("_proj.weight")


def orthogonalised(matrix_rc: Tensor) -> Tensor:
    """About the nearest semi-orthogonal matrix, in float32."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix_rc.shape[0] > matrix_rc.shape[1]
    x = matrix_rc.mT if tall else matrix_rc
    x = x / (torch.linalg.vector_norm(x) + 1e-7)
    for _ in range(NEWTON_SCHULZ_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class StageOptimizer:
    """Updates a stage's weights in place and holds the optimizer's state for them."""

    def __init__(self, config: Optimizer, weights: Mapping[str, Tensor]) -> None:
        self._config = config
        self._weights = weights
        self._updates = 0
        self._state: dict[str, Tensor] = {}
        for name, weight in weights.items():
            kinds = ("momentum",) if takes_muon(config, name) else ("mean", "square")
            for kind in kinds:
                self._state[f"{kind}/{name}"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], step: int) -> None:
        """Update every weight with its float32 gradient at the learning rates of ``step``."""
        self._updates += 1
        factor = learning_rate_factor(self._config, step)
        for name, weight in self._weights.items():
            if takes_muon(self._config, name):
                self._muon(name, weight, gradients[name], factor)
            else:
                self._adamw(name, weight, gradients[name], factor)

    def state(self) -> dict[str, Tensor]:
        """All state as tensors by name; share no memory with it while stepping."""
        return {**self._state, "updates": torch.tensor(self._updates, dtype=torch.int64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy in a state whose names and shapes have been checked against :meth:`state`."""
        for name, tensor in self._state.items():
            tensor.copy_(state[name])
        self._updates = int(state["updates"])

    def _muon(self, name: str, weight: Tensor, gradient: Tensor, factor: float) -> None:
        config = self._config
        momentum = self._state[f"momentum/{name}"]
        momentum.lerp_(gradient, 1.0 - config.momentum)
        update = orthogonalised(gradient.lerp(momentum, config.momentum))  # Nesterov
        rate = config.learning_rate * factor
        rows, columns = weight.shape
        weight.mul_(1.0 - rate * config.weight_decay)
        weight.add_(update, alpha=-rate * math.sqrt(max(1.0, rows / columns)))

    def _adamw(self, name: str, weight: Tensor, gradient: Tensor, factor: float) -> None:
        config = self._config
        mean, square = self._state[f"mean/{name}"], self._state[f"square/{name}"]
        rate = config.adamw_learning_rate * factor
        if is_map(name):
            rate *= config.bottleneck_ratio
        if weight.ndim > 1:  # norms are scales: nothing pulls them to zero
            weight.mul_(1.0 - rate * config.weight_decay)
        mean.lerp_(gradient, 1.0 - config.beta1)
        square.mul_(config.beta2).addcmul_(gradient, gradient, value=1.0 - config.beta2)
        correction = math.sqrt(1.0 - config.beta2**self._updates)
        denominator = (square.sqrt() / correction).add_(config.eps)
        weight.addcdiv_(mean, denominator, value=-rate / (1.0 - config.beta1**self._updates))
