"""A swarm that was stopped goes on: who holds what, from where, and how a state gets there.

    WAITING   tell everybody what our disk holds, claim a stage, listen
       |- a peer that has taken steps is heard --> an ordinary joiner: the run is alive
       |- nobody holds anything for a while    --> begin at step 0, like everybody
       `- every stage is held at some step, seen SETTLE_LOOKS times alike (core/resuming)
    PLACED    seats stand at that step, from our disk or from whoever holds it; a newer origin
              moves them, until somebody's first step
    OVER      a step has been taken here

Peers without ``resume`` take part once they hear of somebody who waits, or one of them would
begin the run anew beside the others. Who holds the states of several stages gives them to
whoever serves there.

Invariants:
    * nothing is taken from a disk or a peer that does not match a root;
    * once a step was taken here, nothing of this module moves a seat;
    * wherever peers place themselves, the steps that follow are the same: a step is a pure
      function of its weights, so a wrong view costs time and nothing else.

Refused: announcing checkpoints in the directory. Its records outlive their owners by a minute,
and a swarm that waits for the dead does not start.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.assignment import choose_stage
from p2ptrain.core.resuming import Holding, origin
from p2ptrain.core.schedule import last_step
from p2ptrain.engine.archive import Archive
from p2ptrain.engine.pulling import Pulled
from p2ptrain.errors import LinkError
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage
from p2ptrain.wire.messages import Held

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.units import PeerId, Seconds
    from p2ptrain.wire.messages import WantManifest

SETTLE_LOOKS = 3  # alike, a second apart: links of those who start together are up by then
UNHEARD_SECONDS = 15.0  # for a peer that the directory lists: dialled twice, and it may be dead
EMPTY_SECONDS = 20.0  # until nobody holds anything: peers of one script start within that


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What one look says; ``at`` is the origin's."""

    kind: Literal["live", "wait", "anew", "origin"]
    reason: str
    at: Position | None = None


class Resumption:
    """How one node comes back. Call :meth:`begin` once, then :meth:`blocks` at every look."""

    def __init__(self, node: Node) -> None:
        self.archive = Archive.of(node)
        self.origin: Position | None = None
        self.anew = False  # nobody holds anything: whatever old records say, it is step 0
        self._node = node
        self._own: tuple[Holding, ...] = ()
        self._waiting: dict[PeerId, tuple[Holding, ...]] = {}
        self._over = False
        self._told = False
        self._began: Seconds = 0.0
        self._view = _View(kind="wait", reason="")
        self._looks = 0
        self._giving = asyncio.Lock()

    @property
    def waiting(self) -> bool:
        """Whether this peer waits, with others, for the run's first step since its stop."""
        return not self._over and (self._node.options.resume or bool(self._waiting))

    async def begin(self) -> None:
        """Look what the disk holds; reads all of it."""
        self._began = _now()
        if self._node.options.resume and self.archive is not None:
            self._own = await self.archive.survey()

    # --- what others hold -------------------------------------------------------------------

    def heard(self, peer: PeerId, message: Held) -> None:
        """What ``peer`` holds, or that it waits no longer."""
        if message.waiting:
            self._waiting[peer] = message.held
        else:
            self._waiting.pop(peer, None)

    def up(self, peer: PeerId) -> None:
        """A link to ``peer`` is up: it must know what we hold."""
        if self.waiting:
            self._node.mail.tell(peer, self._word())

    def down(self, peer: PeerId) -> None:
        """What ``peer`` holds is out of reach."""
        self._waiting.pop(peer, None)

    def stepped(self) -> None:
        """A seat of ours has taken a step: the run goes on."""
        if not self._over:
            told, self._over, self.origin = self._told, True, None
            if told:
                self._tell_all()

    # --- looking ----------------------------------------------------------------------------

    def blocks(self) -> bool:
        """Look; whether no seat may be taken yet."""
        if not self.waiting:
            self.origin = None
            return False
        if not self._told:
            self._told = True
            self._tell_all()
        view = self._look(_now())
        self._looks = self._looks + 1 if view == self._view else 1
        self._view = view
        if self._looks < SETTLE_LOOKS or view.kind == "wait":
            if self._looks == SETTLE_LOOKS:
                self._node.emit(ev.Alarm(reason=f"waiting to resume: {view.reason}"))
            self._claim(None)
            return True
        self.origin, self.anew = view.at, view.kind == "anew"
        if self._looks == SETTLE_LOOKS and view.kind == "origin":
            self._place(view)
        return False

    def _look(self, now: Seconds) -> _View:
        node, waited = self._node, now - self._began
        stages = node.spec.cut.stages
        for stage in range(stages):
            for seat in node.roster.present(Stage(stage)):
                if seat.version and seat.peer != node.me and seat.peer not in self._waiting:
                    return _View(kind="live", reason="the run is alive")
        linked = {node.me, *node.links.peers()}
        unheard = {seat.peer for seat in node.presence.seats()} - linked
        if unheard and waited < UNHEARD_SECONDS:
            return _View(kind="wait", reason=f"{len(unheard)} peers are listed and silent")
        held = [*self._own, *(one for each in self._waiting.values() for one in each)]
        found = origin(held, stages)
        if found.empty and waited >= EMPTY_SECONDS:
            return _View(kind="anew", reason=found.reason)
        return _View(
            kind="wait" if found.at is None else "origin", reason=found.reason, at=found.at
        )

    def _place(self, view: _View) -> None:
        """The origin is settled: leave what stands elsewhere, and go where our own state is."""
        node = self._node
        assert view.at is not None
        node.emit(ev.Resumed(version=view.at.step, reason=view.reason))
        if view.at.step > last_step(node.spec):
            node.come_to_end()
            return
        if view.at.epoch > node.lineage.root.epoch:  # it had fallen back before it was stopped
            node.lineage.declare(view.at, view.reason)
        for stage, seat in sorted(node.seats.items()):
            if seat.position is not None and seat.position != view.at:
                node.close_seat(stage, f"resuming from step {view.at.step}")
        self._claim(view.at)

    def _claim(self, at: Position | None) -> None:
        """Claim a stage, so that others know of us: one whose state we hold, if there is one."""
        node = self._node
        held = {one.stage for one in self._own if at is None or one.at == at}
        if node.seats or (node.claims and (not held or held & node.claims.keys())):
            return
        views = [view for view in node.roster.views() if view.peer != node.me]
        wanted = node.options.stage
        if wanted is None and held:
            crowd = {stage: sum(view.stage == stage for view in views) for stage in held}
            wanted = min(held, key=lambda stage: (crowd[stage], node.rng.random()))
        choice = choose_stage(views, stages=node.spec.cut.stages, rng=node.rng, wanted=wanted)
        if set(node.claims) != {choice.stage}:
            node.claims = {choice.stage: 0.0}
            node.statuses_changed()

    # --- states -----------------------------------------------------------------------------

    async def fetch(self, stage: Stage) -> Pulled:
        """The state of ``stage`` at the origin: ours, or of those who hold it.

        Raises:
            LinkError: nobody gives it.
        """
        at = self.origin
        assert at is not None
        found = await self._read(stage, at)
        if found is not None:
            return found
        node = self._node
        donors = {
            peer for peer, held in self._waiting.items() if Holding(stage=stage, at=at) in held
        }
        donors |= {seat.peer for seat in node.roster.present(stage) if seat.version == at.step}
        if not donors - {node.me}:
            raise LinkError(f"nobody here holds step {at.step} of it")
        pulled = await node.snapshots.pull(stage, sorted(donors - {node.me}), version=at.step)
        if pulled.at != at and pulled.at.step <= at.step:
            raise LinkError(f"what others hold of it has another history up to step {at.step}")
        return pulled

    def give(self, peer: PeerId, message: WantManifest) -> bool:
        """``peer`` wants a state of which we have no seat: from our disk, if it is there."""
        at = self.origin
        if at is None or at.step != message.version:
            return False
        if Holding(stage=message.stage, at=at) not in self._own:
            return False
        self._node.spawn(self._give(peer, message, at))
        return True

    async def _give(self, peer: PeerId, message: WantManifest, at: Position) -> None:
        snapshots, stage = self._node.snapshots, message.stage
        async with self._giving:  # a state is large: one at a time, and once for all who ask
            if not snapshots.holds(stage, message.version):
                found = await self._read(stage, at)
                if found is not None:
                    await snapshots.offer(stage, at, found.members, found.blob)
        snapshots.handle(peer, message)

    async def _read(self, stage: Stage, at: Position) -> Pulled | None:
        """From our disk, without the members of a record whose peers may be gone."""
        state = None if self.archive is None else await self.archive.read(stage, at)
        if state is None:
            return None
        nobody: tuple[tuple[PeerId, ...], ...] = tuple(
            () for _ in range(self._node.spec.cut.stages)
        )
        return Pulled(at=at, members=nobody, blob=state, sources=(self._node.me,))

    # --- words ------------------------------------------------------------------------------

    def _word(self) -> Held:
        return Held(held=self._own, waiting=self.waiting)

    def _tell_all(self) -> None:
        self._node.mail.tell_all(self._node.links.peers(), self._word())


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
