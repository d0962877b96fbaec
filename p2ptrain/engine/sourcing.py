"""Which microbatches this seat of stage 0 takes from the data, and when.

Every seat of stage 0 can source every microbatch; the preferred owner is the first live
seat in a rendezvous order over the last step record. The order is the same everywhere, so
nobody needs to be asked. Views may differ for a while: then a microbatch is sourced twice
(work lost, nothing else), or by nobody, which patience cures: the k-th seat in order takes
what is still missing after k patiences without any progress of the stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.schedule import owners
from p2ptrain.units import Microbatch, Slot

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Position
    from p2ptrain.core.schedule import StepSlots
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.units import PeerId, RunId, Seconds

PATIENCE_SECONDS = 15.0  # no progress for so long: a live owner is stuck (several suspicions)
ROUNDING = 1e-6  # of a patience: the timer may fire a float's last bit early
PATIENCE_STEPS = 3.0  # ... or three of the last step's durations, whichever is longer


class Sourcer:
    """Feeds one stage-0 pipeline with the microbatches that are its own."""

    def __init__(self, run: RunId, me: PeerId, pipeline: Pipeline) -> None:
        self._run, self._me, self._pipeline = run, me, pipeline
        self._orders: dict[Microbatch, tuple[PeerId, ...]] = {}
        self._pending: list[tuple[Microbatch, bool]] = []  # mine to source; is it a replay
        self._patience = PATIENCE_SECONDS
        self._moved_at = 0.0  # when the stage last counted anything new
        self._counted = 0  # every slot that was ever counted in this step
        self.due_at: Seconds | None = None

    def begin(
        self,
        at: Position,
        slots: StepSlots,
        members: tuple[PeerId, ...],
        *,
        now: Seconds,
        last_seconds: Seconds,
    ) -> None:
        """A new step: ``members`` are stage 0's peers of the last step record, us or not."""
        weighted = [(peer, 1.0) for peer in members or (self._me,)]
        works = [Microbatch(at.step, Slot(slot)) for slot in slots]
        self._orders = {work: owners(self._run, work, weighted) for work in works}
        self._patience = max(PATIENCE_SECONDS, PATIENCE_STEPS * last_seconds)
        self._moved_at, self._counted, self._pending = now, 0, []

    def stop(self) -> None:
        """Nothing is to be sourced until the next begin."""
        self._orders, self._pending, self.due_at = {}, [], None

    def refresh(self, live: frozenset[PeerId], union: int, now: Seconds) -> None:
        """Who lives, or what is counted, has changed: see what is ours to source now."""
        if union & ~self._counted:  # long steps are no sign of a stuck owner, standstill is
            self._moved_at = now
        self._counted |= union
        self._pending = []
        waited = int((now - self._moved_at) / self._patience + ROUNDING)
        for work, order in self._orders.items():
            if union >> work.slot & 1 or self._pipeline.holds(work):
                continue
            alive = [peer for peer in order if peer in live] or [self._me]
            rank = alive.index(self._me) if self._me in alive else len(alive)
            if rank <= waited:
                again = order[0] != self._me or bool(self._counted >> work.slot & 1)
                self._pending.append((work, again))
        self.due_at = self._moved_at + (waited + 1) * self._patience
        if not self._orders:
            self.due_at = None
        self.feed()

    def feed(self) -> None:
        """Take as many as the bound allows, oldest first."""
        while self._pending:
            work, replay = self._pending[0]
            if not self._pipeline.holds(work) and not self._pipeline.source(work, replay=replay):
                return
            self._pending.pop(0)
