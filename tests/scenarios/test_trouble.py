"""Named faults in mid-step: what was lost is replayed, what was late recalled, nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

SPEC = toy_spec(stages=3, microbatches=12, steps=5)


def placed(*counts: int, speed: float = 0.2) -> list[PeerPlan]:
    """Peers that insist on their stage: ``counts`` of them per stage."""
    return [
        PeerPlan(peer=PeerId(f"s{stage}-{number}"), stage=Stage(stage), speed=speed)
        for stage, count in enumerate(counts)
        for number in range(count)
    ]


def trained(result: SwarmResult, spec: RunSpec = SPEC) -> bool:
    return result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def found(result: SwarmResult, kind: type[ev.AnyEvent]) -> list[Any]:
    return [entry.event for entry in result.entries if isinstance(entry.event, kind)]


def counted_by(peer: str, step: int, nth: int = 1) -> Callable[[ev.Entry], bool]:
    """The moment when ``peer`` has counted its ``nth`` microbatch of ``step``."""
    seen: list[ev.Entry] = []

    def when(entry: ev.Entry) -> bool:
        event = entry.event
        if isinstance(event, ev.SlotCounted) and (entry.peer, event.step) == (peer, step):
            seen.append(entry)
            return len(seen) == nth
        return False

    return when


def killing(peer: str) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        world.kill(PeerId(peer))
        return PeerId(peer)

    return act


def freezing(peer: str, seconds: float, *, process: bool = True) -> Callable[..., PeerId]:
    """The peer's process stops, or its network daemon (then nothing reaches it either)."""

    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        who = PeerId(peer)
        if process:
            world.clock.freeze(who)
        else:
            world.network.isolate(who)

        def thaw() -> None:
            world.network.mend(who)
            world.clock.thaw(who)
            world.emit(who, ev.FaultFired(fault="thaw", target=who))

        world.clock.call_later(seconds, thaw, context=world.network.context)
        return who

    return act


def resetting(one: str, other: str) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        world.network.reset(PeerId(one), PeerId(other))
        return PeerId(one)

    return act


def draining(peer: str) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        node = world.hosts[PeerId(peer)].node
        assert node is not None
        node.drain()
        return PeerId(peer)

    return act


# --- deaths -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_replica_killed_in_mid_step_is_replayed_inside_its_stage(
    play: Play, cue: MakeCue, stage: int
) -> None:
    victim = f"s{stage}-1"
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue("kill", counted_by(victim, 1, nth=2), killing(victim)),
    )
    assert trained(result)
    step1 = [e for e in found(result, ev.SlotCounted) if e.step == 1]
    per_stage = [sum(event.stage == s for event in step1) for s in range(3)]
    assert per_stage[stage] > 12
    others = [count for s, count in enumerate(per_stage) if s != stage]
    assert others == [12, 12]


def test_two_deaths_in_neighbouring_stages_at_once(play: Play, cue: MakeCue) -> None:
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue("kill", counted_by("s1-1", 1, nth=2), killing("s1-1")),
        cue("kill", counted_by("s1-1", 1, nth=2), killing("s2-1")),
    )
    assert trained(result)


def test_a_peer_that_restarts_under_its_name_has_counted_nothing(play: Play, cue: MakeCue) -> None:
    def restart(world: SimWorld, _: ev.Entry) -> PeerId:
        plan = world.hosts[PeerId("s1-1")].plan
        world.start(PeerPlan(peer=plan.peer, stage=plan.stage, speed=plan.speed))
        return PeerId("s1-1")

    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue("kill", counted_by("s1-1", 1, nth=2), killing("s1-1")),
        cue("respawn", counted_by("s1-1", 1, nth=2), restart, 0.5),
    )
    assert trained(result)
    assert len(found(result, ev.PeerStarted)) == 7


# --- silence ------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [True, False])
def test_what_a_frozen_peer_holds_is_recalled_or_replayed(
    play: Play,
    cue: MakeCue,
    process: bool,  # noqa: FBT001 - drawn by pytest
) -> None:
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue("freeze", counted_by("s1-1", 1, nth=2), freezing("s1-1", 20.0, process=process)),
    )
    assert trained(result)
    assert found(result, ev.Recalled) or found(result, ev.Replayed)
    assert any(event.peer == "s1-1" for event in found(result, ev.Suspected))
    waits = [e.seconds for e in found(result, ev.StepCommitted) if e.step == 1]
    assert min(waits) < 15.0  # nobody waited for the thaw


def test_a_short_pause_costs_no_suspicion(play: Play, cue: MakeCue) -> None:
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue("freeze", counted_by("s1-1", 1, nth=2), freezing("s1-1", 2.0)),
    )
    assert trained(result)
    assert not found(result, ev.Suspected)


def test_the_link_of_two_peers_breaks_in_mid_flight(play: Play, cue: MakeCue) -> None:
    slow = Link(latency_seconds=0.05, rate_bytes_per_second=20_000.0)
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2), link=slow),
        *(
            cue("reset", counted_by("s1-0", step, nth=2), resetting(f"s{below}-0", "s1-0"))
            for step, below in ((1, 0), (2, 2), (3, 0))
        ),
    )
    assert trained(result)
    assert not found(result, ev.Suspected)
    downs = [event for event in found(result, ev.LinkDown) if event.reason == "connection reset"]
    assert len(downs) >= 3


def test_a_reader_that_stops_blocks_nobody_and_nothing_overflows(play: Play, cue: MakeCue) -> None:
    """Its streams fill up; neighbours route elsewhere, and stage 0 does not run away."""
    result = play(
        Scenario(spec=SPEC, peers=placed(1, 2, 1)),
        cue("freeze", counted_by("s1-1", 1, nth=1), freezing("s1-1", 12.0, process=False)),
    )
    assert trained(result)  # and the checker of bounds (I4) was content
    assert found(result, ev.BusySaid)
    assert all(e.parked <= e.parked_bound for e in found(result, ev.Bounds))


def test_a_slow_stage_says_busy_down_to_the_data(play: Play) -> None:
    spec = toy_spec(stages=3, microbatches=40, steps=2)
    peers = [*placed(1, 1), PeerPlan(peer=PeerId("slow"), stage=Stage(2), speed=0.05)]
    result = play(Scenario(spec=spec, peers=peers))
    assert trained(result, spec)
    assert 2 in {e.stage for e in found(result, ev.BusySaid)}
    parked = [e.parked for e in found(result, ev.Bounds) if e.stage == 0]
    assert max(parked) <= 12  # of 40 microbatches


def test_what_cannot_be_retained_is_not_taken(play: Play) -> None:
    base = toy_spec(stages=2, microbatches=8, steps=2)
    each = 4 * 8 * 2 + 5  # one boundary frame in bf16 and its token ids
    limits = msgspec.structs.replace(base.limits, retained_bytes=6 * each)
    spec = msgspec.structs.replace(base, limits=limits)
    result = play(Scenario(spec=spec, peers=placed(2, 2)))
    assert trained(result, spec)
    filled = [e.retained_bytes for e in found(result, ev.Bounds)]
    assert max(filled) <= 6 * each


# --- a split ------------------------------------------------------------------------------


def splitting(*peers: str, seconds: float) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        inside = [PeerId(peer) for peer in peers]
        outside = [peer for peer in sorted(world.hosts) if peer not in inside]
        world.network.partition([outside, inside])
        world.table.split([outside, inside])

        def heal() -> None:
            world.network.partition([])
            world.table.merge()
            world.emit(PeerId(""), ev.FaultFired(fault="heal", target=""))

        world.clock.call_later(seconds, heal, context=world.network.context)
        return inside[0]

    return act


def test_both_sides_of_a_split_that_can_train_reach_the_same_weights(
    play: Play, cue: MakeCue
) -> None:
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue(
            "partition",
            counted_by("s1-1", 1, nth=2),
            splitting("s0-1", "s1-1", "s2-1", seconds=8.0),
        ),
    )
    assert trained(result)


BACK_SECONDS = 4.0
"""A heartbeat until a peer sees how far others are, one more until it knows that it is lost,
its state, the step under way; then its share of the next."""


def test_the_side_that_cannot_train_is_a_step_behind_and_counts_again(
    play: Play, cue: MakeCue
) -> None:
    spec = toy_spec(stages=3, microbatches=6, steps=12)
    result = play(
        Scenario(spec=spec, peers=placed(2, 2, 2)),
        cue("partition", counted_by("s1-1", 1), splitting("s0-1", "s1-1", seconds=8.0)),
    )
    assert trained(result, spec)
    healed = next(
        e.at
        for e in result.entries
        if isinstance(e.event, ev.FaultFired) and e.event.fault == "heal"
    )
    for peer in ("s0-1", "s1-1"):
        counted = [
            e.at for e in result.entries if e.peer == peer and isinstance(e.event, ev.SlotCounted)
        ]
        again = min(at for at in counted if at > healed)
        assert again - healed < BACK_SECONDS


# --- leaving ------------------------------------------------------------------------------


def test_a_peer_that_drains_leaves_nothing_to_replay(play: Play, cue: MakeCue) -> None:
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2)),
        cue("drain", counted_by("s1-1", 1, nth=2), draining("s1-1")),
    )
    assert trained(result)
    assert not found(result, ev.Replayed)
    assert not found(result, ev.Suspected)
    (closed,) = [e for e in result.entries if isinstance(e.event, ev.SeatClosed)]
    assert (closed.peer, closed.event.reason) == ("s1-1", "drained")
    assert not result.peers[PeerId("s1-1")].finished


def test_a_drained_peer_waits_for_the_others_in_vain_before_the_first_step(
    play: Play, cue: MakeCue
) -> None:
    """It is not held back by a step that cannot begin; the run goes on with a successor."""
    peers = [*placed(1, 1), PeerPlan(peer=PeerId("later"), stage=Stage(1), starts_at=6.0)]
    peers.append(PeerPlan(peer=PeerId("last"), stage=Stage(2), starts_at=7.0))

    def opened(entry: ev.Entry) -> bool:
        return entry.peer == "s1-0" and isinstance(entry.event, ev.SeatOpened)

    result = play(Scenario(spec=SPEC, peers=peers), cue("drain", opened, draining("s1-0"), 2.0))
    assert trained(result)
    stopped = next(e for e in result.entries if isinstance(e.event, ev.PeerStopped))
    assert stopped.peer == "s1-0"
    assert stopped.at < 6.0


def test_the_only_replica_of_a_stage_serves_to_the_end_of_the_step_it_leaves_in(
    play: Play, cue: MakeCue
) -> None:
    """Others with memory to spare load its state before it is gone."""
    peers = [PeerPlan(peer=PeerId(f"p{number}"), speed=0.2) for number in range(3)]
    result = play(
        Scenario(spec=SPEC, peers=peers),
        cue("drain", counted_by("p2", 1, nth=2), draining("p2")),
    )
    assert trained(result)
    stage = next(
        e.event.stage
        for e in result.entries
        if isinstance(e.event, ev.SeatOpened) and e.peer == "p2"
    )
    heirs = {e.peer for e in result.entries if isinstance(e.event, ev.StateLoaded)}
    assert heirs <= {"p0", "p1"}
    assert len(heirs) == 1, stage


# --- one log ------------------------------------------------------------------------------

PROGRAM = """
import sys
from p2ptrain.sim.faults import parse
from p2ptrain.sim.scenario import Scenario, crowd
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import SimWorld

def log_hash(seed):
    spec = toy_spec(stages=3, microbatches=8, steps=4)
    plan = parse("kill=200%/min:respawn=2,freeze=1:6s")
    return SimWorld(
        Scenario(spec=spec, peers=crowd(6, speeds=(0.2,)), chaos=plan, seed=seed)
    ).run().event_log_hash
"""


def test_trouble_repeats_exactly_in_another_process_and_differs_by_seed() -> None:
    here: dict[str, Any] = {}
    exec(PROGRAM, here)  # the very program that the other process runs
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + "print(log_hash(4))"],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
    )
    assert done.stdout.strip() == here["log_hash"](4)
    assert here["log_hash"](5) != here["log_hash"](4)


# --- the last step of a dead seat -----------------------------------------------------------


def publishes(stage: int, step: int) -> Callable[[ev.Entry], bool]:
    return lambda entry: (
        isinstance(entry.event, ev.SumPublished)
        and (entry.event.stage, entry.event.step) == (stage, step)
    )


def kill_the_publisher(world: SimWorld, entry: ev.Entry) -> PeerId:
    world.kill(entry.peer)
    return entry.peer


@pytest.mark.parametrize("after", [0.0, 0.03, 0.06])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_sum_that_all_stages_have_heard_of_and_nobody_holds_is_counted_again(
    play: Play, cue: MakeCue, stage: int, after: float
) -> None:
    """The others commit; what the dead one had counted is replayed from their last step."""
    link = Link(latency_seconds=0.02, rate_bytes_per_second=200_000.0)
    result = play(
        Scenario(spec=SPEC, peers=placed(2, 2, 2), link=link),
        cue("kill", publishes(stage, 1), kill_the_publisher, after),
    )
    assert trained(result)
