"""Where a run stands that does not go on: what each stage has of the step that is due.

    stage 1: 13 counted, no sum; last round 4: no ack of ..x7Kd2e

Read from the peers' events, by stage, for the one line that a stalled simulation ends
with. Refused: judging what is wrong; the line says what is missing, its reader thinks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from p2ptrain.units import PeerId, Stage, Step

Told: TypeAlias = ev.SlotCounted | ev.Subtracted | ev.RoundBegan | ev.SumPublished


class Waiting:
    """What every stage has done of its latest step."""

    def __init__(self, *, stages: int) -> None:
        self._counted: list[dict[PeerId, set[int]]] = [{} for _ in range(stages)]
        self._steps: list[Step | None] = [None] * stages
        self._summed = [False] * stages
        self._rounds = [""] * stages

    def feed(self, entry: ev.Entry) -> None:
        """Take in one event."""
        event = entry.event
        if isinstance(event, Told):
            if self._reach(event.stage, event.step):
                self._take(entry.peer, event)
        elif isinstance(event, ev.FaultFired) and event.fault == "kill":
            for counted in self._counted:
                counted.pop(entry.peer, None)

    def _take(self, peer: PeerId, event: Told) -> None:
        match event:
            case ev.SlotCounted(stage=stage, slot=slot):
                self._counted[stage].setdefault(peer, set()).add(slot)
            case ev.Subtracted(stage=stage, slot=slot):
                self._counted[stage].get(peer, set()).discard(slot)
            case ev.RoundBegan(stage=stage, round=number, reason=reason):
                self._rounds[stage] = f"round {number}: {reason}"
            case ev.SumPublished(stage=stage):
                self._summed[stage] = True

    def line(self) -> str:
        """All stages, in one line."""
        parts = []
        for stage, step in enumerate(self._steps):
            slots: set[int] = set().union(*self._counted[stage].values())
            state = "summed" if self._summed[stage] else "no sum"
            at = "nothing yet" if step is None else f"step {step}, {len(slots)} counted, {state}"
            last = f", {self._rounds[stage]}" if self._rounds[stage] else ""
            parts.append(f"stage {stage}: {at}{last}")
        return "; ".join(parts)

    def _reach(self, stage: Stage, step: Step) -> bool:
        """Whether an event concerns the latest step; a later one makes it the latest."""
        known = self._steps[stage]
        if known is None or step > known:
            self._steps[stage] = step
            self._counted[stage] = {}
            self._summed[stage], self._rounds[stage] = False, ""
        return step == self._steps[stage]
