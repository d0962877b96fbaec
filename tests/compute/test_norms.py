import math

import pytest
import torch

from p2ptrain.compute import norms
from p2ptrain.compute.accumulator import Layout
from p2ptrain.compute.norms import NORM_BLOCK_ELEMENTS, squared_norm, squared_norms


@pytest.mark.parametrize(
    "elements",
    [1, 2, 7, NORM_BLOCK_ELEMENTS - 1, NORM_BLOCK_ELEMENTS + 1, 20 * NORM_BLOCK_ELEMENTS],
)
def test_a_norm_is_close_to_the_true_one(elements: int) -> None:
    integers = torch.arange(elements, dtype=torch.int64) - elements // 3
    exact = math.fsum((integers.double() / 1024).square().tolist())
    assert squared_norm(integers, 10) == pytest.approx(exact, rel=1e-14)


def test_a_norm_is_the_same_with_any_number_of_threads() -> None:
    integers = torch.randint(-(2**40), 2**40, (3 * NORM_BLOCK_ELEMENTS + 17,))
    threads = torch.get_num_threads()
    found = set()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.add(squared_norm(integers, 40))
    torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("group_blocks", [1, 3, 512])
def test_norms_taken_together_are_those_taken_one_by_one(
    group_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms, "NORM_GROUP_BLOCKS", group_blocks)
    sizes = (1, 6, 1000, NORM_BLOCK_ELEMENTS, 5 * NORM_BLOCK_ELEMENTS + 17)
    layout = Layout.of({f"{size}": (size,) for size in sizes})
    whole = torch.randint(-(2**45), 2**45, (layout.elements,))
    exponents = [40, 0, 41, 20, 38]
    one_by_one = [
        squared_norm(whole[part], each)
        for part, each in zip(layout.slices(), exponents, strict=True)
    ]
    assert list(squared_norms(whole, layout, exponents, torch.device("cpu"))) == one_by_one
