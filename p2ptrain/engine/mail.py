"""The post of a peer: control messages at once, data frames each in a task of its own.

Frames are bounded by what they answer: a forward by an offer, a gradient by a parked slot,
a part by a plan. So is the number of tasks here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from p2ptrain.engine.links import Links
    from p2ptrain.engine.post import Payload
    from p2ptrain.engine.roster import Roster
    from p2ptrain.units import PeerId, Seconds, Stage
    from p2ptrain.wire import messages as m


RESEND_SECONDS = 1.0  # longer than it takes to open a link again


class Mail:
    """Implements ``post.Post`` over the links."""

    def __init__(
        self,
        links: Links,
        roster: Roster,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._links, self._roster, self._spawn = links, roster, spawn

    def tell(self, peer: PeerId, message: m.Control) -> None:
        """Queue a control message; never blocks."""
        self._links.send(peer, message)

    def tell_all(self, peers: Iterable[PeerId], message: m.Control) -> None:
        """Queue one message for several peers, encoded once."""
        self._links.broadcast(sorted(set(peers)), message)

    def ship(
        self,
        peer: PeerId,
        message: m.Data,
        payload: Payload,
        failed: Callable[[Seconds], None],
        *,
        tries: int = 1,
        sent: Callable[[], None] | None = None,
    ) -> None:
        """Send a data frame in a task of its own, and call ``sent`` or ``failed`` in the end."""
        self._spawn(self._send(peer, message, payload, failed, tries, sent))

    def seats(self, stage: Stage) -> tuple[PeerId, ...]:
        """Live peers that serve ``stage``, sorted; us among them."""
        return tuple(seat.peer for seat in self._roster.present(stage))

    def serves(self, peer: PeerId, stage: Stage) -> bool:
        """Whether ``peer`` has a seat of ``stage``, alive or not, as far as anybody says."""
        return self._roster.serves(peer, stage)

    def everyone(self) -> tuple[PeerId, ...]:
        """Every peer with a seat that we know of, us among them."""
        return tuple(sorted({seat.peer for seat in self._roster.views()}))

    async def _send(
        self,
        peer: PeerId,
        message: m.Data,
        payload: Payload,
        failed: Callable[[Seconds], None],
        tries: int,
        sent: Callable[[], None] | None,
    ) -> None:
        for left in reversed(range(tries)):
            try:
                parts = await payload() if callable(payload) else payload
                await self._links.send_data(peer, message, parts)
            except (LinkError, OSError):
                if left:
                    await asyncio.sleep(RESEND_SECONDS)
            else:
                if sent is not None:
                    sent()
                return
        failed(asyncio.get_running_loop().time())
