"""A simulated swarm trains like the reference, repeats exactly, and shows its faults."""

import os
import subprocess
import sys

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.run import Evaluation
from p2ptrain.sim import loop
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage

SPEC = toy_spec(stages=2, microbatches=6, steps=3)


def simulate(**changes: object) -> SwarmResult:
    scenario: dict[str, object] = {"spec": SPEC, "peers": crowd(3)}
    return SimWorld(Scenario(**(scenario | changes))).run()  # type: ignore[arg-type]


def test_a_swarm_reaches_the_weights_of_one_process() -> None:
    result = simulate()
    assert result.holds, result.verdicts
    assert all(verdict.facts for verdict in result.verdicts)
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    assert len(result.peers) == 3
    assert all(peer.finished for peer in result.peers.values())
    assert result.unfinished == ()


def test_one_peer_alone_is_a_swarm() -> None:
    assert simulate(peers=crowd(1)).holds


def test_slow_links_and_unequal_peers_change_the_history_and_not_the_weights() -> None:
    even = simulate()
    uneven = simulate(
        peers=crowd(3, speeds=(1.0, 0.2), interval_seconds=0.5),
        link=Link(latency_seconds=0.05, jitter_seconds=0.02, rate_bytes_per_second=1e6),
    )
    assert uneven.holds, uneven.verdicts
    assert uneven.seconds > even.seconds
    assert uneven.weights_digest == even.weights_digest


def test_evaluation_flows_like_training_and_its_loss_is_the_references() -> None:
    spec = toy_spec(
        stages=2, microbatches=4, steps=2, evaluation=Evaluation(every_steps=1, microbatches=2)
    )
    result = simulate(spec=spec)
    assert result.holds, result.verdicts
    losses = {
        (entry.event.step, entry.event.val_loss)
        for entry in result.entries
        if isinstance(entry.event, ev.StepCommitted)
    }
    assert losses == set(reference(spec, ToyCorpus(spec)).val_losses)


def test_a_scenario_gives_one_event_log_and_another_seed_another() -> None:
    first = simulate(seed=1).event_log_hash
    assert simulate(seed=1).event_log_hash == first
    assert simulate(seed=2).event_log_hash != first


PROGRAM = """
from p2ptrain.sim.scenario import Scenario, crowd
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import SimWorld
spec = toy_spec(stages=2, microbatches=6, steps=3)
print(SimWorld(Scenario(spec=spec, peers=crowd(3), seed=1)).run().event_log_hash)
"""


def test_the_event_log_is_the_same_in_another_process_with_other_hashes() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
    )
    assert done.stdout.strip() == simulate(seed=1).event_log_hash


def test_a_swarm_that_cannot_train_is_an_error_that_tells_its_seed() -> None:
    alone = [PeerPlan(peer=PeerId("stubborn"), stage=Stage(0))]
    with pytest.raises(loop.StalledError) as caught:
        simulate(peers=alone, seed=7, stall_seconds=100)
    notes = " ".join(caught.value.__notes__)
    assert "seed 7" in notes
    assert "stubborn" in notes
