"""Which snapshots this peer saves: those that somebody wants, at the step that it wants.

A joiner asks several owners for the state at the beginning of one and the same step. An
owner that is there saves it; one that is not there yet keeps the wish, and saves when that
step begins; one that is past it saves what it has now. So owners need not know of each other
to offer the same step, and nothing is saved that nobody asked for.

Invariants:
    * a snapshot is of the position that it says, also of a seat that stands still before it
      leaves: one during which a step was taken is thrown away and saved again;
    * one wish for each peer and stage; a wish for a far step is refused, as are all when
      the seat is given up or the run is over.

Refused: saving at every commit. A copy of weights and optimizer state each step, for nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.download import AHEAD_MOST
from p2ptrain.wire.messages import NoSuch, WantManifest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from p2ptrain.engine.links import Links
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.engine.transfers import Snapshots
    from p2ptrain.units import PeerId, Stage


ADOPTING = "this peer is adopting a state itself"


class Keeper:
    """Snapshots of this peer's seats, on demand."""

    def __init__(
        self,
        links: Links,
        snapshots: Snapshots,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        denies: Callable[[SeatRuntime, PeerId], bool] = lambda _seat, _peer: False,
    ) -> None:
        self._links, self._snapshots, self._spawn = links, snapshots, spawn
        self._denies = denies  # who must not wait for what the seat is adopting
        self._wishes: dict[Stage, dict[PeerId, WantManifest]] = {}
        self._saving: set[Stage] = set()

    def wanted(self, seat: SeatRuntime, peer: PeerId, message: WantManifest) -> None:
        """``peer`` wants a snapshot of ``seat``: now, or when it gets there."""
        if seat.finished and self._snapshots.holds(seat.stage, message.version):
            self._snapshots.handle(peer, message)
        elif seat.finished:  # its weights are past its last position, and nothing follows
            self._refuse(seat.stage, peer, "the run is complete")
        elif seat.position is None:
            self._refuse(seat.stage, peer, "this peer is loading that stage itself")
        elif self._denies(seat, peer):
            self._refuse(seat.stage, peer, ADOPTING)
        elif message.version > seat.version + AHEAD_MOST:
            self._refuse(seat.stage, peer, f"this peer is at step {seat.version}")
        else:
            self._wishes.setdefault(seat.stage, {})[peer] = message
            self.stepped(seat)

    def deny(self, seat: SeatRuntime) -> None:
        """Refuse whoever must not wait for what ``seat`` is adopting."""
        wishes = self._wishes.get(seat.stage, {})
        for peer in [peer for peer in wishes if self._denies(seat, peer)]:
            del wishes[peer]
            self._refuse(seat.stage, peer, ADOPTING)

    def stepped(self, seat: SeatRuntime) -> None:
        """``seat`` may be further than before: who waits for that can be served."""
        if seat.finished:
            self.closed(seat.stage, "the run is complete")
        elif self._due(seat) and seat.stage not in self._saving:
            self._saving.add(seat.stage)
            self._spawn(self._serve(seat))

    def closed(self, stage: Stage, reason: str) -> None:
        """Nothing will be saved of ``stage`` any more."""
        for peer in self._wishes.pop(stage, {}):
            self._refuse(stage, peer, reason)

    async def _serve(self, seat: SeatRuntime) -> None:
        """Answer what is due; cancelled or closed in between, nobody is answered."""
        try:
            while due := self._due(seat):
                for peer, want in due:
                    if self._snapshots.holds(seat.stage, want.version):
                        del self._wishes[seat.stage][peer]
                        self._snapshots.handle(peer, want)
                if self._due(seat):
                    await self._save(seat)
        finally:
            self._saving.discard(seat.stage)

    async def _save(self, seat: SeatRuntime) -> None:
        at, members = seat.standing()
        blob = await seat.compute.save()
        if (at, members) == seat.standing():  # no commit came between
            taken = seat.stepper.sums.taken(at)
            await self._snapshots.offer(seat.stage, at, members, blob, taken=taken)

    def _due(self, seat: SeatRuntime) -> list[tuple[PeerId, WantManifest]]:
        wishes = {} if seat.adopting else self._wishes.get(seat.stage, {})  # not its own for long
        return [(peer, want) for peer, want in wishes.items() if want.version <= seat.version]

    def _refuse(self, stage: Stage, peer: PeerId, reason: str) -> None:
        self._links.send(peer, NoSuch(what="snapshot", stage=stage, reason=reason))
