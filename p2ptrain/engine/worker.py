"""The compute side of a peer: the oldest microbatch of all its seats, one at a time.

Oldest (t, slot) first is 91% of capacity and half the tail of backward-first (DESIGN 4).
One worker per device; compute itself runs elsewhere (an executor, or inline in a
simulation), so the loop stays free for heartbeats and answers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Tallies
from p2ptrain.engine.loans import let_go

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from p2ptrain.engine.items import Item
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.ports import StageCompute


class Worker:
    """Runs the jobs of several seats in order of age."""

    def __init__(self, seats: Callable[[], Iterable[tuple[Pipeline, StageCompute]]]) -> None:
        self._seats = seats
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something may have become ready."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled; a cancelled job's seat must be cleared before it is used again."""
        while True:
            if (chore := self._chore()) is not None:
                await chore
                continue
            job = self._next()
            if job is None:
                self._wake.clear()
                await self._wake.wait()
            else:
                await perform(*job)

    def _chore(self) -> Coroutine[None, None, None] | None:
        """What a seat must do while it computes nothing (engine/depositing)."""
        for pipeline, _ in self._seats():
            if (chore := pipeline.loans.chore()) is not None:
                return chore
        return None

    def _next(self) -> tuple[Pipeline, StageCompute, Item] | None:
        best: tuple[Pipeline, StageCompute, Item] | None = None
        for pipeline, compute in self._seats():
            item = pipeline.next_job()
            if item is not None and (best is None or item.age < best[2].age):
                best = (pipeline, compute, item)
        return best


async def perform(pipeline: Pipeline, compute: StageCompute, item: Item) -> None:
    """Compute one job of one seat and tell its pipeline."""
    pipeline.running += 1
    began, lent = _now(), pipeline.shelf.borrowed
    try:
        if item.returned:
            await _backward(pipeline, compute, item)
        elif pipeline.is_last:
            await _last(pipeline, compute, item)
        else:
            await _forward(pipeline, compute, item)
    finally:
        pipeline.running -= 1
    pipeline.pace.computing_seconds += _now() - began
    given_back = (lent & ~pipeline.shelf.borrowed) >> item.work.slot & 1
    if given_back and item.state == "counted" and not pipeline.passing:
        let_go(pipeline, item)
    pipeline.on_change()


async def subtract(pipeline: Pipeline, compute: StageCompute, mask: int) -> None:
    """Take the microbatches of ``mask`` out of the accumulator: another seat keeps them."""
    pipeline.loans.taking_out += 1
    try:
        await _subtract(pipeline, compute, mask)
    finally:
        pipeline.loans.taking_out -= 1
    pipeline.on_count()


async def _subtract(pipeline: Pipeline, compute: StageCompute, mask: int) -> None:
    if mask & pipeline.shelf.borrowed:
        await pipeline.loans.give_back(mask)
    for item in pipeline.counted_items(mask):
        if pipeline.evaluates(item.work):
            tallies = await _score(pipeline, compute, item, sign=-1)
        elif pipeline.is_last:
            loss = await compute.loss(item.work, item.tokens, item.given, sign=-1)
            tallies = Tallies(loss=-loss.loss, tokens=-loss.tokens, poisoned=-int(loss.poisoned))
        else:
            assert item.gradient is not None
            back = await compute.backward(
                item.work, item.tokens, item.given, item.gradient, sign=-1
            )
            tallies = Tallies(poisoned=-int(back.poisoned))
        pipeline.uncounts(item, tallies)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _forward(pipeline: Pipeline, compute: StageCompute, item: Item) -> None:
    began = _now()
    item.state = "computing"
    pipeline.book.started(item.work)
    path = (*item.path, pipeline.me)  # ask while it computes: the round trip costs nothing
    passes, sign = pipeline.passes(item.work), pipeline.sign(item.work)
    returns = not passes and item.gradient is None
    pipeline.custodian.open_forward(item.work, path, replay=item.replay, returns=returns, now=began)
    output = await compute.forward(item.work, item.tokens, item.given)
    now = _now()
    item.forward_seconds = now - began
    pipeline.book.computed(item.work, parks=not passes and not item.spare)
    item.state = "parked"
    pipeline.custodian.forward_ready(item.work, (item.tokens, output), now)
    pipeline.computed(item)
    if passes:
        pipeline.counts(item, Tallies(), sign=sign)


async def _backward(pipeline: Pipeline, compute: StageCompute, item: Item) -> None:
    assert item.gradient is not None
    began = _now()
    item.state = "computing"
    sign = pipeline.sign(item.work)
    back = await compute.backward(item.work, item.tokens, item.given, item.gradient, sign=sign)
    now = _now()
    pipeline.pace.observe(item.forward_seconds + now - began)
    pipeline.book.returned(item.work)
    pipeline.counts(item, Tallies(poisoned=int(back.poisoned)), sign=sign)
    if back.gradient is not None and item.sender is not None:
        pipeline.custodian.send_gradient(item.work, item.sender, back.gradient, now)


async def _last(pipeline: Pipeline, compute: StageCompute, item: Item) -> None:
    began = _now()
    item.state = "computing"
    pipeline.book.started(item.work)
    gradient, sign = None, pipeline.sign(item.work)
    if pipeline.evaluates(item.work):
        tallies = await _score(pipeline, compute, item, sign=1)
    else:
        loss = await compute.loss(item.work, item.tokens, item.given, sign=sign)
        tallies = Tallies(loss=loss.loss, tokens=loss.tokens, poisoned=int(loss.poisoned))
        gradient = loss.gradient
        pipeline.pace.observe(_now() - began)
    pipeline.book.computed(item.work, parks=False)
    pipeline.computed(item)
    pipeline.counts(item, tallies, sign=sign)
    if gradient is not None and item.sender is not None:
        pipeline.custodian.send_gradient(item.work, item.sender, gradient, _now())


async def _score(pipeline: Pipeline, compute: StageCompute, item: Item, *, sign: int) -> Tallies:
    if not pipeline.is_last:
        return Tallies()
    loss = await compute.evaluate(item.work, item.tokens, item.given)
    return Tallies(val_loss=sign * loss.loss, val_tokens=sign * loss.tokens)
