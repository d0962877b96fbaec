"""From where a swarm that was stopped goes on: the newest step that all stages can restore.

Everybody who has come back says which states it holds on disk. A state is named by its stage
and its position (epoch, step, chain); states of one position belong together, since a chain
covers all stages. So the decision needs no vote: whoever hears the same peers decides the same,
and whoever hears more of them later decides for a newer position, never for an older one.

    nobody holds anything                     nothing to resume
    some position is held for every stage     the newest such: highest epoch, then highest step
    else                                      wait for peers that hold the rest

Invariant: more holders never give an older origin. Peers decide again until the first step
commits, so views that differ for a while end in one.

Refused: a leader who decides. It would have to be found, believed and replaced, in order to
compute a maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Message, Position
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable


class Holding(Message, frozen=True, array_like=True):
    """A state that somebody can give: of ``stage``, at the beginning of ``at.step``."""

    stage: Stage
    at: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """From where to go on, if from anywhere, and why.

    ``at`` None: there is none yet. ``empty``: nobody holds anything at all.
    """

    at: Position | None
    reason: str
    empty: bool = False


def origin(holdings: Iterable[Holding], stages: int) -> Origin:
    """Decide. ``holdings``: of everybody who is here, in any order."""
    held: dict[Position, set[Stage]] = {}
    for one in holdings:
        held.setdefault(one.at, set()).add(one.stage)
    if not held:
        return Origin(at=None, reason="nobody here holds a checkpoint", empty=True)
    everything = {Stage(stage) for stage in range(stages)}
    # Equal steps of different chains: any rule will do, as long as all have the same.
    newest_first = sorted(held, key=lambda at: (at.epoch, at.step, at.chain), reverse=True)
    for at in newest_first:
        if held[at] >= everything:
            fallen = newest_first[0].step - at.step
            behind = f", {fallen} steps behind the newest" if fallen else ""
            return Origin(at=at, reason=f"every stage has a checkpoint of step {at.step}{behind}")
    return Origin(at=None, reason=_missing(held, everything))


def _missing(held: dict[Position, set[Stage]], everything: set[Stage]) -> str:
    nowhere = sorted(everything - set().union(*held.values()))
    if nowhere:
        return f"nobody here holds a checkpoint of stage {', '.join(map(str, nowhere))}"
    steps: dict[Stage, list[int]] = {}
    for at, stages in held.items():
        for stage in stages:
            steps.setdefault(stage, []).append(at.step)
    each = (
        f"stage {stage} has {', '.join(map(str, sorted(steps[stage])))}" for stage in sorted(steps)
    )
    return f"no step is held for every stage: {'; '.join(each)}"
