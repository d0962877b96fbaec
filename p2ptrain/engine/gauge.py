"""How full a seat is, told beside its bounds: at every new maximum, so that a checker sees all.

Invariant: an overrun is told in the turn in which it happens; calm tells nothing.

Refused: sampling by time. What is over in a moment would never be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from p2ptrain.engine.custodian import Custodian
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.ports import Spill
    from p2ptrain.units import Bytes


class Gauge:
    """Watches one pipeline. Call :meth:`look` whenever its fill may have changed."""

    def __init__(
        self,
        pipeline: Pipeline,
        custodians: Callable[[], Iterable[Custodian]],
        spill: Spill | None,
        bound_bytes: Bytes,
        *,
        emit: ev.Emit,
    ) -> None:
        self._pipeline, self._custodians = pipeline, custodians
        self._spill, self._bound, self._emit = spill, bound_bytes, emit
        self._highest: tuple[int, ...] = (0, 0, 0, 0)

    def look(self) -> None:
        """Tell the fill if any part of it is higher than ever."""
        pipeline, book, spill = self._pipeline, self._pipeline.book, self._spill
        retained = pipeline.retained_bytes
        spilled = sum(custodian.frames.spilled_bytes for custodian in self._custodians())
        fill = (book.queue, book.parked, retained, spilled)
        highest = tuple(map(max, fill, self._highest))
        if highest == self._highest:
            return
        self._highest = highest
        bounds = ev.Bounds(
            stage=pipeline.stage,
            queue=book.queue,
            queue_bound=book.queue_bound,
            parked=book.parked,
            parked_bound=book.parked_bound,
            retained_bytes=retained,
            retained_bound=self._bound,
            spilled_bytes=spilled,
            spilled_bound=0 if spill is None else spill.bound_bytes,
        )
        self._emit(bounds)
