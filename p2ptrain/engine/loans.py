"""What a pipeline counts of a mate that is gone, as pipeline, worker and round see it.

The slots themselves stand at the shelf (``Shelf.borrowed``), which says so to others; here is
what must be done about them, set by engine/depositing, or nothing where no deposits are made.

Refused: making the pipeline ask what deposits there are. It computes, and adds or does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.engine.items import Item
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.units import PeerId


class Loans:
    """See the module. ``taking_out``: subtractions that are under way.

    ``taken``: whose slots are counted here, and which. ``chore``: what to do between two jobs;
    ``give_back``: take out all that counts any of these slots.
    """

    def __init__(self) -> None:
        self.taking_out = 0
        self.taken: tuple[tuple[PeerId, int], ...] = ()
        self.chore: Callable[[], Coroutine[None, None, None] | None] = lambda: None
        self.give_back: Callable[[int], Coroutine[None, None, None]] = _nothing


async def _nothing(_slots: int) -> None:
    pass


def let_go(pipeline: Pipeline, item: Item) -> None:
    """It was computed, and what had counted it is no longer here: nor is it."""
    pipeline.shelf.take(item.work)
    if item.sender is not None and pipeline.at is not None:
        pipeline.answers.whereabouts(item.sender, item.work, pipeline.at)
