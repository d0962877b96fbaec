"""A seed gives a plan, a plan an outcome, and both the same ones every time."""

import os
import subprocess
import sys

from msgspec.structs import replace

from p2ptrain.observe import events as ev
from p2ptrain.sim.blows import Blow
from p2ptrain.sim.swarms import bereft_stages, draw, run
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

A, B = PeerId("a"), PeerId("b")

PROGRAM = "from p2ptrain.sim.swarms import draw, run; print(run(draw(3)).event_log_hash)"


def test_a_seed_draws_one_plan_within_the_sizes() -> None:
    plans = [draw(seed) for seed in range(300)]
    assert plans == [draw(seed) for seed in range(300)]
    assert {plan.stages for plan in plans} == {2, 3, 4}
    assert {len(plan.speeds) for plan in plans} == set(range(4, 13))
    assert {plan.microbatches for plan in plans} == set(range(4, 17))
    assert {plan.steps for plan in plans} == {3, 4, 5, 6}
    assert {len(plan.blows) for plan in plans} == {0, 1, 2, 3, 4}


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


def opened(peer: PeerId, version: int) -> ev.Entry:
    event = ev.SeatOpened(stage=Stage(0), version=Step(version), reason="hole")
    return ev.Entry(at=0.0, peer=peer, event=event)


def committed(peer: PeerId, step: int) -> ev.Entry:
    event = ev.StepCommitted(
        epoch=0,
        stage=Stage(0),
        step=Step(step),
        chain=Chain(bytes(32)),
        digest=Digest(bytes(32)),
        cover=(),
        expected=b"",
        loss=None,
        val_loss=None,
        skipped=False,
        tokens=0,
        seconds=1.0,
    )
    return ev.Entry(at=1.0, peer=peer, event=event)


def killed(peer: PeerId) -> ev.Entry:
    return ev.Entry(at=2.0, peer=peer, event=ev.FaultFired(fault="kill", target=peer))


def test_who_is_behind_does_not_hold_the_newest_state() -> None:
    both = [opened(A, 0), opened(B, 0), committed(A, 0)]
    assert bereft_stages([*both, killed(A)], 1) == [0]
    assert bereft_stages([*both, killed(B)], 1) == []
    assert bereft_stages([*both, committed(B, 0), killed(A)], 1) == []
    assert bereft_stages([*both, killed(A), opened(A, 1)], 1) == []
