"""Peers come and go for minutes: who stays keeps nothing of those who are gone."""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.membership import FORGET_SECONDS
from p2ptrain.engine.departed import DEPARTED_MOST
from p2ptrain.observe import events as ev
from p2ptrain.sim.scenario import Scenario, crowd
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.sim.world import SimWorld

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.units import PeerId

STEPS = 68
SLOW = 0.02  # a step takes six or seven seconds
GONE_SECONDS = FORGET_SECONDS + 30.0
STAYING = 4  # peers that nobody strikes: two of each stage
EVERY_STEPS, RESPAWN_SECONDS = 2, 3.0
CONTAINERS = (dict, list, tuple, set, frozenset)


def held(root: Any) -> Iterator[tuple[type, str]]:
    """Every string that the engine's objects reach from ``root``, with the type that holds it.

    The world beside them (streams, tasks, the directory) is not walked.
    """
    seen, waiting = {id(root)}, [(root, type(root))]
    kept = []  # so that no id is used twice
    while waiting:
        each, owner = waiting.pop()
        keys = list(each) if isinstance(each, dict) else []  # the collector passes names over
        for found in [*keys, *gc.get_referents(each)]:
            if isinstance(found, str):
                yield owner, found
            home = type(found).__module__.startswith(("p2ptrain.engine", "p2ptrain.core"))
            if id(found) in seen or not (home or isinstance(found, CONTAINERS)):
                continue
            seen.add(id(found))
            kept.append(found)
            waiting.append((found, type(found) if home else owner))


class Churned(SimWorld):
    """One of those who do not stay dies every few steps; those who do are looked at in the end."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.staying = [plan.peer for plan in scenario.peers[:STAYING]]
        self.died: dict[str, float] = {}
        self.gone: set[str] = set()
        self.left: Counter[str] = Counter()
        self._reached = -1

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        super().emit(peer, event)
        if isinstance(event, ev.StepCommitted) and event.step > self._reached:
            self._reached = event.step
            if event.step % EVERY_STEPS == 0:
                self.harm.later(0.0, self.strike)
            if event.step == STEPS - 2:
                self.harm.later(0.0, self.look)

    def strike(self) -> None:
        coming_and_going = [host for host in self.harm.present() if host.peer not in self.staying]
        if coming_and_going:
            host = min(coming_and_going, key=lambda host: host.plan.starts_at)
            self.died[host.peer] = self.clock.time()
            self.harm.kill(host, respawn_seconds=RESPAWN_SECONDS)

    def look(self) -> None:
        now = self.clock.time()
        self.gone = {peer for peer, at in self.died.items() if now - at > GONE_SECONDS}
        for peer in self.staying:
            for owner, name in held(self.hosts[peer].node):
                if name in self.gone:
                    self.left[owner.__name__] += 1


@pytest.mark.timeout(90)
def test_nothing_is_kept_of_peers_that_are_gone() -> None:
    """But the number of their last start, for a while (roster), and how far the last few came."""
    spec = toy_spec(stages=2, microbatches=8, steps=STEPS)
    world = Churned(Scenario(spec=spec, peers=crowd(8, speeds=(SLOW,)), seed=5))
    result = world.run()
    assert result.holds
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest
    assert len(world.gone) >= 10
    assert set(world.left) == {"Roster", "Departed"}
    assert world.left["Roster"] == STAYING * len(world.gone)
    assert world.left["Departed"] <= STAYING * DEPARTED_MOST < world.left["Roster"]
