"""A peer with a seat that lies under its own signature: the others name it, and go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import sum_bytes
from p2ptrain.core.lineage import Rollback, rollback_bytes
from p2ptrain.observe import events as ev
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.sim.world import SimWorld

LIAR_STAGE = Stage(1)


def published(entry: ev.Entry) -> bool:
    event = entry.event
    return isinstance(event, ev.SumPublished) and (event.stage, event.step) == (LIAR_STAGE, 2)


def lie(world: SimWorld, entry: ev.Entry) -> PeerId:
    """Whoever has just published the sum of stage 1 says that it was another as well."""
    liar, node = entry.peer, world.hosts[entry.peer].node
    assert node is not None
    machine = node.seats[LIAR_STAGE].stepper.machine
    assert machine is not None
    false = msgspec.structs.replace(machine.sums[LIAR_STAGE], digest=Digest(b"x" * 32))
    signature = SimSigner(liar, seed=world.scenario.seed).sign(sum_bytes(false))
    false = msgspec.structs.replace(false, signature=signature)
    others = [peer for peer in node.mail.everyone() if peer != liar]
    node.mail.tell_all(others, false)
    return liar


def test_who_signs_two_sums_is_named_by_all_and_the_run_goes_on_without_it(
    play: Callable[..., SwarmResult], cue: Callable[..., Any]
) -> None:
    spec = toy_spec(stages=2, microbatches=6, steps=8, replicas=3)
    names = [f"{letter}{stage}" for letter in "abc" for stage in (0, 1)]
    peers = [PeerPlan(peer=PeerId(name), stage=Stage(int(name[1])), speed=0.05) for name in names]
    result = play(Scenario(spec=spec, peers=peers), cue("two sums", published, lie))
    (liar,) = {e.event.target for e in result.entries if isinstance(e.event, ev.FaultFired)}
    naming = {
        entry.peer
        for entry in result.entries
        if isinstance(entry.event, ev.Alarm)
        and f"{liar} has signed two SUMs for stage 1 of step 2" in entry.event.reason
    }
    assert naming == set(names) - {liar}
    finished = {peer for peer, outcome in result.peers.items() if outcome.finished}
    assert finished >= set(names) - {liar}


def call_back(world: SimWorld, entry: ev.Entry) -> PeerId:
    """It has the run begin again where nobody has ever been: who followed could load nothing."""
    liar, node = entry.peer, world.hosts[entry.peer].node
    assert node is not None
    nowhere = Position(epoch=1, step=Step(4), chain=Chain(b"x" * 32))
    unsigned = Rollback(at=nowhere, peer=liar, signature=b"")
    signature = SimSigner(liar, seed=world.scenario.seed).sign(
        rollback_bytes(node.run_id, unsigned)
    )
    others = [peer for peer in node.mail.everyone() if peer != liar]
    node.mail.tell_all(others, msgspec.structs.replace(unsigned, signature=signature))
    return liar


def test_one_peer_alone_takes_no_run_back_in_which_every_stage_is_served(
    play: Callable[..., SwarmResult], cue: Callable[..., Any]
) -> None:
    spec = toy_spec(stages=2, microbatches=6, steps=8, replicas=2)
    names = [f"{letter}{stage}" for letter in "ab" for stage in (0, 1)]
    peers = [PeerPlan(peer=PeerId(name), stage=Stage(int(name[1])), speed=0.05) for name in names]
    result = play(Scenario(spec=spec, peers=peers), cue("call back", published, call_back))
    (liar,) = {e.event.target for e in result.entries if isinstance(e.event, ev.FaultFired)}
    doubting = {
        entry.peer
        for entry in result.entries
        if isinstance(entry.event, ev.Alarm)
        and f"{liar} has the run begin again at step 4; we go on" in entry.event.reason
    }
    assert doubting == set(names) - {liar}
    assert not any(isinstance(entry.event, ev.RolledBack) for entry in result.entries)
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


def fall_back_alone(world: SimWorld, entry: ev.Entry) -> PeerId:
    """Not a liar: for its bad lines it takes a stage for lost, and begins again by itself."""
    node = world.hosts[entry.peer].node
    assert node is not None
    root = node.lineage.root
    node.lineage.declare(msgspec.structs.replace(root, epoch=1), "I hear of nobody")
    return entry.peer


def test_who_falls_back_alone_takes_neither_the_run_nor_a_newcomer_along(
    play: Callable[..., SwarmResult], cue: Callable[..., Any]
) -> None:
    spec = toy_spec(stages=2, microbatches=6, steps=40, replicas=2)
    names = [f"{letter}{stage}" for letter in "ab" for stage in (0, 1)]
    peers = [PeerPlan(peer=PeerId(name), stage=Stage(int(name[1])), speed=0.05) for name in names]
    peers.append(PeerPlan(peer=PeerId("new"), speed=0.05, starts_at=10.0))
    scenario = Scenario(spec=spec, peers=peers, patience_seconds=300.0)
    result = play(scenario, cue("alone", published, fall_back_alone), holds=False)
    (fell,) = {e.peer for e in result.entries if isinstance(e.event, ev.RolledBack)}
    fired = next(e.at for e in result.entries if isinstance(e.event, ev.FaultFired))
    opened = {e.peer for e in result.entries if e.at > fired and isinstance(e.event, ev.SeatOpened)}
    assert "new" in opened
    finished = {peer for peer, outcome in result.peers.items() if outcome.finished}
    assert finished == {*names, "new"} - {fell}
    assert {e.event.epoch for e in result.entries if isinstance(e.event, ev.StepCommitted)} == {0}
