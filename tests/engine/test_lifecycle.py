"""A peer's life: it joins, serves, ends with the run or before, and leaves nothing behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from p2ptrain.core.chain import genesis_chain
from p2ptrain.observe import events as ev
from p2ptrain.run import digest
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = toy_spec(stages=2, microbatches=6, steps=4)
A, B, C, D = (PeerId(name) for name in "abcd")


def world(*names: PeerId, stages: bool = True, speed: float = 0.2) -> SimWorld:
    """Peers that serve stage 0 and 1 in turn."""
    peers = [
        PeerPlan(peer=name, speed=speed, stage=Stage(number % 2) if stages else None)
        for number, name in enumerate(names)
    ]
    return SimWorld(Scenario(spec=SPEC, peers=peers))


def upon(
    sim: SimWorld, when: Callable[[ev.Entry], bool], act: Callable[[], None], after: float = 0.0
) -> list[float]:
    """Do something once, after the first event of a kind; the returned list tells that it was."""
    emit, done = sim.emit, []

    def watched(peer: PeerId, event: ev.AnyEvent) -> None:
        emit(peer, event)
        if not done and when(sim.entries[-1]):
            done.append(sim.clock.time())
            sim.clock.call_later(after, act, context=sim.network.context)

    sim.emit = watched  # type: ignore[method-assign]
    return done


def counting(peer: PeerId, step: int) -> Callable[[ev.Entry], bool]:
    return lambda entry: (
        entry.peer == peer and isinstance(entry.event, ev.SlotCounted) and entry.event.step == step
    )


def drain(sim: SimWorld, peer: PeerId) -> None:
    node = sim.hosts[peer].node
    assert node is not None
    node.drain()


def trained(result: SwarmResult) -> bool:
    return result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest


def test_all_end_finished_with_one_chain_and_one_model() -> None:
    result = world(A, B, C, D).run()
    assert result.holds
    assert {peer.finished for peer in result.peers.values()} == {True}
    chains = {peer.chain for peer in result.peers.values()}
    assert len(chains) == 1
    assert chains != {genesis_chain(digest(SPEC))}
    assert trained(result)
    assert {peer.false_suspicions for peer in result.peers.values()} == {0}


def test_drained_in_mid_step_it_leaves_at_the_boundary() -> None:
    sim = world(A, B, C, D)
    fired = upon(sim, counting(D, 1), lambda: drain(sim, D))
    result = sim.run()
    assert fired
    assert trained(result)
    assert result.peers[D].versions == {}
    commits = [e for e in result.entries if isinstance(e.event, ev.StepCommitted) and e.peer == D]
    assert [entry.event.step for entry in commits] == [0, 1]  # type: ignore[union-attr]


def test_drained_twice_is_drained_once() -> None:
    sim = world(A, B, C, D)

    def twice() -> None:
        drain(sim, D)
        drain(sim, D)

    fired = upon(sim, counting(D, 1), twice)
    result = sim.run()
    assert fired
    assert trained(result)
    closed = [e for e in result.entries if isinstance(e.event, ev.SeatClosed)]
    assert [entry.peer for entry in closed] == [D]


def test_drained_before_anything_began_it_leaves_at_once() -> None:
    sim = world(A, B, C, D)
    opened = upon(
        sim,
        lambda entry: entry.peer == D and isinstance(entry.event, ev.SeatOpened),
        lambda: drain(sim, D),
    )
    result = sim.run()
    assert trained(result)
    stopped = next(
        e.at for e in result.entries if e.peer == D and isinstance(e.event, ev.PeerStopped)
    )
    assert stopped - opened[0] < 1.0


def test_cancelled_in_mid_step_it_ends_with_all_its_tasks_within_a_moment() -> None:
    sim = world(A, B, C, D)
    ended: list[bool] = []

    def look() -> None:  # a task group ends only after every task in it
        task = sim.hosts[D].task
        ended.append(task is not None and task.done())

    fired = upon(sim, counting(D, 1), lambda: sim.kill(D))
    upon(sim, counting(D, 1), look, after=0.5)
    result = sim.run()
    assert fired
    assert ended == [True]
    assert trained(result)


def test_a_loop_that_slept_judges_nobody_by_its_own_sleep() -> None:
    sim = world(A, B, C, D)
    fired = upon(sim, counting(D, 1), lambda: sim.clock.freeze(D))
    upon(sim, counting(D, 1), lambda: sim.clock.thaw(D), after=4.5)
    result = sim.run()
    assert fired
    assert trained(result)
    assert not [e for e in result.entries if e.peer == D and isinstance(e.event, ev.Suspected)]


def test_a_link_that_breaks_between_steps_costs_nothing() -> None:
    sim = world(A, B, C, D)
    fired = upon(
        sim,
        lambda entry: entry.peer == D and isinstance(entry.event, ev.StepCommitted),
        lambda: sim.network.reset(A, D),
    )
    result = sim.run()
    assert fired
    assert trained(result)
    assert not [e for e in result.entries if isinstance(e.event, ev.Suspected)]


@pytest.mark.parametrize("names", [(A,), (A, B)])
def test_what_the_events_say_is_what_the_peers_hold(names: tuple[PeerId, ...]) -> None:
    result = world(*names, stages=False).run()
    held = {
        (peer, stage): version
        for peer, one in result.peers.items()
        for stage, version in one.versions.items()
    }
    steps: dict[tuple[PeerId, Stage], int] = {}
    for entry in result.entries:
        if isinstance(entry.event, ev.StepCommitted):
            steps[entry.peer, entry.event.stage] = entry.event.step + 1
    assert held == {key: steps[key] for key in held}
    assert {stage for _, stage in held} == {0, 1}
