import math

import pytest
import torch

from p2ptrain.compute.codecs import CodecContext
from p2ptrain.compute.codecs.noise import HALF_STEP, Noise
from p2ptrain.units import Slot, Step

CPU = torch.device("cpu")
HERE = {"seed": 1, "step": Step(2), "slot": Slot(3), "boundary": 0, "direction": "backward"}


def noise(columns: int = 64, **there: object) -> Noise:
    return Noise(CodecContext(**(HERE | there)), columns, CPU)  # type: ignore[arg-type]


def test_the_bits_are_these_on_every_machine() -> None:
    assert noise(3).rows(5, 7).tolist() == [
        [204134300, -1130789191, -1033300132],
        [-1969288294, -1102335794, 333395562],
    ]


def test_a_slab_of_rows_is_made_alone() -> None:
    whole = noise().rows(0, 100)
    assert whole.dtype == torch.int32
    assert torch.equal(torch.cat([noise().rows(0, 41), noise().rows(41, 100)]), whole)


@pytest.mark.parametrize(
    "there",
    [
        {"seed": 2},
        {"seed": 2**63 + 1},
        {"step": Step(3)},
        {"slot": Slot(2)},
        {"boundary": 1},
        {"direction": "forward"},
    ],
)
def test_every_place_in_a_run_has_its_own(there: dict[str, object]) -> None:
    here_rc, there_rc = noise().rows(0, 64) * HALF_STEP, noise(**there).rows(0, 64) * HALF_STEP
    assert abs(float((here_rc * there_rc).mean())) < 5 / 12 / 64  # 5 sigma of independent ones


def test_it_is_uniform_and_neighbours_tell_nothing_of_each_other() -> None:
    h_rc = noise(1024).rows(0, 1024) * HALF_STEP
    sigma = 1 / 12 / 1024  # of the mean of a product of two independent ones
    assert abs(float(h_rc.mean())) < 5 / math.sqrt(12) / 1024
    for other in (h_rc.roll(1, 0), h_rc.roll(1, 1), h_rc.roll(2, 0), h_rc.roll((1, 1), (0, 1))):
        assert abs(float((h_rc * other).mean())) < 5 * sigma
    counts = torch.histc(h_rc, 64, -0.5, 0.5)
    assert float(((counts - 2**14) ** 2 / 2**14).sum()) < 63 + 5 * math.sqrt(126)


def test_no_two_rows_of_a_column_share_a_hash() -> None:
    rows = 1 << 16
    assert all(len(column.unique()) == rows for column in noise(4).rows(0, rows).T)
