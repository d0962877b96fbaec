"""A stage is lost: whether it can be restored, where the run falls back to, or that it ends.

    every stage is served <--> one is not: said after NOTED_SECONDS
                                 |  for PATIENCE_SECONDS (VANISHED_SECONDS, if those who
                                 |  served it died): ask all what they hold
                                 |- it can be restored: wait for whoever takes it, unless that is
                                 |  a step behind, and has counted nothing for STUCK_SECONDS
                                 |- a rollback: declare it
                                 `- neither, for GIVE_UP_SECONDS: the run is given up

Intuition: a stage whose peer is frozen or cut off comes back by itself, and one that a buddy
guards comes back without anybody falling back. So falling back waits until neither has
happened, and giving up until nobody has come with a disk either. Who was killed does not
come back by itself: his links broke, which those of the frozen do not.

Invariants:
    * whoever decides has asked everybody it is linked with, and decides by core/lineage alone;
    * no wait is without an end.

Refused: a leader who decides. Whoever sees the loss may; the rollback that beats the others
is everybody's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.lineage import Known, beginning, fall, possible, unserved
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Collection

    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.units import Seconds, Stage, Step

NOTED_SECONDS = 5.0
"""Before it is told that training waits: a link that broke is there again by then."""

PATIENCE_SECONDS = 20.0
"""From the first look that misses a stage: longer than the machines of a home sleep over."""

VANISHED_SECONDS = 8.0
"""Where the links of all who served it broke: longer than a p2pd takes to be started again, and
than a peer that can restore it takes to begin. Not for who has no link left: they may be his."""

STUCK_SECONDS = 45.0
"""Without a microbatch counted in a stage that stands a step behind all others: what it needs is
asked for again every few seconds, so nobody has it. (It had taken that step before it was lost.)"""

GIVE_UP_SECONDS = 120.0
"""As long as a peer with a disk may take to be started again by hand, or a machine to boot."""


class Falling:
    """Watches over the stages of one node's run. Call :meth:`look` every second or so."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: Seconds | None = None
        self._still: Seconds = 0.0  # since when our seats behind the others have counted nothing
        self._counted: dict[Stage, int] = {}
        self._asking = False
        self._told = ""
        self._noted = False  # said that training waits

    def look(self, version: Step, now: Seconds) -> None:
        """``version``: where the run stands, as far as is known; it has begun."""
        behind = self._behind(version)
        if behind != self._counted or not behind:
            self._counted, self._still = behind, now
        stuck = now - self._still >= STUCK_SECONDS
        if not (self._lost() or stuck):
            self._since, self._told, self._noted = None, "", False
            return
        if self._since is None:
            self._since = now
        if now - self._since >= NOTED_SECONDS and not self._noted:
            self._note()
        if (stuck or now - self._since >= self._patience()) and not self._asking:
            self._asking = True
            over = now - self._since >= GIVE_UP_SECONDS
            self._node.spawn(self._decide(version, behind.keys() if stuck else (), over=over))

    def begin_anew(self) -> None:
        """The run has fallen back: whoever serves what is to be seen again."""
        self._since, self._told, self._counted, self._noted = None, "", {}, False

    def _behind(self, version: Step) -> dict[Stage, int]:
        """Our stages of which nobody is as far as the others, and what we have counted of them."""
        roster, found = self._node.roster, {}
        for stage, seat in sorted(self._node.seats.items()):
            mates = [view.version for view in roster.present(stage)]
            if seat.position is not None and max([seat.version, *mates]) < version:
                found[stage] = seat.pipeline.counted
        return found

    def _patience(self) -> Seconds:
        node = self._node
        died = bool(node.links.peers()) and all(map(node.roster.vanished, self._lost()))
        return VANISHED_SECONDS if died else PATIENCE_SECONDS

    def _note(self) -> None:
        lost = ", ".join(map(str, self._lost()))
        if lost:
            self._noted = True
            self._node.emit(ev.Alarm(reason=f"nobody serves stage {lost}: training waits"))

    def _lost(self) -> list[Stage]:
        return unserved(self._node.roster.views(), self._node.spec.cut.stages)

    async def _decide(self, version: Step, stuck: Collection[Stage], *, over: bool) -> None:
        node = self._node
        root = node.lineage.root
        try:
            for view in node.roster.callable_seats():
                node.links.open(view.peer)
            others = await node.holdings.of_others()
            most = version if node.seats else max(version, node.roster.furthest())
            told = (one for word in others.values() for one in word.held)
            theirs = possible(told, most, node.lineage.past)
            held = [*await node.holdings.ours(), *theirs]
        finally:
            self._asking = False
        lost = self._lost()
        if not (lost or stuck) or node.lineage.root != root:
            return
        stages, every = node.spec.cut.stages, node.spec.checkpoint.every_steps
        genesis = genesis_chain(node.run_id)
        held += beginning(genesis, version, stages=stages, every_steps=every)
        known = Known(held=tuple(held), let_go=node.holdings.let_go(others))
        found = fall(root, version, lost, known, stages=stages, stuck=stuck)
        if found.to is not None:
            node.lineage.declare(found.to, found.reason)
        elif over and found.lost:
            node.give_up(found.reason)
        elif found.lost and found.reason != self._told:
            self._told = found.reason
            node.emit(ev.Alarm(reason=f"{found.reason}; waiting for somebody who holds it"))
