"""From a message to the seat it is meant for.

A message names the stage whose seat holds, or shall hold, the microbatch. Who must hear it
follows from its kind:

    for the seat of that stage          Ask, Decline, Recall, Where, frames, the round
    for the seat below it (the asker)   Offer, Busy, Computed
    for both neighbours (either may     Accepted, Whereabouts
    be the sender of what it speaks of)
    for the seat above it               Repath (it names the sender's stage)
    for the seat of stage 0             WantSlots, GiveSlots
    for it and both neighbours          Bitmap
    for every seat                      Sum, WantSums

A seat hears it where it stood at the position that the message names: at this step, or at the
last one while it is kept.

Who speaks to a seat that this peer does not hold has an old view: a question or a frame gets
the answer that nothing is here, anything else is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.agreement import Ack, Bitmap, Go, Nack, Plan, Sum
from p2ptrain.units import Stage
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.engine.post import Post
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import PeerId, Seconds

NO_SEAT_RETRY_SECONDS = 2.0  # our heartbeat tells the asker within one

Flow = (
    m.Ask
    | m.Decline
    | m.Recall
    | m.Where
    | m.Repath
    | m.WantSlots
    | m.GiveSlots
    | m.Offer
    | m.Busy
    | m.Accepted
    | m.Computed
    | m.Whereabouts
)
Answer = m.Accepted | m.Computed | m.Whereabouts
Round = Bitmap | Plan | Ack | Nack | Go | Sum | m.WantSums | m.PullSum


class Dispatcher:
    """Hands messages to the seats of this peer."""

    def __init__(self, seats: Mapping[Stage, SeatRuntime], post: Post) -> None:
        self._seats, self._post = seats, post

    def flow(self, peer: PeerId, message: Flow, now: Seconds) -> None:  # noqa: C901, PLR0912 - one arm per message
        """A message about one microbatch's way."""
        match message:
            case m.Offer() | m.Busy():
                if (seat := self._seats.get(Stage(message.stage - 1))) is not None:
                    seat.pipeline_of(message.at).custodian.answered(peer, message, now)
            case m.Accepted() | m.Computed() | m.Whereabouts():
                for near in (message.stage - 1, message.stage + 1):
                    if (seat := self._seats.get(Stage(near))) is not None:
                        self._hear(seat, peer, message, now)
            case m.Repath():
                if (seat := self._seats.get(Stage(message.stage + 1))) is not None:
                    if message.bare and not self._may_be_bare(seat, peer, message.stage):
                        message = msgspec.structs.replace(message, bare=False)
                    seat.pipeline_of(message.at).repath(peer, message, now)
            case m.WantSlots() | m.GiveSlots():
                seat = self._seats.get(Stage(0))
                if seat is not None and seat.sourcer is not None:
                    seat.sourcer.hear(peer, message, now)
            case _:
                if (seat := self._seats.get(message.stage)) is not None:
                    _to_pipeline(seat, peer, message, now)
                else:
                    self._deny(peer, message)

    def _hear(self, seat: SeatRuntime, peer: PeerId, message: Answer, now: Seconds) -> None:
        """What a seat beside ``seat`` says of a frame."""
        if isinstance(message, m.Whereabouts) and message.state in ("bare", "wanted"):
            if not self._may_be_bare(seat, peer, message.stage):
                return
            if message.state == "wanted" and message.stage > seat.stage:
                seat.depositing.wanting.asked(message)
        seat.pipeline_of(message.at).custodian.hear(peer, message, now)

    def _may_be_bare(self, seat: SeatRuntime, peer: PeerId, stage: Stage) -> bool:
        """Whether ``peer`` may have slots of ``stage`` that it counts and has no frames of."""
        return seat.depositing.on and self._post.serves(peer, stage)

    def round(self, peer: PeerId, message: Round | m.NoSuch, now: Seconds) -> None:  # noqa: C901, PLR0912 - one arm per message
        """A message of the step's agreement."""
        match message:
            case Bitmap():
                for near in (message.stage - 1, message.stage, message.stage + 1):
                    if (seat := self._seats.get(Stage(near))) is not None:
                        seat.stepper.bitmap(message, now)
                        seat.refresh_sources(now)
            case Sum():
                for stage in sorted(self._seats):
                    if stage in self._seats:  # a commit may close a seat meanwhile
                        self._seats[stage].stepper.received(peer, message, now)
            case m.WantSums():
                self._tell_sums(peer, message)
            case m.PullSum():
                if (seat := self._seats.get(message.stage)) is not None:
                    seat.stepper.pull_sum(peer, message)
                else:
                    reason = "no seat of this stage here"
                    self._post.tell(peer, m.NoSuch(what="sum", stage=message.stage, reason=reason))
            case m.NoSuch():
                if message.what == "sum" and (seat := self._seats.get(message.stage)) is not None:
                    seat.stepper.reducer.refused(peer)
            case _:
                if (seat := self._seats.get(message.stage)) is not None:
                    seat.stepper.received(peer, message, now)

    def frame(self, peer: PeerId, message: m.Data, payload: memoryview, now: Seconds) -> None:
        """A data frame of the pipeline or of a reduction."""
        seat = self._seats.get(message.stage) if not isinstance(message, m.CorpusChunk) else None
        if seat is None:
            if isinstance(message, m.Forward | m.Gradient):
                self._deny(peer, message)
            return
        match message:
            case m.Forward():
                seat.pipeline_of(message.at).forward(peer, message, payload, now)
            case m.Gradient():
                seat.pipeline_of(message.at).gradient(peer, message, payload, now)
            case m.Part():
                seat.stepper.part(peer, message, payload)
            case m.Deposit():
                seat.depositing.hear(peer, message, payload)
            case _:
                pass

    def _tell_sums(self, peer: PeerId, message: m.WantSums) -> None:
        """Seats of one peer may stand at different steps: any of them may know."""
        known: dict[Stage, Sum] = {}
        for _, seat in sorted(self._seats.items()):
            known = {**seat.stepper.known_sums(message.at), **known}
        for stage in sorted(known.keys() & set(message.stages)):  # once, however often it asks
            self._post.tell(peer, known[stage])

    def _deny(
        self, peer: PeerId, message: m.Ask | m.Decline | m.Recall | m.Where | m.Forward | m.Gradient
    ) -> None:
        """There is no such seat here."""
        at, slot, stage = message.at, message.slot, message.stage
        if isinstance(message, m.Ask):
            busy = m.Busy(
                at=at,
                slot=slot,
                stage=stage,
                attempt=message.attempt,
                retry_seconds=NO_SEAT_RETRY_SECONDS,
                reason="unknown",
            )
            self._post.tell(peer, busy)
        elif not isinstance(message, m.Decline):
            self._post.tell(peer, m.Whereabouts(at=at, slot=slot, stage=stage, state="none"))


def _to_pipeline(
    seat: SeatRuntime,
    peer: PeerId,
    message: m.Ask | m.Decline | m.Recall | m.Where,
    now: Seconds,
) -> None:
    pipeline = seat.pipeline_of(message.at)
    match message:
        case m.Ask():
            pipeline.ask(peer, message, now)
        case m.Decline():
            pipeline.decline(message)
        case m.Recall():
            pipeline.recall(peer, message)
        case m.Where():
            pipeline.where(peer, message)
