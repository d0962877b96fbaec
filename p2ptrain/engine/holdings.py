"""Which states exist outside the seats: in our archives and in those of others.

    WantHeld --> Held: everything with a header in our memory and on our disk, and which
                 stages beside us could not count their last step again (engine/past)
    WantManifest of a stage that we do not serve --> from there, whole and checked, or NoSuch
    a stage without replicas --> ours, else of those who hold it (asked now, not remembered:
                                 what somebody held a minute ago has been replaced)

Invariants:
    * nothing is taken or given that does not match its root;
    * that frames are gone is believed of those who have, or had, a seat that kept them;
    * every question ends: when all have answered or gone, or after ANSWER_SECONDS;
    * however often others ask: one look at the archives at a time, and one wish waits for each
      peer and stage.

Refused: telling everybody at every step. Nobody needs it until a stage is lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.lineage import Known, fitting
from p2ptrain.engine.archive import Archive
from p2ptrain.engine.attic import Attic
from p2ptrain.engine.past import let_go
from p2ptrain.engine.pulling import Pulled
from p2ptrain.errors import LinkError
from p2ptrain.units import Stage
from p2ptrain.wire.messages import Held, WantHeld, WantManifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.resuming import Holding
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import PeerId, Step

ANSWER_SECONDS = 3.0  # a disk is read and a line crossed; who takes longer is asked again later


class Holdings:
    """The states within reach of one node. ``disk``: what outlives it, if it has one."""

    def __init__(self, node: Node, disk: Archive | None) -> None:
        self._node, self._disk = node, disk
        every = node.spec.checkpoint.every_steps
        self.memory = Archive(
            Attic(), node.run_id, every, emit=node.emit, spawn=node.spawn, lasting=False
        )
        self._archives = [archive for archive in (disk, self.memory) if archive is not None]
        self._heard: dict[PeerId, Held] = {}
        self._awaited: set[PeerId] = set()
        self._answered = asyncio.Event()
        self._asking: set[PeerId] = set()  # who waits for a word of what we hold
        self._wishes: dict[tuple[PeerId, Stage], WantManifest] = {}
        self._telling = self._giving = False

    def stepped(self, seat: SeatRuntime) -> None:
        """``seat`` stands at a step boundary: its own state is kept, if that is due."""
        (self._disk or self.memory).stepped(seat)
        if self._node.draining and seat.parting and not self._node.parting.heirs():
            self.leave(seat)

    def leave(self, seat: SeatRuntime) -> None:
        """``seat`` is left and all others go as well: what is on the disk is all that is left.

        Not while anybody stays: a save that others have no match for would push one out that
        they have.
        """
        if self._disk is not None:
            self._disk.leave(seat)

    # --- what there is ----------------------------------------------------------------------

    async def ours(self) -> tuple[Holding, ...]:
        """What our archives hold, each once; their states are not read."""
        return tuple(dict.fromkeys([h for a in self._archives for h in await a.holdings()]))

    def let_go(self, others: Mapping[PeerId, Held] | None = None) -> tuple[Holding, ...]:
        """Which stages beside our seats, or those of ``others``, those cannot help any more."""
        seats = sorted(self._node.seats.items())
        ours = [let_go(s, seat.stepper.last, seat.pipeline.past) for s, seat in seats]
        told = [(peer, one) for peer, word in (others or {}).items() for one in word.let_go]
        theirs = [one for peer, one in told if self._beside(peer, one.stage)]
        return (*(one for each in ours for one in each), *theirs)

    def _beside(self, peer: PeerId, stage: Stage) -> bool:
        """Whether ``peer`` has a seat beside ``stage``, or had one in a record that we know.

        Nobody else ever kept frames for it; and who says that they are gone may take the run back.
        """
        for near in (Stage(one) for one in (stage - 1, stage + 1) if one >= 0):
            records = (seat.stepper.members[near:][:1] for seat in self._node.seats.values())
            if any(peer in there for record in records for there in record):
                return True
            if self._node.roster.serves(peer, near):
                return True
        return False

    async def of_others(self) -> dict[PeerId, Held]:
        """Ask everybody with a link what they hold. Also while another asks."""
        peers = set(self._node.links.peers()) - {self._node.me}
        self._awaited |= peers
        self._node.mail.tell_all(sorted(peers), WantHeld())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while self._awaited:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            self._awaited.clear()
        return {peer: self._heard[peer] for peer in sorted(peers & self._heard.keys())}

    def asked(self, peer: PeerId) -> None:
        """``peer`` wants to know what we hold."""
        self._asking.add(peer)
        if not self._telling:
            self._telling = True
            self._node.spawn(self._tell())

    def heard(self, peer: PeerId, message: Held) -> None:
        """What ``peer`` holds."""
        self._heard[peer] = message
        self._done_with(peer)

    def down(self, peer: PeerId) -> None:
        """What ``peer`` holds is out of reach, and what it wanted is no matter."""
        self._heard.pop(peer, None)
        self._asking.discard(peer)
        self._wishes = {key: wish for key, wish in self._wishes.items() if key[0] != peer}
        self._done_with(peer)

    def _done_with(self, peer: PeerId) -> None:
        self._awaited.discard(peer)
        self._answered.set()

    async def _tell(self) -> None:
        while self._asking:
            held = await self.ours()
            asking, self._asking = self._asking, set()
            waiting = self._node.resumption.waiting
            word = Held(held=held, waiting=waiting, let_go=self.let_go())
            for peer in sorted(asking):
                self._node.mail.tell(peer, word)
        self._telling = False

    # --- taking -----------------------------------------------------------------------------

    async def restore(self, stage: Stage, version: Step) -> Pulled:
        """The state of a stage that nobody serves any more, while the run waits at ``version``.

        Which will do, core/lineage knows; ours before those of others.

        Raises:
            LinkError: nobody within reach holds it; the reason names the newest there is.
        """
        ours, others = await self.ours(), await self.of_others()
        told = [one for word in others.values() for one in word.held]
        known = Known(held=(*ours, *told), let_go=self.let_go(others))
        mine = {one.at for one in ours if one.stage == stage}
        fit = fitting(self._node.lineage.root, version, stage, known)
        for at in sorted(fit, key=lambda at: at not in mine):
            if at in mine and (own := await self.read(stage, at)) is not None:
                return own
            donors = [peer for peer, word in others.items() if (stage, at) in _named(word.held)]
            if donors:
                pulled = await self._node.snapshots.pull(stage, donors, version=at.step, owners=1)
                if pulled.at == at:
                    return pulled
        found = [one.at.step for one in known.held if one.stage == stage]
        newest = max(found, default=None)
        there = "" if newest is None else f", and the newest anywhere is of step {newest}"
        raise LinkError(f"no replica left to take it from at step {version}{there}")

    async def read(self, stage: Stage, at: Position) -> Pulled | None:
        """From our archives, whole, with the members that were recorded."""
        for archive in self._archives:
            whole = await archive.whole(stage, at)
            if whole is not None:
                header, state = whole
                me = self._node.me
                return Pulled(at=at, members=header.members, blob=state, sources=(me,))
        return None

    # --- giving -----------------------------------------------------------------------------

    def give(self, peer: PeerId, message: WantManifest) -> None:
        """``peer`` wants a state of which we have no seat: from our archives, or a refusal."""
        self._wishes[peer, message.stage] = message
        if not self._giving:
            self._giving = True
            self._node.spawn(self._give())

    async def _give(self) -> None:
        """A state is large: one at a time, and once for all who ask."""
        while self._wishes:
            peer, stage = key = next(iter(self._wishes))
            wish = self._wishes.pop(key)  # who asks again meanwhile is last in the row
            await self._offer(stage, wish.version)
            self._node.snapshots.handle(peer, wish)
        self._giving = False

    async def _offer(self, stage: Stage, version: Step) -> None:
        snapshots = self._node.snapshots
        if snapshots.holds(stage, version):
            return
        held = [one.at for one in await self.ours() if one.stage == stage]
        fit = [at for at in held if at.step >= version]
        at = min(fit, key=lambda at: at.step, default=None)
        found = None if at is None else await self.read(stage, at)
        if at is not None and found is not None:
            await snapshots.offer(stage, at, found.members, found.blob)


def _named(held: tuple[Holding, ...]) -> set[tuple[Stage, Position]]:
    return {(one.stage, one.at) for one in held}
