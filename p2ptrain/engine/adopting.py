"""Taking over one state in all replicas of a stage: agreement "canonical" (core/adoption).

    a seat comes to a version at which that is due -> it stands still, between two steps
      first in the order of those who can give -> offers its own state
      else -> asks who is first for his, takes it verified (pulling), loads it
    -> the next step is taken up

Intuition: it is what a joiner does, at a step boundary, with one owner who is chosen by all
alike. Two roots cannot vouch for each other here: until then no two replicas are equal.

Whose turn it is after others were passed over, or who finds mates counting already, asks
first whether one of them has adopted a state: a chosen peer may have died when only some had
it, and one that was frozen comes when the others have done without it. Who has adopted gives
that. Who has not yet lets wait whom the order puts after it, denies the others at once
(core/adoption: waits), and gives what it has come to. Denying both of two that ask each other
would leave each with its own state: the one whom this lost first would ask the other in vain.

Invariants:
    * meanwhile the seat saves nothing for others, and gives no sum that the load takes away;
    * whoever offers its own state has it on offer before it goes on: it can be had while
      others come to that version, and for a minute after;
    * a chosen peer that is gone, silent or behind is passed over, with the reason; who finds
      nobody keeps its own state until the next time.

Where the run says so (``sync.adoption``), the chosen one sends no whole state but the difference
to the last one adopted, which all have bit for bit (compute/difference), and adopts what that
leads to like everybody else. It names the roots at both ends. Who stands at another base, has
none (it came later, or missed the last adoption) or comes to another end takes the whole state,
which is on offer beside it. After the last update all do.

Bounds: TRIES attempts for each member of the stage, begun within ANSWER_SECONDS, and one more,
each within a download's deadlines; who is found to be suspected is waited for no longer.

Refused: going on with the next step while the state comes. What was counted at other weights
would be lost with them, and the weights are needed to count.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.adoption import adoption_order, adopts_at, differs_at, waits
from p2ptrain.core.download import ANSWER_SECONDS
from p2ptrain.core.merkle import merkle_root
from p2ptrain.engine.pulling import Base
from p2ptrain.engine.serving import leaves_of
from p2ptrain.errors import LinkError, MisbehaviourError, PeerError
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.pulling import Pulled
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.ports import Difference
    from p2ptrain.units import Digest, PeerId, Seconds, Stage

TRIES = 3
"""At a mate that lives: a line that damages frames breaks now and then, and is up again at
once. A dead one costs a second or two so, until it is suspected."""


class Adoption:
    """The adoptions of one node's seats."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._jobs: dict[Stage, asyncio.Task[None]] = {}
        self._asked: dict[Stage, list[PeerId]] = {}

    def due(self, seat: SeatRuntime) -> bool:
        """Whether ``seat``, which has just stepped, must adopt before it goes on."""
        return adopts_at(self._node.spec, seat.version)

    def begin(self, seat: SeatRuntime) -> None:
        """Have ``seat`` adopt; the node hears of it when that is done."""
        seat.adopting = True
        self._jobs[seat.stage] = self._node.spawn(self._adopt(seat))

    def look(self) -> None:
        """Call every second or so: who is suspected is asked no longer."""
        for stage, peers in list(self._asked.items()):
            for peer in peers:
                if not self._lives(stage, peer):
                    self._node.snapshots.lost(peer)

    def closed(self, stage: Stage) -> None:
        """The seat is given up."""
        job = self._jobs.pop(stage, None)
        if job is not None:
            job.cancel()

    def denies(self, seat: SeatRuntime, peer: PeerId) -> bool:
        """Whether ``peer`` must not wait for the state that ``seat`` is adopting."""
        if not seat.adopting:
            return False
        asked = self._asked.get(seat.stage, [])
        return not waits(self._order(seat), peer, on=self._node.me, asked=asked)

    def _order(self, seat: SeatRuntime) -> tuple[PeerId, ...]:
        at, members = seat.standing()
        return adoption_order(at, seat.stage, members[seat.stage])

    async def _adopt(self, seat: SeatRuntime) -> None:
        """Cancelled, the seat is closing: which state it holds then is no matter."""
        node, stage, passed_over = self._node, seat.stage, False
        adopted: tuple[PeerId, Digest] | None = None
        for peer in self._order(seat):
            if peer == node.me:
                adopted = await self._own_turn(seat, passed_over=passed_over)
            else:
                adopted = await self._take_from(seat, peer)
            if adopted is not None:
                self._tell(seat, *adopted)
                break
            passed_over = True
        else:
            reason = f"stage {stage}: nobody gives the state of step {seat.version}; ours stays"
            node.emit(ev.Alarm(reason=reason))
        self._jobs.pop(stage, None)
        seat.adopting = False
        node.go_on(seat)
        node.stands(seat)

    async def _own_turn(
        self, seat: SeatRuntime, *, passed_over: bool
    ) -> tuple[PeerId, Digest] | None:
        """Offer our state, unless others have adopted one that we do not have."""
        self._node.admission.deny(seat)
        ahead = seat.stepper.ahead
        if passed_over:
            ahead |= {view.peer for view in self._node.roster.present(seat.stage)}
        others = sorted(ahead - {self._node.me})
        found = await self._take(seat, others) if others else None
        return found or (self._node.me, await self._offer(seat))

    def _tell(self, seat: SeatRuntime, source: PeerId, root: Digest) -> None:
        at, _ = seat.standing()
        adopted = ev.StateAdopted(
            stage=seat.stage, version=at.step, chain=at.chain, source=source, root=root
        )
        self._node.emit(adopted)

    def _lives(self, stage: Stage, peer: PeerId) -> bool:
        return any(view.peer == peer for view in self._node.roster.present(stage))

    async def _offer(self, seat: SeatRuntime) -> Digest:
        """Offer what others are to adopt, and adopt it; returns the root of that state."""
        at, members = seat.standing()
        own, snapshots = self._difference(seat), self._node.snapshots
        base = None if own is None else own.base
        blob = None if own is None else await own.make()
        whole, taken = await seat.compute.save(), seat.stepper.sums.taken(at)
        root = await snapshots.offer(seat.stage, at, members, whole, taken=taken)
        if blob is not None and base is not None:
            await snapshots.offer(seat.stage, at, members, blob, leads=(base, root))
        await _mark(seat, root)
        return root

    def _difference(self, seat: SeatRuntime) -> Difference | None:
        """Where this state goes as one."""
        return seat.compute.difference if differs_at(self._node.spec, seat.version) else None

    async def _take_from(self, seat: SeatRuntime, peer: PeerId) -> tuple[PeerId, Digest] | None:
        """What ``peer`` gives; that the line breaks is no reason to do without."""
        until, own = _now() + ANSWER_SECONDS, self._difference(seat)
        for _ in range(TRIES):
            if _now() >= until or not self._lives(seat.stage, peer):
                break
            adopted = await self._take(seat, [peer], own)
            if adopted is not None:
                return adopted
            own = None  # whatever was wrong with it, the whole state is right
        return None

    async def _take(
        self, seat: SeatRuntime, donors: list[PeerId], own: Difference | None = None
    ) -> tuple[PeerId, Digest] | None:
        """Adopt what ``donors`` give; with ``own`` the difference to its base will do."""
        self._asked[seat.stage] = donors
        self._node.admission.deny(seat)  # who waits for what now waits for them
        try:
            pulled = await self._pull(seat, donors, own)
            seat.stepper.sums.forget()
            root = await self._load(seat, pulled)
        except PeerError as error:
            reason = f"stage {seat.stage}: no state to adopt: {error.reason}"
            self._node.emit(ev.Alarm(reason=reason))
            return None
        finally:
            del self._asked[seat.stage]
        await _mark(seat, root)
        return pulled.sources[0], root

    async def _load(self, seat: SeatRuntime, pulled: Pulled) -> Digest:
        """Make what was pulled the state of ``seat``; returns that state's root.

        Raises:
            MisbehaviourError: it does not fit, or leads to another state than its sender's.
        """
        if pulled.result is None:
            assert pulled.root is not None
            await seat.compute.load(pulled.blob, keep=True)
            return pulled.root
        assert seat.compute.difference is not None
        own = await seat.compute.save()
        await seat.compute.difference.adopt(pulled.blob)
        view = memoryview(await seat.compute.save())
        if merkle_root(await leaves_of(view)) != pulled.result:
            await seat.compute.load(own, keep=True)  # not astray, where nobody gives a whole one
            (source,) = pulled.sources
            reason = f"the difference of {source} leads elsewhere here than it should"
            raise MisbehaviourError(reason, peer=source)
        return pulled.result

    async def _pull(
        self, seat: SeatRuntime, donors: list[PeerId], own: Difference | None
    ) -> Pulled:
        """The state that one of ``donors`` has where ``seat`` stands.

        Raises:
            LinkError: nobody can give that.
        """
        at, _ = seat.standing()
        base = None
        if own is not None and own.base is not None:
            base = Base(root=own.base, size_bytes=own.size_bytes)
        pulled = await self._node.snapshots.pull(
            seat.stage, donors, version=at.step, owners=1, base=base
        )
        if pulled.at != at:
            peer = pulled.sources[0]
            raise LinkError(f"{peer} is at step {pulled.at.step}, or on another chain", peer=peer)
        return pulled


async def _mark(seat: SeatRuntime, root: Digest) -> None:
    """What ``seat`` holds is what the next difference is to."""
    if seat.compute.difference is not None:
        await seat.compute.difference.mark(root)


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
