"""Who keeps a copy of a stage's state beside the stage, so that no loss of replicas takes it along.

    stage s is at a step that is due --> its buddy, a seat of s+1 or s-1, pulls the state
    all replicas of s are gone       --> whoever takes s over gets it from there

Intuition: everybody near a stage ranks the same peers by the same hash, so nobody is asked
and nobody appointed; when the buddy goes, the next in rank is the buddy.

Invariants:
    * a buddy serves no seat of the stage that it guards: one machine's death is one death;
    * equal views give equal buddies; other views give one too many or too few for a while,
      which costs a copy or an older snapshot, never a wrong one.

Refused: every seat of the neighbours keeping a copy. One is enough for the loss of a stage,
and what the loss of more machines than that takes, a rollback gives back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2ptrain.core.schedule import rank

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from p2ptrain.units import PeerId, RunId, Stage, Step

DONORS: Final = 2
"""Asked by a buddy: as many as must give one and the same root."""


def due(every_steps: int, step: Step) -> bool:
    """Whether the state at the beginning of ``step`` is to be kept."""
    return every_steps > 0 and step > 0 and step % every_steps == 0


def buddy(run: RunId, stage: Stage, serving: Mapping[Stage, Collection[PeerId]]) -> PeerId | None:
    """Who guards ``stage``, given who serves what; None: there is nobody else.

    A seat of the stage above, where one of those may: they hear each other and the stage that
    they guard at first hand. Else of the stage below; a stage further off only at need.
    """
    own = set(serving.get(stage, ()))
    by_distance = sorted(serving, key=lambda other: (abs(other - stage), -other))
    for other in by_distance:
        if ranked := rank("buddy", run, stage, set(serving[other]) - own):
            return ranked[0]
    return None


def wards(run: RunId, me: PeerId, serving: Mapping[Stage, Collection[PeerId]]) -> tuple[Stage, ...]:
    """The stages that ``me`` guards, in order."""
    return tuple(stage for stage in sorted(serving) if buddy(run, stage, serving) == me)


def donors(
    run: RunId, stage: Stage, step: Step, replicas: Collection[PeerId]
) -> tuple[PeerId, ...]:
    """Whom a buddy asks for the state of ``step``: others each time, for it costs them a copy."""
    return rank("donor", run, f"{stage}/{step}", replicas)[:DONORS]
