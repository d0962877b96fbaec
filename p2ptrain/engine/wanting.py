"""What a seat asks for that it counts and has no frame of, because the stage above lacks it.

    a deposit is taken up --every GRACE_SECONDS--> what of it is lacking above for that long
        --Whereabouts "wanted"--> every seat below: whoever keeps the frame sends it here
        --stage 0--> it comes from the data
    a seat above asks for what is bare here, too --> ask on, at once

Which slots to ask for, and when, says core/deposits (Wants).

Bounds: WANTED_MOST slots are asked for at a time; nothing is, once nothing is borrowed.
Refused: fetching all that was borrowed at once. Most of it nobody ever needs again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.deposits import GRACE_SECONDS, Wants
from p2ptrain.core.ledger import slots_of
from p2ptrain.units import Microbatch, Slot, Stage
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.post import Post
    from p2ptrain.engine.stepping import Stepper
    from p2ptrain.units import Seconds


class Wanting:
    """See the module."""

    def __init__(self, pipeline: Pipeline, stepper: Stepper, post: Post) -> None:
        self._pipeline, self._stepper, self._post = pipeline, stepper, post
        self._wants = (Wants(), Wants())  # of this step, and of the last
        self.due_at: Seconds | None = None  # when :meth:`tick` must run next

    def begin(self) -> None:
        """A step is taken up."""
        self._wants = (Wants(), Wants())

    def borrowed(self, now: Seconds) -> None:
        """A deposit was taken up."""
        self.due_at = now + GRACE_SECONDS

    def asked(self, message: m.Whereabouts) -> None:
        """A seat above lacks the input of a slot that may be bare here, too: ask on."""
        for pipeline in self._both():
            if message.at == pipeline.at and _bare(pipeline) >> message.slot & 1:
                self._ask(pipeline, 1 << message.slot)

    def tick(self, now: Seconds) -> None:
        """Look which bare slots the stage above lacks, and ask for them."""
        if self.due_at is None or now < self.due_at:
            return
        past = self._pipeline.past
        for pipeline, wants in zip(self._both(), self._wants, strict=False):
            if past is not None and pipeline is past.pipeline:
                lacking = past.lacking_above()
            else:
                lacking = self._lacking()
            self._ask(pipeline, wants.look(_bare(pipeline) & lacking, now=now))
        borrows = any(pipeline.shelf.borrowed for pipeline in self._both())
        self.due_at = now + GRACE_SECONDS if borrows else None

    def _both(self) -> tuple[Pipeline, ...]:
        past = self._pipeline.past
        return (self._pipeline,) if past is None else (self._pipeline, past.pipeline)

    def _lacking(self) -> int:
        """What no live seat of the stage above has counted in this step."""
        machine = self._stepper.machine
        if machine is None or self._pipeline.is_last:
            return 0
        return machine.ledger.expected & ~self._pipeline.custodian.duties.counted_there("forward")

    def _ask(self, pipeline: Pipeline, slots: int) -> None:
        at, stage, post = pipeline.at, pipeline.stage, self._post
        for slot in slots_of(slots):
            assert at is not None
            if stage == 0:
                pipeline.source(Microbatch(at.step, Slot(slot)), replay=True)
                continue
            wanted = m.Whereabouts(at=at, slot=Slot(slot), stage=stage, state="wanted")
            post.tell_all(post.seats(Stage(stage - 1)), wanted)


def _bare(pipeline: Pipeline) -> int:
    """Slots of which nothing is here, not even what was computed of them."""
    return pipeline.shelf.bare & ~pipeline.custodian.duties.slots("forward")
