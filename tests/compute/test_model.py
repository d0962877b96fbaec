import math

import pytest
import torch

from p2ptrain.compute.initial import initial_weights
from p2ptrain.compute.model import (
    Decoder,
    Slice,
    graph_bytes,
    parameter_shapes,
    rms_norm,
    rotary_table,
    rotate,
    stage_slice,
    summed_loss,
)
from p2ptrain.core.partition import parameter_count
from p2ptrain.run import Cut, Model, RunSpec
from p2ptrain.units import Stage

MODEL = Model(d_model=16, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=24, context=8)
WHOLE = Slice(layers=range(4), first=True, last=True)
CPU = torch.device("cpu")


def test_the_slices_of_a_cut_hold_each_parameter_once() -> None:
    spec = RunSpec(model=MODEL, cut=Cut(stages=3))
    parts = [stage_slice(spec, Stage(stage)) for stage in range(3)]
    names = [name for part in parts for name in parameter_shapes(MODEL, part)]
    assert sorted(names) == list(parameter_shapes(MODEL, WHOLE))


@pytest.mark.parametrize("stage", range(3))
def test_parameters_are_as_many_as_the_partition_counts(stage: Stage) -> None:
    part = stage_slice(RunSpec(model=MODEL, cut=Cut(stages=3)), stage)
    count = sum(math.prod(shape) for shape in parameter_shapes(MODEL, part).values())
    assert count == parameter_count(MODEL, part.layers, first=part.first, last=part.last)


def test_stages_in_a_row_compute_what_the_whole_does_to_the_bit() -> None:
    weights = initial_weights(0, MODEL, WHOLE)
    ids_bt = torch.arange(16).view(2, 8)
    whole = Decoder(MODEL, WHOLE, CPU)(weights, ids_bt)
    low = Decoder(MODEL, Slice(layers=range(3), first=True, last=False), CPU)(weights, ids_bt)
    high = Decoder(MODEL, Slice(layers=range(3, 4), first=False, last=True), CPU)(weights, low)
    assert torch.equal(high, whole)


def test_a_token_sees_no_later_one() -> None:
    weights = initial_weights(0, MODEL, WHOLE)
    decoder = Decoder(MODEL, WHOLE, CPU)
    ids_bt = torch.arange(8).view(1, 8)
    other_bt = ids_bt.clone()
    other_bt[0, 5:] = 77
    a_btv, b_btv = decoder(weights, ids_bt), decoder(weights, other_bt)
    torch.testing.assert_close(a_btv[0, :5], b_btv[0, :5])
    assert not torch.allclose(a_btv[0, 5], b_btv[0, 5])


def test_the_graph_does_not_change_the_bits() -> None:
    weights = initial_weights(0, MODEL, WHOLE)
    ids_bt = torch.arange(16).view(2, 8)
    decoder = Decoder(MODEL, WHOLE, CPU)
    with torch.no_grad():
        without = decoder(weights, ids_bt)
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    assert torch.equal(decoder(leaves, ids_bt), without)


def test_rms_norm_has_the_gradient_of_its_formula() -> None:
    x_btd = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    weight_d = torch.linspace(0.5, 1.5, 5)
    out_btd = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))

    def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight

    results = []
    for function in (plain, lambda x, weight: rms_norm(x, weight, 1e-5)):
        x, weight = x_btd.clone().requires_grad_(), weight_d.clone().requires_grad_()
        y = function(x, weight)
        results.append((y, *torch.autograd.grad(y, [x, weight], out_btd)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_scores_depend_on_distance_only() -> None:
    table = rotary_table(MODEL, CPU)
    q_e = torch.randn(4, generator=torch.Generator().manual_seed(0))
    k_e = torch.randn(4, generator=torch.Generator().manual_seed(1))
    q_bhte = rotate(q_e.expand(1, 1, 8, 4), table)
    k_bhte = rotate(k_e.expand(1, 1, 8, 4), table)
    scores_tt = (q_bhte @ k_bhte.mT)[0, 0]
    torch.testing.assert_close(scores_tt[1:, 1:], scores_tt[:-1, :-1])


def test_loss_is_a_sum_of_token_losses_in_nats() -> None:
    logits_btv = torch.zeros(2, 3, 256)
    assert summed_loss(logits_btv, torch.zeros(2, 3, dtype=torch.int64)).item() == pytest.approx(
        6 * math.log(256)
    )


def test_a_graph_is_estimated_in_proportion_to_its_layers() -> None:
    one = Slice(layers=range(1), first=True, last=False)
    assert graph_bytes(MODEL, WHOLE, 16) == 4 * graph_bytes(MODEL, one, 16) > 0
