import pytest
import torch

from p2ptrain.compute.initial import initial_tensor, initial_weights
from p2ptrain.compute.model import Slice, initial_deviation
from p2ptrain.run import Model

MODEL = Model(d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=64, context=8)
PINNED = [
    "0x1.33a17a0000000p-1",
    "-0x1.cf0c0a0000000p-2",
    "0x1.d80e360000000p-1",
    "-0x1.7381b00000000p+0",
]
WHOLE = Slice(layers=range(4), first=True, last=True)


def test_first_weights_do_not_depend_on_the_cut() -> None:
    whole = initial_weights(7, MODEL, WHOLE)
    part = initial_weights(7, MODEL, Slice(layers=range(2, 4), first=False, last=True))
    for name, weight in part.items():
        assert torch.equal(weight, whole[name])


def test_seed_and_name_both_count_and_the_global_generator_does_not() -> None:
    torch.manual_seed(0)
    one = initial_tensor(1, "a", (4, 4), 1.0)
    torch.manual_seed(1)
    assert torch.equal(initial_tensor(1, "a", (4, 4), 1.0), one)
    assert not torch.equal(initial_tensor(2, "a", (4, 4), 1.0), one)
    assert not torch.equal(initial_tensor(1, "b", (4, 4), 1.0), one)


def test_values_are_these_on_every_machine() -> None:
    values = initial_tensor(0, "model.embed_tokens.weight", (2, 2), 1.0).flatten().tolist()
    assert [value.hex() for value in values] == PINNED


def test_matrices_have_their_deviation_and_norms_are_one() -> None:
    for name, weight in initial_weights(0, MODEL, WHOLE).items():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            deviation = initial_deviation(MODEL, name)
            assert weight.std().item() == pytest.approx(deviation, rel=0.1)
            assert weight.mean().item() == pytest.approx(0, abs=0.2 * deviation)
