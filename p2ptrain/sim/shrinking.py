"""Makes a failing plan short: the same kind of end with fewer faults, peers and steps.

Greedy: try each smaller plan in turn, keep the first that still ends the same way, begin
again, until none does. What is left names the faults that matter.

Invariant: the result fails with the same end as the plan that was given; the number of runs
is bounded by ``runs_most``, and what was reached by then is returned.

Refused: delta debugging over subsets. A plan has at most a few faults and a dozen peers, so
one at a time ends as short in as few runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from p2ptrain.sim.swarms import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from p2ptrain.sim.swarms import Outcome, SwarmPlan

STAGES_LEAST, MICROBATCHES_LEAST = 2, 4
"""As drawn; below there are other stories than the one that failed."""

RUNS_MOST = 200
"""About two minutes: a plan has some thirty parts."""


def shrink(
    outcome: Outcome,
    *,
    runs_most: int = RUNS_MOST,
    runner: Callable[[SwarmPlan], Outcome] = run,
) -> Outcome:
    """The shortest plan found that still ends as ``outcome`` did, with what it came to."""
    runs = 0
    shorter = True
    while shorter:
        shorter = False
        for plan in _smaller(outcome.plan):
            if runs >= runs_most:
                return outcome
            runs += 1
            tried = runner(plan)
            if tried.end == outcome.end and _same_cause(tried, outcome):
                outcome, shorter = tried, True
                break
    return outcome


def _same_cause(one: Outcome, other: Outcome) -> bool:
    """A violated invariant must stay the same one."""
    return one.end != "violated" or one.reason[:2] == other.reason[:2]


def _smaller(plan: SwarmPlan) -> Iterator[SwarmPlan]:
    """Plans that are shorter by one part, the greatest relief first."""
    for index in range(len(plan.blows)):
        yield replace(plan, blows=plan.blows[:index] + plan.blows[index + 1 :])
    yield from _smaller_swarms(plan)
    even = {"corruption": 0.0, "jitter_seconds": 0.0, "rate_bytes_per_second": None}
    for name, plain in even.items():
        if getattr(plan, name) != plain:
            yield replace(plan, **{name: plain})
    if plan.retained is not None:
        yield replace(plan, retained=None)
    if len(set(plan.speeds)) > 1:
        yield replace(plan, speeds=plan.speeds[:1] * len(plan.speeds))


def _smaller_swarms(plan: SwarmPlan) -> Iterator[SwarmPlan]:
    if plan.steps > 1:
        yield replace(plan, steps=plan.steps - 1)
    if len(plan.speeds) > plan.stages * plan.replicas:  # fewer is another story: several seats
        for index in reversed(range(len(plan.speeds))):
            yield replace(plan, speeds=plan.speeds[:index] + plan.speeds[index + 1 :])
    if plan.replicas > 1:
        yield replace(plan, replicas=plan.replicas - 1)
    if plan.microbatches >= 2 * MICROBATCHES_LEAST:
        yield replace(plan, microbatches=plan.microbatches // 2)
    if plan.stages > STAGES_LEAST:
        yield replace(plan, stages=plan.stages - 1)
