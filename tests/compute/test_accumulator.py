import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.compute.accumulator import (
    FixedPoint,
    GradientSum,
    Layout,
    assemble,
    sum_digest,
    sum_parts,
)
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.run import Accumulator, Batch, RunSpec

LAYOUT = Layout.of({"a": (2, 3), "b": (4,)})
CPU = torch.device("cpu")
MICROBATCHES = 6
TYPES: tuple[Literal["int64", "int32"], ...] = ("int64", "int32")
I64 = np.dtype("<i8")

gradients = st.lists(st.floats(min_value=-8, max_value=8, width=32), min_size=10, max_size=10).map(
    lambda values: [torch.tensor(values[:6]).view(2, 3), torch.tensor(values[6:])]
)


def spec(dtype: Literal["int64", "int32"]) -> RunSpec:
    batch = Batch(microbatches=MICROBATCHES)
    return RunSpec(accumulator=Accumulator(dtype=dtype), batch=batch)


def new_sum(dtype: Literal["int64", "int32"]) -> GradientSum:
    return GradientSum(spec(dtype), LAYOUT, CPU)


def whole(own: GradientSum) -> bytes:
    return own.read(0, LAYOUT.elements)


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=50)
@given(data=st.data())
def test_a_sum_is_the_same_in_any_order_partition_and_history(
    dtype: Literal["int64", "int32"], data: st.DataObject
) -> None:
    ids = data.draw(st.lists(gradients, min_size=1, max_size=MICROBATCHES))
    alone = new_sum(dtype)
    for gradient in ids:
        assert alone.add(gradient, 1)
    replicas = [new_sum(dtype) for _ in range(3)]
    for gradient in data.draw(st.permutations(ids)):
        replicas[data.draw(st.integers(0, 2))].add(gradient, 1)
    # One replica counts an id that somebody else counted too, and takes it out again.
    extra = data.draw(st.sampled_from(ids))
    replicas[0].add(extra, 1)
    replicas[0].add(extra, -1)
    parts = [whole(replica) for replica in replicas]
    assert sum_parts(parts, alone.format.numpy_dtype) == whole(alone)


@settings(max_examples=50)
@given(gradient=gradients)
def test_an_element_is_rounded_once_to_the_nearest_even(gradient: list[torch.Tensor]) -> None:
    own = new_sum("int64")
    own.add(gradient, 1)
    exact = [value * 2**40 for tensor in gradient for value in tensor.flatten().tolist()]
    assert np.frombuffer(whole(own), I64).tolist() == [round(value) for value in exact]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_contributions_of_all_ids_do_not_overflow(
    dtype: Literal["int64", "int32"],
) -> None:
    own = new_sum(dtype)
    largest = own.format.limit * 2.0 ** -own.format.exponents[0]
    value = torch.tensor(largest, dtype=torch.float64).float()
    if value.item() > largest:
        value = torch.nextafter(value, torch.tensor(0.0))
    gradient = [value.expand(2, 3), -value.expand(4)]
    for _ in range(MICROBATCHES):
        assert own.add(gradient, 1)
    integers = np.frombuffer(whole(own), own.format.numpy_dtype).tolist()
    one = round(value.item() * 2.0 ** own.format.exponents[0])
    assert integers == [MICROBATCHES * one] * 6 + [-MICROBATCHES * one] * 4


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 3e38])
def test_what_does_not_fit_adds_nothing(dtype: Literal["int64", "int32"], odd: float) -> None:
    own = new_sum(dtype)
    good = [torch.ones(2, 3), torch.ones(4)]
    assert own.add(good, 1)
    before = whole(own)
    bad = [torch.ones(2, 3), torch.tensor([1.0, odd, 1.0, 1.0])]
    assert not own.add(bad, 1)
    assert whole(own) == before


def test_clear_empties_and_read_slices() -> None:
    own = new_sum("int64")
    own.add([torch.arange(6.0).view(2, 3), torch.ones(4)], 1)
    assert np.frombuffer(own.read(1, 3), I64).tolist() == [1 << 40, 2 << 40]
    own.clear()
    assert not any(whole(own))


def test_int32_exponents_follow_the_committed_sums() -> None:
    format_ = FixedPoint(Accumulator(dtype="int32"), 2, MICROBATCHES)
    first = format_.exponents[0]
    small = torch.tensor([3] * 6 + [0] * 4, dtype=torch.int32)
    format_.adapt(small, LAYOUT)
    assert format_.exponents == [first + 1, first], "finer by one bit; zeros say nothing"
    large = torch.full((10,), 2**31 - 1, dtype=torch.int32)
    format_.adapt(large, LAYOUT)
    largest = (2**31 - 1) * 2.0 ** -(first + 1)
    assert 8 * largest * 2.0 ** format_.exponents[0] <= format_.limit, "room for 8x"
    coarse = list(format_.exponents)
    format_.coarsen()
    assert [new < old for new, old in zip(format_.exponents, coarse, strict=True)] == [True, True]


def test_int64_has_one_exponent_for_ever() -> None:
    format_ = FixedPoint(Accumulator(fraction_bits=30), 2, MICROBATCHES)
    format_.adapt(torch.ones(10, dtype=torch.int64), LAYOUT)
    format_.coarsen()
    assert format_.exponents == [30, 30]
    assert format_.admits([30, 30])
    assert not format_.admits([30, 31])


def test_int32_exponents_from_elsewhere_are_bounded() -> None:
    format_ = FixedPoint(Accumulator(dtype="int32"), 2, MICROBATCHES)
    assert format_.admits([-5, 60])
    assert not format_.admits([0, 10_000])


@given(
    cuts=st.lists(st.integers(0, 10), max_size=4).map(sorted),
    seed=st.randoms(use_true_random=False),
)
def test_pieces_in_any_order_make_the_whole(cuts: list[int], seed) -> None:
    integers = np.arange(10, dtype=I64)
    edges = [0, *cuts, 10]
    pieces = [(a, integers[a:b].tobytes()) for a, b in itertools.pairwise(edges) if a < b]
    seed.shuffle(pieces)
    assert assemble(pieces, 10, I64).tolist() == integers.tolist()


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, bytes(72))],
        [(0, bytes(40)), (6, bytes(32))],
        [(0, bytes(48)), (5, bytes(40))],
        [(0, bytes(88))],
        [(0, bytes(79))],
    ],
    ids=["none", "short", "gap", "overlap", "long", "odd"],
)
def test_pieces_that_do_not_tile_are_our_own_fault(pieces: list[tuple[int, bytes]]) -> None:
    with pytest.raises(InternalError):
        assemble(pieces, 10, I64)


def test_parts_of_different_lengths_are_refused() -> None:
    for parts in ([], [bytes(8), bytes(16)]):
        with pytest.raises(MisbehaviourError):
            sum_parts(parts, I64)


def test_a_digest_is_of_the_little_endian_integers() -> None:
    one, other = torch.tensor([1, 2]), torch.tensor([2, 1])
    assert sum_digest(one) == sum_digest(one.clone())
    assert sum_digest(one) != sum_digest(other)


def test_layout_tiles_in_name_order() -> None:
    assert LAYOUT.elements == 10
    assert list(LAYOUT.slices()) == [slice(0, 6), slice(6, 10)]
