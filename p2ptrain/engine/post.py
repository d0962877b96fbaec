"""How the seats of a peer speak to others; ours among them, by the same way.

The one thing that pipelines, custodians, gossip and reductions ask of the network: they
name peers and messages, and never see a link. `engine/mail` implements it.

Refused: handing the links themselves on. Every part would then decide anew what a broken
link means, and the tests of each would need a network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from p2ptrain.ports import Buffer
    from p2ptrain.units import PeerId, Seconds, Stage
    from p2ptrain.wire import messages as m

    Payload: TypeAlias = tuple[Buffer, ...] | Callable[[], Awaitable[tuple[Buffer, ...]]]
    """A frame's bytes, or how they are had back from a disk (OSError: they are not)."""


class Post(Protocol):
    """How a seat speaks to others; ours among them, by the same way."""

    def tell(self, peer: PeerId, message: m.Control) -> None:
        """Queue a control message; never blocks."""
        ...

    def tell_all(self, peers: Iterable[PeerId], message: m.Control) -> None:
        """Queue one message for several peers."""
        ...

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
        """Send a data frame in a task of its own; ``failed`` is called if it did not go out.

        ``sent``: called if it did.
        """
        ...

    def seats(self, stage: Stage) -> tuple[PeerId, ...]:
        """Live peers that serve ``stage``, sorted; us among them."""
        ...

    def serves(self, peer: PeerId, stage: Stage) -> bool:
        """Whether ``peer`` has a seat of ``stage``, alive or not, as far as anybody says."""
        ...

    def everyone(self) -> tuple[PeerId, ...]:
        """Every peer with a seat that we know of, us among them."""
        ...
