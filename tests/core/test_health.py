from dataclasses import replace

import pytest

from p2ptrain.core.health import BoundaryReading, trouble

WELL = BoundaryReading(
    boundary=1,
    magnitude=2.0,
    deviation=1.0,
    least_deviation=0.1,
    saturation=0.08,
    error=0.1,
    gradient_norm=1e-5,
)


def test_a_boundary_that_carries_something_is_no_trouble() -> None:
    assert trouble(WELL) is None
    assert trouble(replace(WELL, gradient_norm=None)) is None  # nothing was trained


@pytest.mark.parametrize(
    ("sick", "word"),
    [
        (replace(WELL, deviation=0.0), "same for every token"),
        (replace(WELL, deviation=1e-5, magnitude=1.0), "same for every token"),
        (replace(WELL, deviation=0.0, magnitude=0.0), "same for every token"),
        (replace(WELL, saturation=0.99), "99%"),
        (replace(WELL, gradient_norm=0.0), "no gradient"),
    ],
)
def test_each_sickness_is_told_in_one_line_with_its_boundary(
    sick: BoundaryReading, word: str
) -> None:
    told = trouble(sick)
    assert told is not None
    assert "boundary 1" in told
    assert word in told
    assert "\n" not in told
