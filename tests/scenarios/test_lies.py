"""A peer with a seat that signs two sums: it is named, and the others go on without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from p2ptrain.core.chain import sum_bytes
from p2ptrain.observe import events as ev
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Digest, PeerId, Stage

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
