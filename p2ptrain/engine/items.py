"""What lies in a seat's pipeline, and where that pipeline stands: values.

    queued -> computing -> parked -> (gradient) -> computing -> counted
                  `--- evaluating, or at the last stage ---------^

Invariant: an item is ``returned`` only while it is parked. A gradient may come before the
forward has ended (of a replay); it waits in the item until then.

Refused: a class per state. The frames and the sender stay the same all the way, and the
worker would copy them at every transition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.stragglers import BACKWARD_SHARE
from p2ptrain.units import Microbatch

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer
    from p2ptrain.units import Bytes, PeerId, Seconds, Stage
    from p2ptrain.wire import messages as m

Held = Literal["none", "queued", "computing", "parked", "counted", "committed", "bare", "wanted"]
"""Where a microbatch stands here, for others: ``committed`` with its step; see m.Whereabouts."""


@dataclass(slots=True)
class Item:
    """A microbatch at this seat. ``sender`` gets its gradient (None at stage 0).

    ``spare``: nobody waits for it but the step's end.
    """

    work: Microbatch
    state: Literal["queued", "computing", "parked", "counted"]
    sender: PeerId | None
    path: tuple[PeerId, ...]
    tokens: Buffer
    given: Buffer | None
    replay: bool
    spare: bool = False
    gradient: Buffer | None = None
    forward_seconds: Seconds = 0.0

    @property
    def returned(self) -> bool:
        """Whether its gradient is back and waits to be computed."""
        return self.state == "parked" and self.gradient is not None

    @property
    def services_owed(self) -> float:
        """How much of a service is left to do, until it is counted; what computes is not begun."""
        if self.state == "counted":
            return 0.0
        begun = self.state == "parked" or self.gradient is not None
        return BACKWARD_SHARE if begun else 1.0

    @property
    def age(self) -> tuple[int, bool, bool, int]:
        """Smallest is computed first: oldest step, then replays (all wait for them), then slot.

        What nobody waits for (core/sparing) begins after all others; then it is like any.
        """
        last = self.spare and self.state == "queued"
        return self.work.step, last, self.spare or not self.replay, self.work.slot

    def move(self, sender: PeerId) -> None:
        """``sender`` replays it, and gets its gradient; from now on somebody waits for that."""
        self.sender = sender
        self.path = (*self.path[:-1], sender)
        self.spare &= self.state != "queued"


def sourced(work: Microbatch, tokens: Buffer, *, replay: bool, spare: bool = False) -> Item:
    """A microbatch that is taken from the data here."""
    return Item(work, "queued", None, (), tokens, given=None, replay=replay, spare=spare)


def arrived(peer: PeerId, frame: m.Forward, payload: memoryview, token_bytes: Bytes) -> Item:
    """A microbatch that ``peer`` has sent: token ids come first."""
    return Item(
        work=Microbatch(frame.at.step, frame.slot),
        state="queued",
        sender=peer,
        path=frame.path,
        tokens=payload[:token_bytes],
        given=payload[token_bytes:],
        replay=frame.replay,
        spare=frame.spare,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a pipeline is told of its seat.

    ``token_bytes``: of the token ids that come first in a frame. ``retained_bytes_each``:
    what one microbatch leaves in the retention store, at most; ``retained_bound``: what
    may lie there in all.
    """

    me: PeerId
    stage: Stage
    is_last: bool
    token_bytes: Bytes
    retained_bytes_each: Bytes
    retained_bound: Bytes
