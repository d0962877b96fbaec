"""The protocol must not cost what the pipeline saves. Deterministic: virtual time."""

import pytest

from benchmarks.bubble import Case, efficiency


@pytest.mark.parametrize("microbatch_seconds", [0.006, 0.06])
def test_two_peers_come_near_to_what_1f1b_reaches(microbatch_seconds: float) -> None:
    case = Case(
        stages=2,
        replicas=1,
        microbatches=16,
        microbatch_seconds=microbatch_seconds,
        latency_seconds=0.0002,
    )
    assert case.bound == pytest.approx(16 / 17)
    assert 0.9 * case.bound < efficiency(case) <= case.bound
