import math

import pytest
import torch

from p2ptrain.compute.health import MOST_ROWS, BoundaryWatch
from p2ptrain.core.health import trouble


def reading_of(x_rw: torch.Tensor, decoded: torch.Tensor | None = None):
    watch = BoundaryWatch(2)
    watch.sent(x_rw, lambda: x_rw if decoded is None else decoded)
    watch.returned(torch.ones(4, 4))
    reading = watch.take()
    assert reading is not None
    return reading


def test_a_gaussian_latent_is_well() -> None:
    x_rw = torch.randn(512, 16, generator=torch.Generator().manual_seed(0)) * 3 + 5
    reading = reading_of(x_rw, x_rw + 0.3)
    assert reading.deviation == pytest.approx(3, rel=0.05)
    assert 2 < reading.least_deviation < reading.deviation
    assert reading.magnitude == pytest.approx((25 + 9) ** 0.5, rel=0.05)
    assert reading.error == pytest.approx(0.1, rel=0.05)
    assert reading.gradient_norm == 4
    assert reading.saturation < 0.05
    assert trouble(reading) is None


def test_a_saturated_latent_raises_the_alarm() -> None:
    drawn = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    told = trouble(reading_of(torch.tanh(1000 * drawn)))
    assert told is not None
    assert "limit" in told
    told = trouble(reading_of(torch.tanh(9 + drawn.abs())))  # all at one and the same limit
    assert told is not None
    assert "same for every token" in told


def test_a_channel_that_stands_still_is_seen() -> None:
    x_rw = torch.randn(64, 4)
    x_rw[:, 2] = 7
    reading = reading_of(x_rw)
    assert reading.least_deviation == 0
    assert reading.deviation > 0.5


def test_a_large_message_is_read_by_some_of_its_rows_from_all_of_it() -> None:
    x_rw = torch.randn(4 * MOST_ROWS, 8, generator=torch.Generator().manual_seed(0))
    x_rw[3 * MOST_ROWS :] *= 9  # its end counts like its beginning
    reading = reading_of(x_rw, x_rw + 0.1)
    assert reading.deviation == pytest.approx(float(x_rw.std()), rel=0.05)
    assert reading.error == pytest.approx(0.1 / float(x_rw.std()), rel=0.05)


@pytest.mark.parametrize("rows", [MOST_ROWS - 1, MOST_ROWS, MOST_ROWS + 1, 3 * MOST_ROWS - 1])
def test_of_no_message_are_more_rows_read_than_the_bound(rows: int) -> None:
    alone = torch.zeros(rows, 4)
    alone[:MOST_ROWS] = 1.0
    reading = reading_of(alone)
    share = reading.magnitude**2  # of the rows read, those that are among the first
    assert share * min(rows, MOST_ROWS) == pytest.approx(round(share * min(rows, MOST_ROWS)))
    assert (share == 1) == (rows <= MOST_ROWS)


def test_a_text_that_repeats_itself_is_not_taken_for_a_constant() -> None:
    table = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    x_rw = table[torch.arange(16 * MOST_ROWS) % 16]
    assert trouble(reading_of(x_rw)) is None


def test_nothing_sent_is_no_reading_and_a_step_ends_with_its_reading() -> None:
    watch = BoundaryWatch(0)
    watch.returned(torch.ones(2))
    assert watch.take() is None
    watch.sent(torch.randn(4, 4), lambda: torch.zeros(4, 4))
    first = watch.take()
    assert first is not None
    assert first.gradient_norm is None
    assert watch.take() is None


def test_one_microbatch_a_step_is_read_and_the_first_gradient_that_is_not_zero() -> None:
    watch = BoundaryWatch(0)
    watch.sent(torch.randn(4, 4), lambda: torch.zeros(4, 4))

    def never() -> torch.Tensor:
        raise AssertionError("read twice")

    watch.sent(torch.randn(4, 4), never)
    for norm in (0.0, 2.0, 3.0):
        watch.returned(torch.tensor([norm]))
    reading = watch.take()
    assert reading is not None
    assert reading.gradient_norm == 2.0


def test_gradients_of_zero_alone_raise_the_alarm() -> None:
    watch = BoundaryWatch(0)
    x_rw = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    watch.sent(x_rw, lambda: x_rw)
    watch.returned(torch.zeros(64, 8))
    reading = watch.take()
    assert reading is not None
    told = trouble(reading)
    assert told is not None
    assert "no gradient" in told


def test_numbers_that_are_none_are_read_as_the_largest() -> None:
    watch = BoundaryWatch(0)
    x_rw = torch.full((4, 4), float("nan"))
    watch.sent(x_rw, lambda: x_rw)
    watch.returned(torch.full((4, 4), float("inf")))
    reading = watch.take()
    assert reading is not None
    values = (reading.magnitude, reading.deviation, reading.error, reading.gradient_norm)
    assert all(value is not None and math.isfinite(value) for value in values)


def test_a_watch_waits_for_one_microbatch_a_step() -> None:
    watch = BoundaryWatch(0)
    assert watch.waits
    watch.sent(torch.randn(4, 4), lambda: torch.zeros(4, 4))
    assert not watch.waits
    watch.take()
    assert watch.waits


def test_gradients_too_small_to_square_are_no_silence() -> None:
    watch = BoundaryWatch(0)
    x_rw = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    watch.sent(x_rw, lambda: x_rw)
    watch.returned(torch.full((16, 4), 1e-30))
    reading = watch.take()
    assert reading is not None
    assert reading.gradient_norm == pytest.approx(8e-30)
    assert trouble(reading) is None
