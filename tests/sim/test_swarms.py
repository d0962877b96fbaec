"""A seed gives a plan, a plan an outcome, and both the same ones every time."""

import os
import subprocess
import sys

from msgspec.structs import replace

from p2ptrain.observe import events as ev
from p2ptrain.sim.blows import Blow
from p2ptrain.sim.drawing import draw
from p2ptrain.sim.swarms import Swarm, run

PROGRAM = (
    "from p2ptrain.sim.drawing import draw; from p2ptrain.sim.swarms import run; "
    "print(run(draw(3)).event_log_hash)"
)


def test_an_outcome_repeats_in_another_process_with_other_hashes() -> None:
    mine = run(draw(3))
    assert mine == run(draw(3))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
        timeout=15,
    )
    assert done.stdout.strip() == mine.event_log_hash


def test_a_lost_stage_is_no_stall_and_no_success() -> None:
    calm = replace(draw(0), blows=())
    assert run(calm).end == "trained"
    loss = Blow(kind="stage-loss", point="committed", nth=len(calm.speeds) + 1, seconds=1.0)
    outcome = run(replace(calm, blows=(loss,)))
    assert outcome.end == "bereft"
    assert "newest state of stage" in outcome.reason
    assert not outcome.failed


def test_a_forger_comes_lies_and_is_not_believed() -> None:
    lie = Blow(kind="forge", point="counting", nth=12, seconds=1.0)
    swarm = Swarm(replace(draw(0), blows=(lie,)))
    swarm.run()
    (heard,) = [verdict for verdict in swarm.judge() if verdict.invariant == "I6"]
    assert heard.holds
    assert heard.facts >= 3
    refused = [e.event.reason for e in swarm.entries if isinstance(e.event, ev.FrameRefused)]
    assert "a bitmap with a wrong signature" in refused
