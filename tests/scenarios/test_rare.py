"""Random swarms that are struck where the plain ones are not: nothing breaks, all was struck at.

Copies beside each stage, slots handed from one seat of stage 0 to another, a stage lost and the
run fallen back: each step of them is a failpoint.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from p2ptrain.sim.drawing import RARE
from peers.soak import Totals, describe, soak

SEEDS = range(240)  # a minute and a half on two cores of their own

TIMES_LEAST = 20
"""How often each point must have been struck at, as in the plain ones."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # others may use the cores as well


@pytest.fixture(scope="module")
def totals() -> Totals:
    return asyncio.run(soak(SEEDS, workers=os.cpu_count() or 1, kind="rare"))


def test_none_fails_and_nearly_all_train(totals: Totals) -> None:
    assert not totals.failures, "\n".join(map(describe, totals.failures))
    assert totals.ends.total() == len(SEEDS)
    assert totals.ends["trained"] > 0.9 * len(SEEDS)


def test_something_has_struck_at_every_point_that_they_are_about(totals: Totals) -> None:
    struck = totals.by_point()
    assert {name: times for name in RARE if (times := struck.get(name, 0)) < TIMES_LEAST} == {}
