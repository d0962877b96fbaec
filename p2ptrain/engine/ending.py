"""What a slow seat does towards the end of a step: it takes on nothing it would end last.

    asked     -> BUSY, if all that lies here and one more take longer than the mates need
                 for everything that is left (core/ending)
    a change  -> what waits here for that long goes back to its senders, as if recalled

Invariants: only what has not begun is given back, youngest first; what stage 0 took from the
data stays (mates ask for it, engine/sourcing); nothing of a step that is over is judged.

Refused: to give back what is parked, too. Its sender would look for it anew, with a second
forward, and it was never late enough in any run that we looked at.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from p2ptrain.core.ending import Rest
from p2ptrain.engine import window
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.engine.items import Item
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.stepping import Stepper
    from p2ptrain.engine.surroundings import Surroundings


class Ending:
    """See the module. Call :meth:`look` whenever something has changed."""

    def __init__(self, pipeline: Pipeline, stepper: Stepper, around: Surroundings) -> None:
        self._pipeline, self._stepper, self._around = pipeline, stepper, around
        self._rest = Rest()
        pipeline.late = self.late

    def late(self) -> bool:
        """Whether one more microbatch would end here when the stage could have been through."""
        pipeline = self._pipeline
        services = math.inf if pipeline.frozen else self._services()
        coming = pipeline.shelf.services_owed() + pipeline.book.reserved  # offered, not here yet
        return services < math.inf and coming + 1.0 > services

    def look(self) -> None:
        """Give back what waits here in vain."""
        while (item := self._last_in_vain()) is not None:
            at, sender = self._pipeline.at, item.sender
            assert at is not None
            assert sender is not None
            recall = m.Recall(at=at, slot=item.work.slot, stage=self._pipeline.stage)
            self._pipeline.recall(sender, recall)

    def _last_in_vain(self) -> Item | None:
        pipeline = self._pipeline
        waiting = pipeline.shelf.given_waiting()
        if not waiting or pipeline.frozen:
            return None
        services = self._services()
        late = services < math.inf and pipeline.shelf.services_owed() > services
        return waiting[-1] if late else None

    def _services(self) -> float:
        """How many of our services the stage still needs without us."""
        machine, pace, around = self._stepper.machine, self._pipeline.pace, self._around
        assert machine is not None
        rates = window.rates(around, self._pipeline.stage, own=pace.rate)
        own = rates.pop(around.signer.peer)
        left = machine.ledger.missing().bit_count()
        now = asyncio.get_running_loop().time()
        return self._rest.services(machine.at.step, left, own=own, mates=rates.values(), now=now)
