"""Leaving a seat without taking along what only it holds.

    draining --(a step commits, and somebody else serves the stage)--> parting
    parting: counts no more, gives its sum and its state --(a mate is through the step)--> closed
       `--(whoever was to take over is gone, seen twice)--> goes on

Who takes a seat over loads its state while steps go on, and so begins a step behind. Were
the old seat gone by then, the step that only it has taken would be gone, too; were it to
go on counting, the heir would never catch up. So it stands still at a step boundary, which
is the one place where its state is whole, until the heir has come as far.

Invariants:
    * a stage is left only to somebody who has come through the last step that we took;
    * a peer that leaves waits for others only while there are others who stay;
    * no slot and no round waits for a seat that has parted: its status says so, and in no later
      step does it own microbatches or lead a round (roster), until it goes on and says that.

Refused: handing over at the moment when the heir has loaded. It has loaded an older step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from p2ptrain.core.assignment import SeatView
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import Stage

LOOKS = 2  # an heir that loads again is out of sight for a moment


class Parting:
    """Decides for the seats of one node when they may stop, and when they may close."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told = False
        self._alone: dict[Stage, int] = {}  # looks in a row that found no heir

    def may_part(self, seat: SeatRuntime) -> bool:
        """Whether to stop at this step boundary: somebody serves the stage, or nobody could."""
        node = self._node
        if node.draining:
            return self._served(seat.stage) or not self.heirs()
        return node.admission.gives_up(seat) and self._served(seat.stage)

    def look(self) -> None:
        """Call every second or so: close what is needed no more; what nobody takes over goes on."""
        node = self._node
        self._go_on()
        for stage, seat in sorted(node.seats.items()):
            if not seat.parting:
                continue
            if seat.may_close or (node.draining and not self.heirs()):
                node.close_seat(stage, "drained" if node.draining else "given away")
        if node.draining and not node.seats:
            node.ended.set()

    def _go_on(self) -> None:
        node = self._node
        for stage, seat in sorted(node.seats.items()):
            here = not seat.parting or any(v.peer != node.me for v in self._heirs_of(stage))
            self._alone[stage] = 0 if here else self._alone.get(stage, 0) + 1
            if self._alone[stage] >= LOOKS:
                self._alone[stage] = 0
                node.go_on(seat)
                node.statuses_changed()

    def leave_in_vain(self) -> None:
        """Draining: say once that we must stay; go in mid-step when all others go as well."""
        node = self._node
        if not node.seats:  # the last one fell behind, and others serve its stage
            node.ended.set()
        elif not self.heirs():
            gone = set(range(node.spec.cut.stages)) - {view.stage for view in node.roster.views()}
            if gone and not any(self._ends(seat) for seat in node.seats.values()):
                for seat in node.seats.values():
                    node.holdings.leave(seat)
                node.ended.set()
        elif not self._told:
            alone = self._held_alone()
            self._told = bool(alone)
            if alone:
                reason = (
                    f"only this peer serves stage {alone}: staying until another does, "
                    f"{node.options.drain_seconds:.0f} s at most"
                )
                node.emit(ev.Alarm(reason=reason))

    def leave_anyway(self) -> None:
        """The time to drain is over: go, and say what nobody serves from now on."""
        node = self._node
        if node.ended.is_set():
            return
        alone = self._held_alone()
        if alone and self.heirs():
            reason = (
                f"nobody has taken stage {alone} over: leaving; once it is served "
                "again, the run goes on from its last checkpoint"
            )
            node.emit(ev.Alarm(reason=reason))
        node.ended.set()

    def _held_alone(self) -> str:
        """Our stages that nobody else serves to stay, in words; empty if there are none."""
        stages = (stage for stage in sorted(self._node.seats) if not self._served(stage))
        return ", ".join(map(str, stages))

    def _ends(self, seat: SeatRuntime) -> bool:
        """Whether its step ends without anybody else: those who are gone may have taken it."""
        machine = seat.stepper.machine
        known = 0 if machine is None else len(machine.sums)
        return not seat.parting and known == self._node.spec.cut.stages

    def heirs(self) -> bool:
        """Whether anybody else in the run stays."""
        me = self._node.me
        return any(v.peer != me and v.state != "draining" for v in self._node.roster.views())

    def _served(self, stage: Stage) -> bool:
        """Whether another peer serves ``stage``, to stay."""
        return any(view.peer != self._node.me for view in self._node.roster.serving(stage))

    def _heirs_of(self, stage: Stage) -> list[SeatView]:
        views = self._node.roster.views()
        return [view for view in views if view.stage == stage and view.state != "draining"]
