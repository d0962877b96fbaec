import math

import pytest
import torch
from torch import Tensor

from p2ptrain.compute.optimizers import (
    StageOptimizer,
    clip_factor,
    learning_rate_factor,
    orthogonalised,
    takes_muon,
)
from p2ptrain.core.bottleneck import Bottleneck
from p2ptrain.run import Model, Optimizer

MATRIX = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"
SHAPES = {MATRIX: (12, 8), NORM: (8,), HEAD: (20, 8)}


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def constant(**changes: object) -> Optimizer:
    """No schedule, so that other implementations need none."""
    return Optimizer(warmup_steps=0, steps=1, final_ratio=1.0, **changes)  # type: ignore[arg-type]


def test_adamw_is_that_of_torch() -> None:
    config = constant(name="adamw", adamw_learning_rate=0.01, weight_decay=0.1, eps=1e-6)
    ours, theirs = tensors(0), tensors(0)
    mine = StageOptimizer(config, ours)
    groups = [
        {"params": [theirs[MATRIX], theirs[HEAD]], "weight_decay": 0.1},
        {"params": [theirs[NORM]], "weight_decay": 0.0},
    ]
    judge = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-6, foreach=False)
    for step in range(5):
        gradients = tensors(step + 1)
        mine.step(gradients, step)
        for name, weight in theirs.items():
            weight.grad = gradients[name]
        judge.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_the_maps_of_a_bottleneck_learn_at_their_share_of_the_rate() -> None:
    names = {"bottleneck.0.encoder.weight": 0.1, "bottleneck.0.anchor.0.weight": 1.0, HEAD: 1.0}
    weights = {name: torch.zeros(2, 2) for name in names}
    config = constant(adamw_learning_rate=0.01, bottleneck_ratio=0.1, eps=1e-12)
    StageOptimizer(config, weights).step({name: torch.ones(2, 2) for name in names}, 0)
    for name, share in names.items():
        torch.testing.assert_close(weights[name], torch.full((2, 2), -0.01 * share))


def test_muon_is_jordans() -> None:
    config = constant(learning_rate=0.05, momentum=0.9, weight_decay=0.1)
    ours = tensors(0)
    mine = StageOptimizer(config, ours)
    weight, momentum = tensors(0)[MATRIX].double(), torch.zeros(12, 8, dtype=torch.float64)
    for step in range(4):
        gradients = tensors(step + 1)
        mine.step(gradients, step)
        gradient = gradients[MATRIX].double()
        momentum = 0.9 * momentum + 0.1 * gradient
        x = 0.1 * gradient + 0.9 * momentum
        x = x / x.norm()
        for _ in range(5):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
        weight = weight * (1 - 0.05 * 0.1) - 0.05 * math.sqrt(12 / 8) * x
    torch.testing.assert_close(ours[MATRIX].double(), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4)])
def test_orthogonalised_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.5 < values.min() <= values.max() < 1.3


def test_a_zero_gradient_stays_finite() -> None:
    weights = tensors(0)
    optimizer = StageOptimizer(constant(), weights)
    optimizer.step({name: torch.zeros(shape) for name, shape in SHAPES.items()}, 0)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_only_matrices_between_hidden_spaces_take_muon() -> None:
    taken = [name for name in SHAPES if takes_muon(Optimizer(name="muon"), name)]
    assert taken == [MATRIX]
    assert not any(takes_muon(Optimizer(name="adamw"), name) for name in SHAPES)


def test_a_bottleneck_takes_adamw() -> None:
    bottleneck = Bottleneck(boundary=0, width=4, order=2, rank=3)
    model = Model(d_model=16)
    names = {**bottleneck.sender_shapes(model), **bottleneck.receiver_shapes(model)}
    assert len(names) == 7
    assert not any(takes_muon(Optimizer(name="muon"), name) for name in names)


def test_learning_rate_warms_up_and_falls() -> None:
    config = Optimizer(warmup_steps=4, steps=24, final_ratio=0.1)
    factors = [learning_rate_factor(config, step) for step in range(30)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[14] == pytest.approx(0.55)
    assert factors[24:] == [pytest.approx(0.1)] * 6
    assert factors[4:] == sorted(factors[4:], reverse=True)


def test_clipping_only_shortens() -> None:
    assert clip_factor(1.0, 0.5) == 1.0
    assert clip_factor(1.0, 4.0) == pytest.approx(0.25)
    assert clip_factor(0.0, 1e9) == 1.0


def test_state_round_trips_and_continues_alike() -> None:
    weights = tensors(0)
    optimizer = StageOptimizer(constant(), weights)
    optimizer.step(tensors(1), 0)
    copy = {name: weight.clone() for name, weight in weights.items()}
    resumed = StageOptimizer(constant(), copy)
    resumed.load({name: tensor.clone() for name, tensor in optimizer.state().items()})
    optimizer.step(tensors(2), 1)
    resumed.step(tensors(2), 1)
    for name in SHAPES:
        assert torch.equal(weights[name], copy[name])
    assert int(resumed.state()["updates"]) == 2
