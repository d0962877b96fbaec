"""Whole swarms on the virtual clock, with faults struck at chosen moments.

A cue is a condition on the event log and what to do then. It fires once, in the loop's next
turn and in the network's own context, as a real fault owes nothing to where the engine
happens to be; a run in which a cue did not fire has tested nothing and fails.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.scenario import Scenario, SwarmResult
from p2ptrain.sim.world import SimWorld
from peers.soak import Totals, soak

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from p2ptrain.units import PeerId

RANDOM_SWARMS = "test_seeds.py"
SEEDS = range(2000)  # at most five minutes on two cores of their own

STANDING_BACK = 10
"""A tenth of the processor beside tests that want it: their deadlines stay what they were."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The random swarms are asked for last: until then they run on what is left of the cores."""
    items.sort(key=lambda item: item.path.name == RANDOM_SWARMS)


@pytest.fixture(scope="session", autouse=True)
def soaking(request: pytest.FixtureRequest) -> Iterator[Future[Totals] | None]:
    """The random swarms, begun with the first test of this folder; None: nobody asks for them."""
    items: list[pytest.Item] = request.session.items
    if not any(item.path.name == RANDOM_SWARMS for item in items):
        yield None
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        soaks = Soaking()
        yield pool.submit(soaks.run)
        soaks.stop()


class Soaking:
    """A soak beside other work, which can be stopped from outside."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        swarms = soak(SEEDS, workers=os.cpu_count() or 1, niceness=STANDING_BACK)
        self._going = self._loop.create_task(swarms)

    def run(self) -> Totals:
        """All of it, in a thread of its own."""
        try:
            return self._loop.run_until_complete(self._going)
        finally:
            self._loop.close()

    def stop(self) -> None:
        """End it, if it goes on, with its processes."""
        with suppress(RuntimeError):  # it has ended, and its loop with it
            self._loop.call_soon_threadsafe(self._going.cancel)


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
