"""Rates are taken between the ends of the first and the last step."""

import msgspec
import pytest

from benchmarks.efficiency import summary
from benchmarks.fidelity import compare
from benchmarks.run import Run, Speed, speed, step_tokens
from p2ptrain.run import Batch, preset

SPEC = msgspec.structs.replace(preset("tiny"), batch=Batch(sequences=1, microbatches=2))


def test_the_first_step_is_warm_up() -> None:
    found = speed(SPEC, Run(ended_at=[100.0, 101.0, 104.0], cpu_seconds={"a": 1.0, "b": 3.0}))
    assert step_tokens(SPEC) == 256
    assert found.tokens_per_second == 2 * 256 / 4.0
    assert found.cpu_seconds_per_kilotoken == pytest.approx(1000 * 4.0 / 512)


def test_one_step_has_no_rate() -> None:
    with pytest.raises(ValueError, match="1 steps have no rate"):
        speed(SPEC, Run(ended_at=[1.0], cpu_seconds={}))


def test_ratios_above_one_say_that_the_swarm_is_better() -> None:
    def of(rate: float, cost: float) -> Speed:
        return Speed(tokens_per_second=rate, cpu_seconds_per_kilotoken=cost, cpu_seconds={})

    found = summary({"swarm": [of(90, 2.0), of(30, 2.0), of(60, 2.0)], "plain": [of(120, 1.0)]})
    assert found["swarm_speed_over"] == {"plain": 0.5}
    assert found["swarm_best_speed_over"] == {"plain": 0.75}
    assert found["swarm_work_over"] == {"plain": 0.5}


def test_a_contender_that_never_ended_in_time_is_left_out() -> None:
    one = Speed(tokens_per_second=1.0, cpu_seconds_per_kilotoken=1.0, cpu_seconds={})
    assert summary({"swarm": [one], "plain": []})["swarm_speed_over"] == {}


@pytest.mark.parametrize(("loss", "within"), [(2.0, True), (2.0099, True), (2.0101, False)])
def test_half_a_percent_is_allowed(*, loss: float, within: bool) -> None:
    def run(val_loss: float, digest: str | None = None) -> Run:
        return Run(ended_at=[], cpu_seconds={}, val_loss=val_loss, weights_digest=digest)

    found = compare(run(loss, "same"), run(2.0), run(loss, "same"))
    assert found["within"] is within
    assert found["bit_equal_to_sums"] is True
