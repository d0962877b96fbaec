"""Whole swarms on the virtual clock, with faults struck at chosen moments.

A cue is a condition on the event log and what to do then. It fires once, in the loop's next
turn and in the network's own context, as a real fault owes nothing to where the engine
happens to be; a run in which a cue did not fire has tested nothing and fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.scenario import Scenario, SwarmResult
from p2ptrain.sim.world import SimWorld

if TYPE_CHECKING:
    from p2ptrain.units import PeerId


@dataclass(frozen=True)
class Cue:
    """``act`` strikes and returns whom it struck."""

    fault: str
    when: Callable[[ev.Entry], bool]
    act: Callable[[SimWorld, ev.Entry], PeerId]
    after: float = 0.0


class Directed(SimWorld):
    """A world with cues."""

    def __init__(self, scenario: Scenario, cues: tuple[Cue, ...]) -> None:
        super().__init__(scenario)
        self.waiting = list(cues)
        self.fired: list[str] = []

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        super().emit(peer, event)
        entry = self.entries[-1]
        for cue in [cue for cue in self.waiting if cue.when(entry)]:
            self.waiting.remove(cue)
            self.clock.call_later(cue.after, self.fire, cue, entry, context=self.network.context)

    def fire(self, cue: Cue, entry: ev.Entry) -> None:
        target = cue.act(self, entry)
        self.fired.append(cue.fault)
        self.emit(target, ev.FaultFired(fault=cue.fault, target=target))


Play = Callable[..., SwarmResult]


@pytest.fixture
def play() -> Play:
    """Run a scenario with its cues; every checker must be content and every cue have fired."""

    def run(scenario: Scenario, *cues: Cue, holds: bool = True) -> SwarmResult:
        world = Directed(scenario, cues)
        result = world.run()
        assert len(world.fired) == len(cues), f"only {world.fired} fired"
        if holds:
            assert result.holds, [verdict for verdict in result.verdicts if not verdict.holds]
            assert all(v.facts for v in result.verdicts if v.invariant != "I4")
        return result

    return run


@pytest.fixture
def cue() -> type[Cue]:
    """Conditions and acts for ``play``."""
    return Cue
