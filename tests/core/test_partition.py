"""A cut tiles the layers, is the best there is, and refuses what cannot be cut."""

from itertools import combinations, pairwise

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.core.partition import cut_layers, parameter_count, stage_cost, stage_parameters
from p2ptrain.errors import RunSpecError
from p2ptrain.run import Model


def costs(model: Model, parts: tuple[range, ...]) -> list[int]:
    top = len(parts) - 1
    return [
        stage_cost(model, part, first=stage == 0, last=stage == top)
        for stage, part in enumerate(parts)
    ]


def every_cut(n_layers: int, stages: int) -> list[tuple[range, ...]]:
    return [
        tuple(range(a, b) for a, b in pairwise((0, *middle, n_layers)))
        for middle in combinations(range(1, n_layers), stages - 1)
    ]


models = st.builds(
    Model,
    vocab_size=st.sampled_from([16, 256, 50_000]),
    d_model=st.sampled_from([16, 64]),
    n_layers=st.integers(1, 9),
    d_ff=st.sampled_from([32, 256]),
)


def test_parameters_counted_by_hand() -> None:
    model = Model(vocab_size=11, d_model=8, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=5)
    layer = 8 * 8 + 2 * (8 * 4) + 8 * 8 + 3 * 8 * 5 + 2 * 8
    assert parameter_count(model, range(1, 2), first=False, last=False) == layer
    assert parameter_count(model, range(2), first=True, last=False) == 2 * layer + 11 * 8
    assert parameter_count(model, range(2, 3), first=False, last=True) == layer + 8 + 11 * 8
    assert stage_parameters(model, (range(3),)) == (3 * layer + 8 + 2 * 11 * 8,)


@given(models, st.data())
def test_parameters_do_not_depend_on_the_cut(model: Model, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, model.n_layers))
    whole = sum(stage_parameters(model, cut_layers(model, 1)))
    assert sum(stage_parameters(model, cut_layers(model, stages))) == whole


@settings(max_examples=60)
@given(models, st.data())
def test_no_cut_has_a_smaller_greatest_cost_nor_is_more_even(
    model: Model, data: st.DataObject
) -> None:
    stages = data.draw(st.integers(1, model.n_layers))
    parts = cut_layers(model, stages)
    assert [layer for part in parts for layer in part] == list(range(model.n_layers))
    assert all(parts)

    def unevenness(cut: tuple[range, ...]) -> tuple[int, int]:
        each = costs(model, cut)
        return max(each), sum(cost * cost for cost in each)

    assert unevenness(parts) == min(map(unevenness, every_cut(model.n_layers, stages)))


def test_a_heavy_head_gets_fewer_layers_beside_it() -> None:
    model = Model(vocab_size=32_000, d_model=64, n_layers=12, d_ff=128)
    assert [len(part) for part in cut_layers(model, 3)] == [5, 6, 1]


def test_a_hundred_layers_cut_in_no_time() -> None:
    model = Model(vocab_size=128_000, d_model=4096, n_layers=128, n_heads=32, n_kv_heads=8)
    parts = cut_layers(msgspec.structs.replace(model, d_ff=14_336), 32)
    assert len(parts) == 32
    assert parts[-1].stop == 128


def test_given_counts_are_taken() -> None:
    assert cut_layers(Model(n_layers=6), 3, (1, 4, 1)) == (range(1), range(1, 5), range(5, 6))


@pytest.mark.parametrize(
    ("stages", "layers", "says"),
    [
        (5, (), "use at most 4 stages"),
        (0, (), "at least one stage"),
        (2, (1, 1, 2), "names 3 stages"),
        (2, (1, 2), "sums to 3"),
        (2, (4, 0), "at least one layer"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(
    stages: int, layers: tuple[int, ...], says: str
) -> None:
    with pytest.raises(RunSpecError, match=says):
        cut_layers(Model(n_layers=4), stages, layers)
