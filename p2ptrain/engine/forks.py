"""A run of mixed hardware that has come in two, at one step: found and made one (core/forks).

    nothing is counted in our stage for STILL_SECONDS --> ask all what they stepped with
        a name that holds against ours --> stand still --> take it over
                                       --> begin the present step anew

Two seats that each heard another name of a sum, for one of them was frozen or cut off, may both
have stepped. Each side then takes the other's microbatches for foreign, and where neither has
a seat of every stage both wait for ever. So may two seats of one peer: they hear each other here,
for to others a peer tells one name of each sum.

Invariants:
    * the weights stay: under either name they are right, and differ by rounding;
    * what was counted of the present step is forgotten: it was counted at another position.
      So while something is counted nobody is listened to: a liar who signs one name after the
      other has no step begin anew that would end without;
    * a step that is being taken is taken; what others say of it is compared then.

Refused: loading the other side's state. Where it lacks a stage there is none, and where it has
one the next adoption makes both equal anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import step_outcome
from p2ptrain.core.forks import other_name
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    import asyncio

    from p2ptrain.core.agreement import Sum
    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import Chain, Seconds

STILL_SECONDS = 10.0
"""Twice the time in which a silent peer is suspected, and its microbatches computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stood:
    """What a stage has counted of which step; ``asked``: when all were, or it came to that."""

    at: Position
    counted: int
    since: Seconds
    asked: Seconds


class Forks:
    """Watches the seats of one node. Call :meth:`look` every second or so."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._mixed = node.spec.sync.agreement == "canonical"
        self._stood: dict[Stage, _Stood] = {}
        self._jobs: dict[Stage, asyncio.Task[None]] = {}

    def look(self, now: Seconds) -> None:
        """See whether a seat stands apart, or may."""
        for stage, seat in self._node.seats.items() if self._mixed else ():
            last, busy = seat.stepper.last, seat.finished or seat.parting or seat.adopting
            if busy or last is None or seat.stepper.machine is None or stage in self._jobs:
                continue
            stood = self._look_at(seat, now)
            if now - stood.since < STILL_SECONDS:
                continue
            told = [*seat.stepper.sums.of_others(), *self._beside(last.at)]
            found = other_name(last.at, last.sums, told, nominal_tokens=self._nominal)
            if found is not None:
                self._jobs[stage] = self._node.spawn(self._turn(seat, last, *found))
            elif now - stood.asked >= STILL_SECONDS:
                stages = tuple(Stage(stage) for stage in range(self._node.spec.cut.stages))
                wanted = m.WantSums(at=last.at, stages=stages)
                self._node.mail.tell_all(self._node.roster.everyone(), wanted)
                self._stood[stage] = replace(stood, asked=now)

    def closed(self, stage: Stage) -> None:
        """The seat is given up."""
        job = self._jobs.pop(stage, None)
        if job is not None:
            job.cancel()

    @property
    def _nominal(self) -> int:
        spec = self._node.spec
        return spec.batch.sequences * spec.model.context

    def _beside(self, at: Position) -> list[dict[Stage, Sum]]:
        """What our own seats took the step from ``at`` with."""
        taken = (seat.stepper.last for _, seat in sorted(self._node.seats.items()))
        return [
            {whole.stage: whole for whole in last.sums}
            for last in taken
            if last is not None and last.at == at
        ]

    def _look_at(self, seat: SeatRuntime, now: Seconds) -> _Stood:
        """How the stage of ``seat`` stands, and since when."""
        assert seat.stepper.machine is not None
        machine = seat.stepper.machine
        at, counted = machine.at, machine.ledger.union()
        known = self._stood.get(seat.stage)
        if known is None or (known.at, known.counted) != (at, counted):
            known = self._stood[seat.stage] = _Stood(at=at, counted=counted, since=now, asked=now)
        return known

    async def _turn(
        self, seat: SeatRuntime, last: Done, chain: Chain, sums: tuple[Sum, ...]
    ) -> None:
        """Cancelled, the seat is closing: under which name is no matter."""
        node, stage = self._node, seat.stage
        done = replace(last, sums=sums, chain=chain, outcome=step_outcome(sums, self._nominal))
        if await seat.stepper.sums.stand_on(done):
            at = Position(epoch=last.at.epoch, step=seat.version, chain=chain)
            reason = "another name of the last step holds"
            node.emit(ev.SeatOpened(stage=stage, version=at.step, reason=reason))
            state = seat.state  # who was about to leave still is
            seat.begin(at, tuple(tuple(whole.members) for whole in sums))
            seat.state = state
            node.presence.committed(stage, done.record())
            node.statuses_changed()
        self._jobs.pop(stage, None)
