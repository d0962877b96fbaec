"""Lineages: which history of the run holds, after it has fallen back, or has come in two.

    a lineage begins   at (epoch, step, chain): at the genesis, or where a rollback let it begin
    a stage is lost, and nobody alive can give its state where the others wait
        every stage's state of some step is held   --> a rollback to the newest such step
        the run is so short that no state was due   --> a rollback to its beginning
        else                                        --> the run is lost
    of two lineages    the higher epoch holds, then the higher step, then the smaller chain
    who is told of one that beats its own, and has no loss to see --> follows once that is whole

Intuition: steps are pure, so two sides of a partition that only go on are one lineage however
far apart they are. Two come of rollbacks alone, and where a lineage begins never changes: all
who compare the same two choose the same one, whenever they look.

Invariants:
    * ``beats`` is a strict order of all lineages of a run;
    * a rollback begins where every stage's state is, of one chain, and one epoch above; never
      where whoever decides knows that nobody can have been;
    * a state belongs to a lineage if it was taken in its epoch, or is what it began with.

Refused: choosing the side that got further. How far it is changes while they compare, and
each could choose the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2ptrain.core.agreement import Message, Position
from p2ptrain.core.canonical import canonical
from p2ptrain.core.checkpoint import KEPT
from p2ptrain.core.resuming import Holding, origin
from p2ptrain.units import PeerId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from p2ptrain.core.assignment import SeatView
    from p2ptrain.units import Chain, RunId

LEAP_MOST: Final = 64
"""Epochs at once: more rollbacks than that behind one's back are a lie, and an epoch without
bound would leave no room for the next."""


class Rollback(Message, frozen=True, tag=True):
    """The run begins again ``at`` this position. ``peer`` has decided it, and signs."""

    at: Position
    peer: PeerId
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What everybody alive says.

    ``held``: the states that they hold, or can make (see :func:`beginning`). ``let_go``: stages,
    and the step that somebody beside them cannot help to count again: its frames are gone.
    """

    held: tuple[Holding, ...]
    let_go: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """What becomes of a run that lost a stage: ``to`` where it falls back, and why.

    ``to`` None: it does not, because the stage can be restored (``lost`` False), or because
    there is nothing to fall back to.
    """

    to: Position | None
    reason: str
    lost: bool = False


def rollback_bytes(run: RunId, rollback: Rollback) -> bytes:
    """What the signature of a rollback covers."""
    at = rollback.at
    return canonical("p2ptrain rollback", run, rollback.peer, at.epoch, at.step, at.chain)


def beats(one: Position, other: Position) -> bool:
    """Whether the lineage that begins at ``one`` holds against the one of ``other``."""
    if (one.epoch, one.step) != (other.epoch, other.step):
        return (one.epoch, one.step) > (other.epoch, other.step)
    return one.chain < other.chain


def doubt(
    root: Position,
    at: Position,
    *,
    lost: Collection[Stage],
    there: bool,
    known: Chain | None,
) -> str:
    """Why a peer of lineage ``root`` does not go back to ``at``, told by another; '': it does.

    Args:
        root: where our lineage begins.
        at: where the other one's does; it beats ours.
        lost: the stages that nobody serves in our lineage.
        there: the other lineage is whole, as far as we hear of it.
        known: the chain with which we have been at that step, if that can only have been one.
    """
    if there:
        return ""
    if not lost:
        return "every stage is served here"
    ours = known is None or at.epoch != root.epoch + 1 or at.chain == known
    return "" if ours else "it names another history than ours"


def unserved(views: Iterable[SeatView], stages: int) -> list[Stage]:
    """The stages that nobody serves, of those that are known."""
    served = {view.stage for view in views if view.state != "joining"}
    return [Stage(stage) for stage in range(stages) if stage not in served]


def admits(root: Position, at: Position) -> bool:
    """Whether a state that was taken ``at`` is one of the lineage that begins at ``root``."""
    return (at.step, at.chain) == (root.step, root.chain) or (
        at.epoch == root.epoch and at.step > root.step
    )


def fitting(root: Position, version: Step, stage: Stage, known: Known) -> list[Position]:
    """Of the states of a lost stage those that will do while the others wait at ``version``.

    The step before will do as well: the others may have stepped on with the lost stage's sum,
    and keep that step's frames until they have heard that all there are through it
    (engine/past). Who had heard it has let them go. Older ones will not. Newest first.
    """
    gone = {(one.at.step, one.at.chain) for one in known.let_go if one.stage == stage}
    fit = {
        one.at
        for one in known.held
        if one.stage == stage
        and version - 1 <= one.at.step <= version
        and admits(root, one.at)
        and (one.at.step == version or (one.at.step, one.at.chain) not in gone)
    }
    return sorted(fit, key=lambda at: (at.step, at.epoch, at.chain), reverse=True)


def beginning(genesis: Chain, version: Step, *, stages: int, every_steps: int) -> list[Holding]:
    """What everybody can make of the seed, where a run at ``version`` may fall back to that.

    No further than to the older of the two states that would be kept: it is those steps that
    ``checkpoint.every_steps`` puts at risk, not the whole run.
    """
    near = every_steps and version <= KEPT * every_steps
    at = Position(epoch=0, step=Step(0), chain=genesis)
    return [Holding(stage=Stage(stage), at=at) for stage in range(stages if near else 0)]


def possible(held: Iterable[Holding], version: Step, past: Mapping[Step, Chain]) -> list[Holding]:
    """Of what others say that they hold, what somebody can have while the run is at ``version``.

    ``past``: with which chain we have been at a step, where that can only have been one. Who
    fell back to anything else would find nobody who has it, and the run would end there.
    """
    return [
        one
        for one in held
        if one.at.step <= version + 1  # of those that we have not heard yet
        and past.get(one.at.step, one.at.chain) == one.at.chain
    ]


def fall(
    root: Position,
    version: Step,
    lost: Collection[Stage],
    known: Known,
    *,
    stages: int,
    stuck: Collection[Stage] = (),
) -> Fall:
    """Decide for a run at ``version`` whose stages ``lost`` nobody serves.

    ``stuck``: stages of which only the step before was left, and nobody has its frames any more.
    """
    missing = [
        stage
        for stage in sorted({*lost, *stuck})
        if stage in stuck or not fitting(root, version, stage, known)
    ]
    if not missing:
        return Fall(to=None, reason="every lost stage can be restored")
    which = ", ".join(map(str, missing))
    ours = [one for one in known.held if one.at.step <= root.step or admits(root, one.at)]
    found = origin(ours, stages)
    if found.at is None:
        return Fall(to=None, reason=f"stage {which} is lost: {found.reason}", lost=True)
    to = Position(epoch=root.epoch + 1, step=found.at.step, chain=found.at.chain)
    return Fall(to=to, reason=f"nobody holds stage {which} at step {version}: {found.reason}")
