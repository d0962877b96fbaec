"""SUMs of one seat beside those that its round machine waits for: early, late, and to be given.

    a SUM of the next step   -> kept until that step is taken up
    a SUM of the last step   -> who tells another than the one we stepped with is told ours
    a Plan of the last step  -> answered with its SUM: the adopt rule, one step late

Invariants: of the next step one SUM for each stage is kept, the one that counts (core/choice);
the integers of a sum are given only while compute holds exactly those that the SUM names.

Refused: the machine keeping what belongs to other steps. It is drawn for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.chain import sum_digest
from p2ptrain.core.choice import precedes

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Plan, Position, Sum
    from p2ptrain.engine.committing import Committer, Done
    from p2ptrain.engine.driving import Driver
    from p2ptrain.engine.post import Post
    from p2ptrain.units import PeerId, Stage


class Sums:
    """See the module. ``canonical``: arithmetic differs among the peers of the run."""

    def __init__(self, stage: Stage, driver: Driver, committer: Committer, post: Post) -> None:
        self._stage, self._driver, self._committer, self._post = stage, driver, committer, post
        self._early: dict[Stage, tuple[PeerId, Sum]] = {}
        self._last_held = False  # the whole sum of the last step is still in compute
        self._canonical = False

    def begin(self, *, canonical: bool) -> list[tuple[PeerId, Sum]]:
        """A step is about to be taken up; returns what was heard of it before, and from whom."""
        machine, last = self._driver.machine, self._committer.last
        self._canonical = canonical
        self._last_held = bool(machine and last and machine.holds(last.sums[self._stage]))
        early, self._early = self._early, {}
        return [heard for _, heard in sorted(early.items())]

    def elsewhere(self, peer: PeerId, whole: Sum) -> None:
        """``peer`` tells a SUM of another step than the present."""
        machine, last = self._driver.machine, self._committer.last
        if machine is not None and whole.at.step == machine.at.step + 1:
            known = self._early.get(whole.stage)
            if known is None or not (self._canonical and precedes(known[1], whole)):
                self._early[whole.stage] = (peer, whole)
        elif self._canonical and last is not None and whole.at == last.at and not whole.final:
            taken = self._taken(last)[whole.stage]
            if sum_digest(taken) != sum_digest(whole):
                self._post.tell(peer, taken)

    def late(self, peer: PeerId, plan: Plan) -> None:
        """``peer`` plans at a position that is not the present one."""
        last = self._committer.last
        if last is not None and plan.at == last.at:
            self._post.tell(peer, self._taken(last)[self._stage])

    def known(self, at: Position) -> dict[Stage, Sum]:
        """The SUMs that we know of a position, this one or the last, as we tell them."""
        machine, last = self._driver.machine, self._committer.last
        if machine is not None and at == machine.at:
            return machine.told()
        if last is not None and at == last.at:
            return {whole.stage: whole for whole in self._taken(last)}
        return {}

    def held(self, at: Position) -> Sum | None:
        """The SUM of our stage whose integers can be given; it may still be stepping."""
        machine, last = self._driver.machine, self._committer.last
        if machine is not None and at == machine.at:
            whole = machine.sums.get(self._stage)
            return whole if whole is not None and machine.holds(whole) else None
        held = last is not None and at == last.at and self._last_held
        return last.sums[self._stage] if last is not None and held else None

    def _taken(self, done: Done) -> tuple[Sum, ...]:
        return done.told() if self._canonical else done.sums
