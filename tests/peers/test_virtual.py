"""The virtual swarm: one seed, one log; links and faults change it; checkers judge it."""

import dataclasses
import json
import re

import msgspec
import pytest

from p2ptrain.errors import UserError
from p2ptrain.observe import events as ev
from p2ptrain.run import Batch, Checkpoint, Cut, Evaluation, Optimizer, RunSpec, Sync
from p2ptrain.sim.loop import StalledError
from p2ptrain.sim.verdicts import Verdict
from peers.source import source_commit
from peers.virtual import VirtualOptions, as_json, run, summary

SPEC = RunSpec(
    seed=3,
    cut=Cut(stages=2),
    batch=Batch(microbatches=8),
    optimizer=Optimizer(steps=3),
    evaluation=Evaluation(every_steps=2, microbatches=2),
)


def test_the_same_command_gives_the_same_events() -> None:
    options = VirtualOptions(spec=SPEC, peers=4, link="100mbit,20ms,1ms")
    one, other = run(options), run(options)
    assert one.event_log_hash == other.event_log_hash
    assert one.holds
    assert one.event_log_hash != run(VirtualOptions(spec=SPEC, peers=4)).event_log_hash


def test_the_result_can_be_read_by_people_and_programs() -> None:
    options = VirtualOptions(spec=SPEC, peers=3)
    result = run(options)
    lines = list(summary(result))
    assert lines[1] == f"event log {result.event_log_hash}"
    assert any(line.startswith("I1 holds (") for line in lines)
    found = json.loads(as_json(options, result))
    assert found["verified"] is True
    assert found["weights_digest"] == result.weights_digest
    assert found["verdicts"] == {"I1": [], "I2": [], "I3": [], "I4": [], "I5": []}


def test_a_failure_tells_seed_and_commit() -> None:
    too_few = msgspec.structs.replace(SPEC, sync=Sync(start_replicas=4))
    options = VirtualOptions(spec=too_few, peers=4)
    with pytest.raises(StalledError, match=f"seed 3 at commit {re.escape(source_commit())}"):
        run(options)
    verdict = Verdict(invariant="I1", facts=1, problems=("twice",))
    result = dataclasses.replace(run(VirtualOptions(spec=SPEC, peers=3)), verdicts=(verdict,))
    assert f"to see it again: seed 3 at commit {source_commit()}" in list(summary(result))


@pytest.mark.parametrize(
    ("link", "chaos", "reason"),
    [
        (None, "swarm-death", "virtual peers have no disks"),
        ("fast", "", "--link"),
        (None, "fire=1", "no fault 'fire'"),
        (None, "kill=3", "write kill="),
    ],
)
def test_what_cannot_be_read_is_refused(link: str | None, chaos: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        run(VirtualOptions(spec=SPEC, peers=2, link=link, chaos=chaos))


def test_a_run_of_mixed_devices_adopts_states_and_holds() -> None:
    sync = Sync(agreement="canonical", canonical_steps=2)
    spec = msgspec.structs.replace(SPEC, sync=sync, checkpoint=Checkpoint(every_steps=0))
    result = run(VirtualOptions(spec=spec, peers=4))
    assert result.holds
    versions = {e.event.version for e in result.entries if isinstance(e.event, ev.StateAdopted)}
    assert versions == {2, 3}
