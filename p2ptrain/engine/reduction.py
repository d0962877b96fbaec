"""The butterfly sum of one seat: every member owns a shard, sums it, and sends the sum.

    member i --own elements of shard j--> owner j --sum of shard j--> every member

Integers are added, so the result does not depend on order, and a shard owner's sum can be
checked against nothing but the digest that all members must share. Members that counted
nothing send nothing and receive everything.

Bounded: parts are kept only for the plan that this seat has acknowledged, each once.
Cancelled, a reduction leaves nothing but parts that the next plan's `expect` drops.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Ballot
from p2ptrain.errors import MisbehaviourError
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Plan, Position, Sum
    from p2ptrain.engine.custodian import Post
    from p2ptrain.ports import Buffer, StageCompute, Whole
    from p2ptrain.units import PeerId, Seconds

PIECE_ELEMENTS = 1 << 19  # 4 MiB of int64 a frame: other frames of the link get their turn


def sum_ballot(whole: Sum) -> Ballot:
    """The ballot under which a finished sum is sent to a seat that missed it."""
    return Ballot(round=0, rank=0, digest=whole.digest)


class Reducer:
    """Sums one stage's accumulators with the other members of a plan."""

    def __init__(self, me: PeerId, compute: StageCompute, post: Post) -> None:
        self._me = me
        self._compute = compute
        self._post = post
        self._at: Position | None = None
        self._ballot: Ballot | None = None
        self._parts: dict[tuple[PeerId, str, int], tuple[int, Buffer]] = {}
        self._arrived = asyncio.Event()

    def expect(self, at: Position, ballot: Ballot) -> None:
        """Take parts of ``ballot`` from now on, and no others."""
        if (at, ballot) != (self._at, self._ballot):
            self._at, self._ballot = at, ballot
            self._parts.clear()

    def part(self, peer: PeerId, message: m.Part, payload: Buffer) -> None:
        """Keep a part that the expected plan calls for; drop any other."""
        if (message.at, message.ballot) == (self._at, self._ballot):
            self._parts.setdefault((peer, message.what, message.start), (message.stop, payload))
            self._arrived.set()

    async def reduce(self, plan: Plan) -> Whole:
        """Run the butterfly under ``plan`` and take the whole sum in.

        Waits for every member; the caller owns the deadline and cancels.
        """
        self.expect(plan.at, plan.ballot)
        givers = [share.peer for share in plan.shares if any(share.slots)]
        for share in plan.shares:
            if self._me in givers and share.peer != self._me:
                await self._send_own(plan, share.peer, share.start, share.stop)
        mine = next(share for share in plan.shares if share.peer == self._me)
        pieces: list[tuple[int, Buffer]] = []
        for start, stop in _pieces(mine.start, mine.stop):
            own = [await self._compute.read_own(start, stop)] if self._me in givers else []
            others = [
                await self._take(peer, "own", start, stop) for peer in givers if peer != self._me
            ]
            total = await self._compute.sum_parts([*own, *others])
            pieces.append((start, total))
            for share in plan.shares:
                if share.peer != self._me:
                    self._ship(share.peer, plan.at, plan.ballot, ("sum", start, stop), total)
        for share in plan.shares:
            if share.peer != self._me:
                for start, stop in _pieces(share.start, share.stop):
                    piece = await self._take(share.peer, "sum", start, stop)
                    pieces.append((start, piece))
        return await self._compute.finish(sorted(pieces, key=lambda piece: piece[0]))

    async def fetch(self, holder: PeerId, whole: Sum, *, deadline_seconds: Seconds) -> Whole:
        """Pull a finished sum from ``holder`` and check that it is the one that was announced.

        Raises:
            MisbehaviourError: it is another sum.
            TimeoutError: it did not arrive in time.
        """
        ballot = sum_ballot(whole)
        self.expect(whole.at, ballot)
        self._post.tell(holder, m.PullSum(at=whole.at, stage=whole.stage))
        pieces: list[tuple[int, Buffer]] = []
        async with asyncio.timeout(deadline_seconds):
            for start, stop in _pieces(0, self._compute.elements):
                pieces.append((start, await self._take(holder, "sum", start, stop)))
        result = await self._compute.finish(pieces)
        if result.digest != whole.digest:
            reason = f"the sum of step {whole.at.step} is not the one it announced"
            raise MisbehaviourError(reason, peer=holder)
        return result

    async def serve(self, peer: PeerId, whole: Sum) -> None:
        """Send the last finished sum to a seat that missed it."""
        for start, stop in _pieces(0, self._compute.elements):
            total = await self._compute.read_sum(start, stop)
            self._ship(peer, whole.at, sum_ballot(whole), ("sum", start, stop), total)

    async def _send_own(self, plan: Plan, peer: PeerId, first: int, last: int) -> None:
        for start, stop in _pieces(first, last):
            own = await self._compute.read_own(start, stop)
            self._ship(peer, plan.at, plan.ballot, ("own", start, stop), own)

    def _ship(
        self,
        peer: PeerId,
        at: Position,
        ballot: Ballot,
        what: tuple[m.PartKind, int, int],
        payload: Buffer,
    ) -> None:
        kind, start, stop = what
        part = m.Part(
            at=at, stage=self._compute.stage, ballot=ballot, what=kind, start=start, stop=stop
        )
        # a part that does not go out is missed by its receiver, whose deadline ends the round
        self._post.ship(peer, part, (payload,), lambda _now: None)

    async def _take(self, peer: PeerId, what: m.PartKind, start: int, stop: int) -> Buffer:
        while True:
            entry = self._parts.pop((peer, what, start), None)
            if entry is not None and entry[0] == stop:
                return entry[1]
            self._arrived.clear()
            await self._arrived.wait()


def _pieces(start: int, stop: int) -> list[tuple[int, int]]:
    return [
        (first, min(first + PIECE_ELEMENTS, stop)) for first in range(start, stop, PIECE_ELEMENTS)
    ]
