"""The butterfly sum of one seat: every member owns a shard, sums it, and sends the sum.

    member i --own elements of shard j--> owner j --sum of shard j--> every member

Integers are added, so the result does not depend on order, and a shard owner's sum can be
checked against nothing but the digest that all members must share. Members that counted
nothing send nothing and receive everything.

Bounded: only the parts that the acknowledged plan calls for are kept, each once.
Cancelled, a reduction leaves nothing but parts that the next plan's `expect` drops.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Ballot
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from p2ptrain.core.agreement import Plan, Position, Sum
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import Buffer, StageCompute, Whole
    from p2ptrain.units import PeerId, Seconds

Wanted = tuple["PeerId", m.PartKind, int, int]  # from whom, which kind, which elements

PART_TRIES = 3  # a second apart: a link that broke is open again by then, or its peer suspected
PIECE_ELEMENTS = 1 << 19  # 4 MiB of int64 a frame: other frames of the link get their turn


def sum_ballot(whole: Sum) -> Ballot:
    """The ballot under which a finished sum is sent to a seat that missed it."""
    return Ballot(round=0, rank=0, digest=whole.digest)


class Reducer:
    """Sums one stage's accumulators with the other members of a plan."""

    def __init__(
        self,
        me: PeerId,
        compute: StageCompute,
        post: Post,
        *,
        unsent: Callable[[Ballot, PeerId], None],
    ) -> None:
        self._me = me
        self._unsent = unsent  # a part that its receiver cannot do without did not go out
        self._compute = compute
        self._post = post
        self._at: Position | None = None
        self._ballot: Ballot | None = None
        self._wanted: frozenset[Wanted] = frozenset()
        self._parts: dict[Wanted, Buffer] = {}
        self._arrived = asyncio.Event()
        self._holder: PeerId | None = None  # whom a sum is being fetched from
        self._refused = False

    def expect(self, plan: Plan) -> None:
        """Take parts of ``plan`` from now on, and no others."""
        self._expect(plan.at, plan.ballot, frozenset(_wanted(plan, self._me)))

    def _expect(self, at: Position, ballot: Ballot, wanted: frozenset[Wanted]) -> None:
        # a sum is fetched from one holder after the other under one and the same ballot
        if (at, ballot, wanted) != (self._at, self._ballot, self._wanted):
            self._at, self._ballot, self._wanted = at, ballot, wanted
            self._holder = None
            self._parts.clear()

    def part(self, peer: PeerId, message: m.Part, payload: Buffer) -> None:
        """Keep a part that the expected plan calls for; drop any other."""
        key = (peer, message.what, message.start, message.stop)
        if (message.at, message.ballot) == (self._at, self._ballot) and key in self._wanted:
            self._parts.setdefault(key, payload)
            self._arrived.set()

    def refused(self, peer: PeerId) -> None:
        """``peer`` has no sum to give."""
        if peer == self._holder:
            self._refused = True
            self._arrived.set()

    async def reduce(self, plan: Plan) -> Whole:  # noqa: C901 - three loops over one plan
        """Run the butterfly under ``plan`` and take the whole sum in.

        Waits for every member; the caller owns the deadline and cancels.
        """
        self.expect(plan)
        givers = _givers(plan)
        for share in plan.shares:
            if self._me in givers and share.peer != self._me:
                await self._send_own(plan, share.peer, share.start, share.stop)
        mine = next(share for share in plan.shares if share.peer == self._me)
        pieces: list[tuple[int, Buffer]] = []
        for start, stop in pieces_of(mine.start, mine.stop):
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
                for start, stop in pieces_of(share.start, share.stop):
                    piece = await self._take(share.peer, "sum", start, stop)
                    pieces.append((start, piece))
        return await self._compute.finish(sorted(pieces, key=lambda piece: piece[0]))

    async def fetch(self, holder: PeerId, whole: Sum, *, deadline_seconds: Seconds) -> Whole:
        """Pull a finished sum from ``holder`` and check that it is the one that was announced.

        Raises:
            LinkError: it does not have it.
            MisbehaviourError: it is another sum.
            TimeoutError: it did not arrive in time.
        """
        ballot = sum_ballot(whole)
        pieces = pieces_of(0, self._compute.elements)
        self._expect(
            whole.at, ballot, frozenset((holder, "sum", start, stop) for start, stop in pieces)
        )
        self._holder, self._refused = holder, False
        self._post.tell(holder, m.PullSum(at=whole.at, stage=whole.stage))
        taken: list[tuple[int, Buffer]] = []
        async with asyncio.timeout(deadline_seconds):
            for start, stop in pieces:
                taken.append((start, await self._take(holder, "sum", start, stop)))
        result = await self._compute.finish(taken)
        if result.digest != whole.digest:
            reason = f"the sum of step {whole.at.step} is not the one it announced"
            raise MisbehaviourError(reason, peer=holder)
        return result

    async def serve(self, peer: PeerId, whole: Sum, held: Callable[[], bool]) -> None:
        """Send the last finished sum to a seat that missed it, while it is ``held``."""
        for start, stop in pieces_of(0, self._compute.elements):
            if not held():
                reason = f"the sum of step {whole.at.step} has gone"
                self._post.tell(peer, m.NoSuch(what="sum", stage=whole.stage, reason=reason))
                return
            total = await self._compute.read_sum(start, stop)
            self._ship(peer, whole.at, sum_ballot(whole), ("sum", start, stop), total)

    async def _send_own(self, plan: Plan, peer: PeerId, first: int, last: int) -> None:
        for start, stop in pieces_of(first, last):
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

        def failed(_now: Seconds) -> None:
            # without our own part nobody gets that shard; a sum the receiver can fetch later
            if kind == "own":
                self._unsent(ballot, peer)

        self._post.ship(peer, part, (payload,), failed, tries=PART_TRIES)

    async def _take(self, peer: PeerId, what: m.PartKind, start: int, stop: int) -> Buffer:
        while True:
            part = self._parts.pop((peer, what, start, stop), None)
            if part is not None:
                return part
            if peer == self._holder and self._refused:
                raise LinkError("it has no such sum", peer=peer)
            self._arrived.clear()
            await self._arrived.wait()


def _givers(plan: Plan) -> list[PeerId]:
    """The members that counted anything."""
    return [share.peer for share in plan.shares if any(share.slots)]


def _wanted(plan: Plan, me: PeerId) -> Iterator[Wanted]:
    """What ``me`` gets: everybody's elements of its own shard, and the sums of the others."""
    for share in plan.shares:
        for start, stop in pieces_of(share.start, share.stop):
            if share.peer != me:
                yield share.peer, "sum", start, stop
            else:
                yield from ((peer, "own", start, stop) for peer in _givers(plan) if peer != me)


def pieces_of(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut elements into what goes into one frame each."""
    return [
        (first, min(first + PIECE_ELEMENTS, stop)) for first in range(start, stop, PIECE_ELEMENTS)
    ]
