"""What a pipeline says to its neighbours: offers and BUSY, what it took, what it holds.

    Ask of our position  -> Offer | Busy (the pipeline decides, the wording is here)
    Ask of another       -> behind: soon | foreign: later | committed long ago
    a frame, a Recall, a Where -> Accepted | Whereabouts

Invariants:
    * every Ask gets exactly one answer, with the attempt that it belongs to;
    * what is promised (delay, service) is what this peer's compute has in front of it now;
    * of a step that is over it says ``committed``, of any other that is not ours ``none``.

Refused: silence towards who stands elsewhere in history. The asker would wait for its own
deadline, and take a seat that is merely a step behind for a dead one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from p2ptrain.core.offers import RETRY_MIN_SECONDS
from p2ptrain.observe import events as ev
from p2ptrain.units import Microbatch
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.duties import What
    from p2ptrain.engine.items import Held
    from p2ptrain.engine.pace import Pace
    from p2ptrain.engine.post import Post
    from p2ptrain.units import PeerId, Seconds, Stage

BusyReason = Literal["queue", "parked", "behind", "draining", "foreign", "unknown"]

FOREIGN_RETRY_SECONDS = 2.0  # another history: only a resync ends it, so do not hurry
BEHIND_RETRY_SECONDS = 0.1  # a commit is a few round trips away when the asker already has it
BEHIND_RETRY_SHARE = 0.25  # ... of a microbatch, if that is less: every step begins with this wait


class Answers:
    """Speaks for the pipeline of ``stage``; ``held`` says what that has of a microbatch."""

    def __init__(
        self,
        stage: Stage,
        pace: Pace,
        *,
        post: Post,
        emit: ev.Emit,
        held: Callable[[Microbatch], Held],
        backlog: Callable[[], Seconds],
    ) -> None:
        self.offers = self.busies = 0  # answers to asks in this step
        self._stage, self._pace, self._post, self._emit = stage, pace, post, emit
        self._held, self._backlog = held, backlog
        self._at: Position | None = None

    def begin(self, at: Position) -> None:
        """From now on this is our position."""
        self._at = at
        self.offers = self.busies = 0

    def offer(self, peer: PeerId, ask: m.Ask, lease_seconds: Seconds) -> None:
        """A slot is reserved for so long."""
        offer = m.Offer(
            at=ask.at,
            slot=ask.slot,
            stage=self._stage,
            attempt=ask.attempt,
            delay_seconds=self._backlog() + self._pace.service_seconds,
            service_seconds=self._pace.service_seconds,
            lease_seconds=lease_seconds,
        )
        self.offers += 1
        self._post.tell(peer, offer)

    def busy(self, peer: PeerId, ask: m.Ask, reason: BusyReason, retry_seconds: Seconds) -> None:
        """Not now, and why; worth another Ask after so long."""
        self.busies += 1
        self._emit(ev.BusySaid(stage=self._stage, peer=peer, reason=reason))
        busy = m.Busy(
            at=ask.at,
            slot=ask.slot,
            stage=self._stage,
            attempt=ask.attempt,
            retry_seconds=retry_seconds,
            reason=reason,
        )
        self._post.tell(peer, busy)

    def elsewhere(self, peer: PeerId, ask: m.Ask) -> None:
        """The Ask is not of our position: we are behind, it is over, or it is another history."""
        mine, theirs = self._at, ask.at
        if mine is None or (theirs.epoch == mine.epoch and theirs.step > mine.step):
            retry = max(RETRY_MIN_SECONDS, BEHIND_RETRY_SHARE * self._pace.service_seconds)
            self.busy(peer, ask, "behind", min(BEHIND_RETRY_SECONDS, retry))
        elif theirs.epoch == mine.epoch and theirs.step < mine.step:
            self.whereabouts(peer, Microbatch(theirs.step, ask.slot), theirs)
        else:
            self.busy(peer, ask, "foreign", FOREIGN_RETRY_SECONDS)

    def accepted(self, peer: PeerId, frame: m.Forward | m.Gradient, what: What) -> None:
        """The frame has come and is kept."""
        self._post.tell(
            peer, m.Accepted(at=frame.at, slot=frame.slot, stage=self._stage, what=what)
        )

    def computed(self, peer: PeerId, work: Microbatch) -> None:
        """The result is retained here; the sender's custody has ended."""
        if self._at is not None:
            message = m.Computed(
                at=self._at,
                slot=work.slot,
                stage=self._stage,
                service_seconds=self._pace.service_seconds,
            )
            self._post.tell(peer, message)

    def whereabouts(self, peer: PeerId, work: Microbatch, at: Position) -> None:
        """What we hold of a microbatch of ``at``, be that our position or not."""
        over = self._at is not None and at.step < self._at.step
        state: Held = "committed" if over else self._held(work) if at == self._at else "none"
        message = m.Whereabouts(at=at, slot=work.slot, stage=self._stage, state=state)
        self._post.tell(peer, message)
