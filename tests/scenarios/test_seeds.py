"""Random swarms: no invariant breaks, and every fault and failpoint was met (see test_rare, too).

Liveness stands apart from safety. A swarm that stalls is a failure as well, named with the
seed and the commit that repeat it.

`make soak` runs as many as there is time for; these are what fits beside all other tests, and
runs there while those do (conftest).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from p2ptrain.sim.blows import BLOW_KINDS
from p2ptrain.sim.drawing import PLAIN
from p2ptrain.sim.points import PHASES
from peers.soak import Totals, describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    from p2ptrain.sim.swarms import Outcome

TIMES_LEAST = 20
"""How often each kind of fault must have fired, and each point and phase been struck at."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # minutes on two cores


@pytest.fixture
def totals(soaking: Future[Totals]) -> Totals:
    return soaking.result()


def is_liveness(outcome: Outcome) -> bool:
    """It stood still, for a while (I3) or for good; nothing false was said."""
    only_late = outcome.reason.startswith("I3") and ";" not in outcome.reason
    return outcome.end == "stalled" or (outcome.end == "violated" and only_late)


def failures(totals: Totals, *, liveness: bool) -> str:
    return "\n".join(map(describe, (e for e in totals.failures if is_liveness(e) is liveness)))


def seldom(times: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    return {name: times.get(name, 0) for name in names if times.get(name, 0) < TIMES_LEAST}


def test_every_seed_was_run(totals: Totals) -> None:
    assert totals.ends.total() == 2000
    assert totals.ends["trained"] > 0.85 * 2000  # most of the others lost a stage


def test_no_invariant_is_violated_and_nothing_crashes(totals: Totals) -> None:
    assert not failures(totals, liveness=False)


def test_no_swarm_stands_still(totals: Totals) -> None:
    assert not failures(totals, liveness=True)


def test_every_kind_of_fault_has_fired(totals: Totals) -> None:
    assert seldom(totals.by_kind(), BLOW_KINDS) == {}


def test_something_has_struck_at_every_failpoint(totals: Totals) -> None:
    assert seldom(totals.by_point(), PLAIN) == {}


def test_something_has_struck_in_every_phase_of_a_round(totals: Totals) -> None:
    struck = totals.by_point()
    phases = {phase: sum(struck.get(name, 0) for name in names) for phase, names in PHASES.items()}
    assert seldom(phases, PHASES) == {}
