"""Which seats this peer takes and gives away, and when.

    look at the roster (directory and heartbeats) every assign_seconds:
      no seat            -> claim the weakest stage, spread with who else comes, load, serve
      a hole that stands -> take it beside, where memory allows
      several seats      -> give away what others serve as well
      one seat           -> now and then, move it to a stage that needs it more
      draining           -> stay until others hold what only we hold, if there are others
      before step 0      -> wait until every stage is covered (see beginning)

A claim is an announcement in state "joining": others count it where it is going. What a
seat needs before it serves, ``loading`` fetches; what joiners need of ours, ``keeping`` saves;
how a seat is given up, ``handover`` knows, ``moving`` when to change stages, ``laggards`` what
becomes of a seat that fell behind, and ``rewinding`` of one that lost frames.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.assignment import choose_stage, release, spare_stage
from p2ptrain.core.levelling import level, spread
from p2ptrain.core.lineage import unserved
from p2ptrain.core.schedule import last_step
from p2ptrain.engine.beginning import LOOKS
from p2ptrain.engine.falling import Falling
from p2ptrain.engine.handover import Handover
from p2ptrain.engine.keeping import Keeper
from p2ptrain.engine.laggards import Laggards
from p2ptrain.engine.loading import Loader
from p2ptrain.engine.moving import Moves
from p2ptrain.engine.rewinding import Rewinding
from p2ptrain.engine.seat import SeatRuntime
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.core.assignment import Assignment, SeatState
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.units import PeerId, Seconds
    from p2ptrain.wire import messages as m

SPREAD_LOOKS = 8  # for the claims of fifty that come at once to be read and to settle
HOLE_SECONDS = 3.0  # a hole in a run that has begun: everybody waits. Time for a false suspicion
# to be taken back, for the claim of a newcomer to be seen, and after a rollback for all to follow
NEAR = 1  # stages: whom a seat talks to all the time


class Admission:
    """Takes and gives away the seats of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._shape: tuple[tuple[PeerId, Stage], ...] = ()
        self._hole_since: Seconds | None = None
        self._opening: set[Stage] = set()
        self._furthest = 0  # the highest version ever heard of: a run is never begun anew
        self._anew: list[Stage] = []  # to be taken again, after a rollback
        self._loader = Loader(node)
        self._falling = Falling(node)
        self._keeper = Keeper(node.links, node.snapshots, node.spawn, node.adoption.denies)
        self._handover = Handover(node)
        self._laggards = Laggards(node)
        self._moves = Moves(node, self._handover, self._take)
        self._rewinding = Rewinding(node, self._loader, self._take)

    async def run(self) -> None:
        """Look and act until cancelled."""
        node = self._node
        await node.presence.ready.wait()
        await node.resumption.begin()
        while True:
            node.roster.list(node.presence.seats())
            self._dial()
            self._furthest = max(self._furthest, node.roster.furthest())
            if self._furthest > last_step(node.spec):
                node.come_to_end()
            elif node.draining:
                node.parting.leave_in_vain()
            elif node.resumption.blocks():
                pass  # a run that was stopped is being put together again
            elif not (self._anew or node.seats) and self._hinted():
                pass  # whether the run has begun is learnt from those who are listed
            elif self._anew or not node.seats:
                await self._take_first()
            else:
                await self._adjust()
            node.presence.announce(node.statuses())
            node.beginning.look()
            node.parting.look()
            node.adoption.look()
            node.forks.look(asyncio.get_running_loop().time())
            node.lineage.look()
            node.snapshots.expire(asyncio.get_running_loop().time())
            self._look_down(asyncio.get_running_loop().time())
            await self._rewinding.look()
            if not self._laggards.look(asyncio.get_running_loop().time()):
                await asyncio.sleep(node.options.assign_seconds)

    def begin_anew(self, stages: tuple[Stage, ...]) -> None:
        """The run begins again, without what it had: take ``stages``, and wait for the others."""
        self._node.beginning.begin_anew()
        self._furthest = 0
        self._hole_since = None
        self._laggards.begin_anew()
        self._anew = [] if self._node.draining else list(stages)
        self._falling.begin_anew()

    def gives_up(self, seat: SeatRuntime) -> bool:
        """Whether ``seat`` is being given up, and everybody near can know (see handover)."""
        return self._handover.ripe(seat)

    def give_state(self, seat: SeatRuntime, peer: PeerId, message: m.WantManifest) -> None:
        """A joiner wants our state: as of a step that it names (see keeping)."""
        self._keeper.wanted(seat, peer, message)

    def deny(self, seat: SeatRuntime) -> None:
        """Call when ``seat`` waits for another's state: some can wait for ours no longer."""
        self._keeper.deny(seat)

    def stepped(self, seat: SeatRuntime) -> None:
        """Call when a seat of ours has begun its next step, or finished: joiners may wait."""
        self._handover.stepped(seat)
        self._keeper.stepped(seat)

    def closed(self, stage: Stage, reason: str) -> None:
        """Call when a seat of ours is given up: no more of its state is saved.

        What has been saved is given on, while somebody asks: a download need not start anew.
        """
        self._handover.closed(stage)
        self._keeper.closed(stage, reason)

    # --- looking ----------------------------------------------------------------------------

    def _dial(self) -> None:
        """Have links to everybody near our seats, and before the start to all: views must meet."""
        node = self._node
        ours = (*node.seats, *node.claims)
        near = {Stage(seat + offset) for seat in ours for offset in range(-NEAR, NEAR + 1)}
        for view in node.roster.callable_seats():
            if view.peer != node.me and (view.stage in near or not node.beginning.here):
                node.links.open(view.peer)
        for seat in node.seats.values():  # who counts with us, and the directory never showed us
            recorded = seat.stepper.members[max(0, seat.stage - NEAR) : seat.stage + NEAR + 1]
            for peer in sorted({peer for peers in recorded for peer in peers}):
                if not node.roster.has_met(peer):
                    node.links.open(peer)

    def _hinted(self) -> bool:
        """Whether only the directory says that the run has begun: anybody may write there.

        Those listed are being dialled; who answers tells its version, who does not is no more
        in the views. Of a later epoch we are told by who is linked; our own goes on if whole.
        Who is still seen in an older one tells nothing of ours.
        """
        node, views = self._node, self._node.roster.of_all_epochs()
        epoch = node.lineage.root.epoch
        ahead = any(view.epoch > epoch for view in views)
        foreign = ahead and bool(unserved(node.roster.views(), node.spec.cut.stages))
        begun = any(view.version for view in views if view.epoch >= epoch)
        return foreign or (begun and not self._furthest)

    async def _take_again(self) -> None:
        """After a rollback: what was served before; a stage that cannot be had is a hole."""
        root = self._node.lineage.root
        stages, self._anew = self._anew, []
        for stage in stages:
            if root == self._node.lineage.root and stage not in self._node.seats:
                await self._take(stage, f"the run begins again at step {root.step}")

    def _look_down(self, now: Seconds) -> None:
        """See whether a stage is lost, in a run that has begun."""
        node = self._node
        begun = self._furthest or node.lineage.root.epoch
        if begun and not (node.draining or node.resumption.waiting or node.ended.is_set()):
            self._falling.look(self._loader.foremost(), now)

    async def _take_first(self) -> None:
        if self._anew:
            await self._take_again()
            return
        node = self._node
        claimed = next(iter(node.claims), None)  # by a move that gave its old seat up first
        wanted = node.options.stage if claimed is None else claimed
        choice = choose_stage(
            node.roster.views(), stages=node.spec.cut.stages, rng=node.rng, wanted=wanted
        )
        begun = self._furthest or node.beginning.known or node.beginning.covered()
        if begun and wanted is None:  # before that, everybody moves freely: see _level
            choice = await self._spread(choice)
        await self._take(choice.stage, choice.reason)

    async def _spread(self, choice: Assignment) -> Assignment:
        """Claim, and move the claim where an even layout of all who come at once puts us.

        Cancelled, the claim stands until the peer is gone.
        """
        node, quiet = self._node, 0
        before: set[tuple[PeerId, Stage, SeatState]] = set()
        for _ in range(SPREAD_LOOKS):
            node.claims = {choice.stage: 0.0}
            node.statuses_changed()
            await asyncio.sleep(node.options.assign_seconds)
            node.roster.list(node.presence.seats())
            self._dial()
            views = node.roster.views()
            others = {(v.peer, v.stage, v.state) for v in views if v.peer != node.me}
            if others != before:  # rates alone change all the time, and are no reason to move
                move = spread(views, node.me, stages=node.spec.cut.stages)
                choice, quiet, before = move or choice, 0, others
            else:
                quiet += 1
            if quiet >= LOOKS:
                break
        node.claims = {choice.stage: 0.0}
        return choice

    async def _adjust(self) -> None:
        node, now = self._node, asyncio.get_running_loop().time()
        views, stages = node.roster.views(), node.spec.cut.stages
        if await self._level():
            return
        decision = release(views, node.me, stages=stages)
        if decision is not None:
            self._give_away(decision)
        elif node.beginning.here:
            self._moves.look(now)
        holes = set(range(stages)) - {view.stage for view in views if view.state != "draining"}
        if not holes or node.options.stage is not None:
            self._hole_since = None  # a demanded stage is the only one we serve
            return
        if self._hole_since is None:
            self._hole_since = now
        inherited = holes <= {view.stage for view in views}  # who leaves it waits for us
        patience = node.options.spare_seconds
        if node.beginning.known:
            patience = min(patience, HOLE_SECONDS)
        since = now - self._hole_since - (0.0 if inherited else patience)
        looks = int(max(0.0, since) / node.options.assign_seconds)
        hole = spare_stage(
            views, node.me, stages=stages, room=since >= 0, held=tuple(node.seats), looks=looks
        )
        if hole is not None and self._moves.room(hole.stage):
            await self._take(hole.stage, hole.reason)

    async def _level(self) -> bool:
        """Before step 0: move where an even layout puts us, once the view has settled."""
        node = self._node
        views = [view for view in node.roster.views() if not node.beginning.here]
        shape = tuple((view.peer, view.stage) for view in views)
        settled, self._shape = shape == self._shape, shape
        seat = next(iter(node.seats.values()))
        free = len(node.seats) == 1 and node.options.stage is None and self.untouched(seat)
        if not (settled and free) or any(view.version for view in views):
            return False
        move = level(views, node.me, stages=node.spec.cut.stages)
        if move is not None:
            node.close_seat(seat.stage, move.reason)
            await self._take(move.stage, move.reason)
        return move is not None

    def _give_away(self, decision: Assignment) -> None:
        """Announce the seat as draining; it is closed at the step boundary (gives_away)."""
        node, seat = self._node, self._node.seats[decision.stage]
        if not node.beginning.here and self.untouched(seat):
            node.close_seat(seat.stage, decision.reason)
        elif all(s.state == "serving" for s in node.seats.values()):
            self._handover.begin(seat)  # one at a time: the view changes with each

    @staticmethod
    def untouched(seat: SeatRuntime) -> bool:
        """Whether it holds nothing that the seed does not give anybody."""
        return seat.version == 0 and seat.pipeline.counted == 0 and seat.pipeline.drained

    # --- state ------------------------------------------------------------------------------

    async def _take(self, stage: Stage, reason: str) -> None:
        """Open a seat: at genesis with the initial weights, later with a replica's state."""
        if stage in self._opening or stage in self._node.seats:
            return  # a hole beside us may be where we are moving to
        self._opening.add(stage)
        try:
            await self._open(stage, reason)
        finally:
            self._opening.discard(stage)

    async def _open(self, stage: Stage, reason: str) -> None:
        node = self._node
        compute = await node.world.compute.open(stage)
        seat = SeatRuntime(node.around(), compute)
        claimed = node.claims.pop(stage, 0.0)
        if self._furthest:  # in a first step, who has a rate has computed some of it: see window
            rates = [claimed, *(each.pipeline.pace.rate for each in node.seats.values())]
            seat.pipeline.pace.inherit(max(rates))
        node.seats[stage] = seat
        node.statuses_changed()  # the claim
        seat.pipeline.corpus = await self._loader.corpus() if stage == 0 else None
        loaded = await self._loader.state(stage, compute, fresh=not self._furthest)
        if node.seats.get(stage) is not seat:
            return  # the run began again meanwhile
        if loaded is None or (stage == 0 and seat.pipeline.corpus is None):
            del node.seats[stage]
            node.statuses_changed()
            return
        position = loaded.at
        node.emit(ev.SeatOpened(stage=stage, version=position.step, reason=reason))
        seat.begin(position, loaded.members)
        seat.stepper.sums.learn(position, loaded.taken)
        node.statuses_changed()  # first: where there is no step record, who serves owns the data
        node.beginning.opened(seat, position)
        if position.step > 0:  # the step went on while we loaded: its sums may be out already
            self._laggards.opened(seat)
