"""Taking a step: from the SUMs of all stages to new weights, a longer chain and a record.

    SUMs known -> wait until nothing computes here -> compute steps -> chain -> events -> done

What a committed step leaves behind (its sums; the whole integer sum lies in compute) is kept
until the next commit, for seats that are one step behind; so are the weights before it, while
there are other peers that may need what died with a seat (engine/past).

Invariants:
    * compute steps only while the pipeline is frozen and quiet: no microbatch is computed
      half with the old weights and half with the new;
    * the chain grows by exactly what was applied, and the events say what was committed;
    * cancelled, the seat is closing: its weights are not used again.

Refused: stepping inside the round machine's handler. A step takes seconds of compute, and
heartbeats and answers must not wait for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.chain import leads_to, next_chain, step_outcome
from p2ptrain.core.health import trouble
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.core.schedule import step_slots
from p2ptrain.observe import events as ev
from p2ptrain.ports import Update
from p2ptrain.wire.records import CommitRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.core.chain import StepOutcome
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import StageCompute
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Chain, Seconds, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The step that a seat's state comes of: committed here, or by whoever gave the state."""

    at: Position
    sums: tuple[Sum, ...]
    outcome: StepOutcome
    chain: Chain  # after it
    kept: bool = False  # whether the weights before it are
    learned: bool = False  # taken by others: it came with the state

    def told(self) -> tuple[Sum, ...]:
        """The SUMs as somebody tells them who has stepped with them."""
        return tuple(msgspec.structs.replace(whole, final=True) for whole in self.sums)

    def record(self) -> CommitRecord:
        """What the directory is told of it."""
        return CommitRecord(
            epoch=self.at.epoch,
            step=self.at.step,
            chain=self.chain,
            loss=self.outcome.loss,
            val_loss=self.outcome.val_loss,
        )


class Committer:
    """Takes the steps of one seat; ``committed`` is called after each."""

    def __init__(
        self,
        spec: RunSpec,
        pipeline: Pipeline,
        compute: StageCompute,
        post: Post,
        *,
        emit: ev.Emit,
        committed: Callable[[Done], None],
    ) -> None:
        self.last: Done | None = None  # what we can still give to seats one step behind
        self._spec, self._pipeline, self._compute = spec, pipeline, compute
        self._post, self._emit, self._committed = post, emit, committed
        self._nominal_tokens = spec.batch.sequences * spec.model.context
        self._became_quiet = asyncio.Event()
        self._since: Seconds | None = None  # the last commit, or the beginning of the first step
        self._trouble: str | None = None  # at the boundary above, as last told

    def begin(self, now: Seconds) -> None:
        """A step is taken up; its duration counts from the commit before it, if there was one."""
        if self.last is None:
            self._since = now

    def quiet(self) -> None:
        """Nothing is computing at this seat: a step that waits for that may be taken."""
        self._became_quiet.set()

    async def commit(self, at: Position, sums: tuple[Sum, ...]) -> None:
        """Step from ``at`` with the SUMs of all stages.

        Cancelled here, the seat is closing; its weights are not used again.
        """
        pipeline = self._pipeline
        pipeline.frozen = True
        if pipeline.past is not None:
            pipeline.past.stop()
        while not pipeline.still:  # a job of this seat is being computed; it is wasted
            self._became_quiet.clear()
            await self._became_quiet.wait()
        pipeline.forget_past()
        keep = len(sums) > 1 and bool(self._post.everyone())
        outcome = step_outcome(sums, self._nominal_tokens)
        update = Update(step=at.step, tokens=outcome.tokens, norms=outcome.norms, skip=outcome.skip)
        await self._compute.step(update, keep=keep)
        chain = next_chain(at.chain, at.epoch, at.step, sums)
        self.last = Done(at=at, sums=sums, outcome=outcome, chain=chain, kept=keep)
        self._record(self.last, asyncio.get_running_loop().time())
        self._committed(self.last)

    async def stand_on(self, done: Done) -> None:
        """Take ``done`` for the last step, of which it is another name, and forget the present.

        Cancelled here, the seat is closing.
        """
        pipeline = self._pipeline
        pipeline.frozen, pipeline.passing = True, False  # nothing begins, whatever comes
        while not pipeline.quiet:  # what is being computed is wasted
            self._became_quiet.clear()
            await self._became_quiet.wait()
        await self._compute.clear()
        self.last = done

    def learn(self, at: Position, sums: tuple[Sum, ...]) -> None:
        """Whoever gave the state, which stands ``at``, says that ``sums`` led there."""
        if leads_to(at, sums, self._spec.cut.stages):  # else it is as if nothing was said
            was, outcome = sums[0].at, step_outcome(sums, self._nominal_tokens)
            self.last = Done(at=was, sums=sums, outcome=outcome, chain=at.chain, learned=True)

    def _record(self, done: Done, now: Seconds) -> None:
        at, outcome, stage = done.at, done.outcome, self._compute.stage
        own = done.sums[stage]
        slots = step_slots(self._spec, at.step)
        event = ev.StepCommitted(
            epoch=at.epoch,
            stage=stage,
            step=at.step,
            chain=done.chain,
            digest=own.digest,
            cover=own.cover,
            expected=mask_to_bytes(slots.mask, slots.width),
            loss=outcome.loss,
            val_loss=outcome.val_loss,
            skipped=outcome.skip,
            tokens=outcome.tokens,
            seconds=now - (self._since if self._since is not None else now),
        )
        activity = ev.Activity(
            stage=stage,
            step=at.step,
            seconds=event.seconds,
            computing_seconds=self._pipeline.pace.computing_seconds,
            offers=self._pipeline.answers.offers,
            busy=self._pipeline.answers.busies,
        )
        self._since = now
        self._emit(event)
        self._emit(activity)
        self._read_boundary(at.step)

    def _read_boundary(self, step: Step) -> None:
        reading = self._compute.reading
        if reading is None:
            return
        self._emit(
            ev.BoundaryRead(
                boundary=reading.boundary,
                step=step,
                magnitude=reading.magnitude,
                deviation=reading.deviation,
                least_deviation=reading.least_deviation,
                saturation=reading.saturation,
                error=reading.error,
                gradient_norm=reading.gradient_norm,
            )
        )
        was, self._trouble = self._trouble, trouble(reading)
        if self._trouble is not None and was is None:  # once, until it has passed
            self._emit(ev.Alarm(reason=self._trouble))
