"""Whatever donors do, a joiner ends up with the state of the run, and names who did what.

Two or three replicas serve stage 1; "late" insists on it and loads while they train. One of
them misbehaves in its own way, in what it sends and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.run import Model, validate
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import Digest, PeerId, Stage, Step
from p2ptrain.wire.messages import Chunk, StageManifest

if TYPE_CHECKING:
    from p2ptrain.engine.links import Links
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

SPEC = validate(
    msgspec.structs.replace(
        toy_spec(stages=2, microbatches=4, steps=8),
        model=Model(
            d_model=128, n_layers=2, n_heads=1, n_kv_heads=1, d_ff=128, context=4, vocab_size=256
        ),
    )
)
LINE = Link(latency_seconds=0.02, rate_bytes_per_second=1_000_000.0)
LATE = PeerPlan(peer=PeerId("late"), stage=Stage(1), starts_at=14.0, speed=0.02)


def scenario(donors: int) -> Scenario:
    peers = [
        PeerPlan(peer=PeerId("low"), stage=Stage(0), speed=0.02),
        *(PeerPlan(peer=PeerId(f"d{n}"), stage=Stage(1), speed=0.02) for n in range(donors)),
        LATE,
    ]
    return Scenario(spec=SPEC, peers=peers, link=LINE)


def started(peer: str) -> Callable[[ev.Entry], bool]:
    return lambda entry: entry.peer == peer and isinstance(entry.event, ev.PeerStarted)


def chunk_sent(peer: str, nth: int) -> Callable[[ev.Entry], bool]:
    """The nth chunk that goes out at ``peer``."""
    seen = 0

    def reached(entry: ev.Entry) -> bool:
        nonlocal seen
        event = entry.event
        if entry.peer == peer and isinstance(event, ev.FrameSent) and event.what == "chunk":
            seen += 1
        return seen == nth

    return reached


def misbehaving(how: Callable[[Links, SimWorld], None]) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, entry: ev.Entry) -> PeerId:
        node = world.hosts[entry.peer].node
        assert node is not None
        how(node.links, world)
        return entry.peer

    return act


def corrupts(links: Links, world: SimWorld) -> None:
    """Its first chunks are right."""
    submit, sent = links.submit, 0

    def spoil(peer: PeerId, message: Any, payload: Any) -> asyncio.Future[None]:
        nonlocal sent
        if isinstance(message, Chunk):
            sent += 1
            if sent > 2:
                payload = (bytes(payload[0])[:-1] + b"?",)
        return submit(peer, message, payload)

    links.submit = spoil  # type: ignore[method-assign]


def stalls(links: Links, world: SimWorld) -> None:
    """Its first chunk comes, then no other."""
    submit, sent = links.submit, 0

    def swallow(peer: PeerId, message: Any, payload: Any) -> asyncio.Future[None]:
        nonlocal sent
        sent += isinstance(message, Chunk)
        if isinstance(message, Chunk) and sent > 1:
            return asyncio.get_running_loop().create_future()
        return submit(peer, message, payload)

    links.submit = swallow  # type: ignore[method-assign]


def telling(**changes: Any) -> Callable[[Links, SimWorld], None]:
    """Its manifests say something else."""

    def patch(links: Links, world: SimWorld) -> None:
        send = links.send

        def forge(peer: PeerId, message: Any) -> None:
            if isinstance(message, StageManifest):
                message = msgspec.structs.replace(message, **changes)
            send(peer, message)

        links.send = forge  # type: ignore[method-assign]

    return patch


def of_late(result: SwarmResult, kind: type[ev.AnyEvent]) -> list[Any]:
    return [e.event for e in result.entries if e.peer == "late" and isinstance(e.event, kind)]


def served(result: SwarmResult) -> Any:
    """What late loaded first; it took part, and the run's weights are what they must be."""
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    assert of_late(result, ev.StepCommitted)
    return of_late(result, ev.StateLoaded)[0]


def refused(result: SwarmResult) -> dict[str, str]:
    return {event.peer: event.reason for event in of_late(result, ev.DonorRefused)}


def test_two_replicas_give_a_part_each(play: Play) -> None:
    result = play(scenario(2))
    assert served(result).sources == ("d0", "d1")
    assert refused(result) == {}
    assert of_late(result, ev.Alarm) == []
    sent = [
        entry.peer
        for entry in result.entries
        if isinstance(entry.event, ev.FrameSent) and entry.event.what == "chunk"
    ]
    assert min(sent.count(PeerId("d0")), sent.count(PeerId("d1"))) >= 2


def test_one_replica_is_enough_and_the_log_warns(play: Play) -> None:
    result = play(scenario(1))
    assert served(result).sources == ("d0",)
    assert any("only d0 vouches" in alarm.reason for alarm in of_late(result, ev.Alarm))


@pytest.mark.parametrize(
    ("how", "reason", "donors"),
    [
        (corrupts, "does not match its leaf", 2),
        (stalls, "stalls, after", 2),
        (telling(root=Digest(bytes(32))), "does not fit itself", 2),
        (telling(chain=bytes(32)), "gives another state of step", 3),
        (telling(version=Step(0)), "is at step 0, asked for", 2),
    ],
    ids=["corrupts a chunk", "stalls", "lies about the root", "another chain", "an older step"],
)
def test_who_misbehaves_is_named_and_the_others_give_the_rest(
    play: Play,
    cue: MakeCue,
    how: Callable[[Links, SimWorld], None],
    reason: str,
    donors: int,
) -> None:
    result = play(scenario(donors), cue("misbehave", started("d0"), misbehaving(how)))
    loaded = served(result)
    assert "d1" in loaded.sources
    assert list(refused(result)) == ["d0"]
    assert reason in refused(result)["d0"]


def test_a_donor_that_dies_in_mid_transfer_costs_what_was_under_way(
    play: Play, cue: MakeCue
) -> None:
    def kill(world: SimWorld, entry: ev.Entry) -> PeerId:
        world.kill(entry.peer)
        return entry.peer

    result = play(scenario(2), cue("kill", chunk_sent("d0", 2), kill))
    loaded = served(result)
    assert loaded.sources == ("d0", "d1")
    assert list(refused(result)) == ["d0"]


def test_replicas_that_contradict_each_other_are_not_believed(play: Play, cue: MakeCue) -> None:
    """Nobody can tell which of two is right: the joiner stays out, and says why."""
    patch = misbehaving(telling(chain=bytes(32)))
    result = play(scenario(2), cue("misbehave", started("d0"), patch))
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    assert of_late(result, ev.SeatOpened) == []
    alarms = [alarm.reason for alarm in of_late(result, ev.Alarm)]
    assert any("d0, d1 give different states of step" in reason for reason in alarms)
