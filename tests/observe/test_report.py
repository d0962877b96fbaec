"""A report says what the events say: each step once, each id where it belongs."""

import json
from pathlib import Path

import msgspec
import pytest

from p2ptrain.core.agreement import Counted
from p2ptrain.observe import events as ev
from p2ptrain.observe.report import Facts, build_report, write_report
from p2ptrain.units import Chain, Digest, PeerId, Slot, Stage, Step

ANN, BOB = PeerId("ann"), PeerId("bob")
FACTS = Facts(
    run_id="feed", commit="c0ffee", seed=1, peers=2, stages=2, replicas=[1, 1], seconds=12.0
)


def at(time: float, peer: PeerId, event: ev.AnyEvent) -> ev.Entry:
    return ev.Entry(at=time, peer=peer, event=event)


def commit(
    step: int,
    stage: int = 0,
    *,
    cover: tuple[int, ...] = (0b0011, 0b1100),
    loss: float | None = 1.0,
    val_loss: float | None = None,
    epoch: int = 0,
) -> ev.StepCommitted:
    return ev.StepCommitted(
        epoch=epoch,
        stage=Stage(stage),
        step=Step(step),
        chain=Chain(bytes(32)),
        digest=Digest(bytes(32)),
        cover=tuple(
            Counted(peer=peer, slots=bytes((slots,)))
            for peer, slots in zip((ANN, BOB), cover, strict=False)
        ),
        expected=b"\x0f",
        loss=loss,
        val_loss=val_loss,
        skipped=False,
        tokens=100,
        seconds=2.0,
    )


def whole_run() -> list[ev.Entry]:
    """Two stages, three steps of two seconds, all ids counted once."""
    sourced = at(0.1, ANN, ev.Sourced(step=Step(0), slot=Slot(0), order=0))
    commits = [
        at(2.0 * (step + 1) + 0.1 * stage, peer, commit(step, stage, loss=3.0 - step))
        for step in range(3)
        for stage, peer in enumerate((ANN, BOB))
    ]
    return [sourced, *commits]


def test_each_step_counts_once_however_many_seats_commit_it() -> None:
    report = build_report(whole_run(), FACTS)
    assert (report.steps, report.tokens) == (3, 300)
    assert report.loss == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert report.tokens_per_second == pytest.approx(300 / 6.0)  # from 0.1 to 6.1
    assert report.microbatches.committed == 12
    assert (report.microbatches.lost, report.microbatches.duplicated) == (0, 0)
    assert report.step_seconds.median == 2.0


def test_what_was_lost_or_counted_twice_shows_in_the_covers() -> None:
    entries = whole_run()
    entries[3] = at(4.0, ANN, commit(1, 0, cover=(0b0011, 0b0110)))  # 1 twice, 3 nowhere
    report = build_report(entries, FACTS)
    assert (report.microbatches.lost, report.microbatches.duplicated) == (1, 1)


def test_a_step_that_a_stage_never_committed_is_lost_but_an_unfinished_one_is_not() -> None:
    entries = [each for each in whole_run() if each.event != commit(1, 1, loss=2.0)]
    assert build_report(entries, FACTS).microbatches.lost == 4
    unfinished = whole_run()[:-1]  # interrupted between the stages' commits
    assert build_report(unfinished, FACTS).microbatches.lost == 0


def test_what_a_rollback_undid_is_not_held_against_the_run() -> None:
    bad = at(1.0, ANN, commit(0, 0, cover=(0b0001,)))
    again = [at(9.0, ANN, commit(0, 0, epoch=1, loss=0.5)), at(9.1, BOB, commit(0, 1, epoch=1))]
    report = build_report([bad, *again], FACTS)
    assert (report.microbatches.lost, report.steps) == (0, 1)
    assert report.loss == [(0, 0.5)]


def test_counts_of_events() -> None:
    stage, step, slot = Stage(0), Step(0), Slot(0)

    def activity(computing: float) -> ev.Activity:
        return ev.Activity(
            stage=stage, step=step, seconds=10.0, computing_seconds=computing, offers=7, busy=2
        )

    def recalled(answer: str) -> ev.Recalled:
        return ev.Recalled(stage=stage, step=step, slot=slot, peer=BOB, answer=answer)

    events: list[ev.AnyEvent] = [
        ev.Replayed(stage=stage, step=step, slot=slot, peer=BOB, reason="lost"),
        recalled("none"),
        recalled("computing"),
        ev.Subtracted(stage=stage, step=step, slot=slot),
        ev.BusySaid(stage=stage, peer=BOB, reason="queue"),
        ev.Suspected(peer=BOB, silent_seconds=5.0),
        ev.Suspected(peer=BOB, silent_seconds=5.0),
        ev.Restored(peer=BOB),
        ev.FrameRefused(peer=BOB, reason="magic"),
        ev.Alarm(reason="look"),
        ev.FaultFired(fault="kill", target="x"),
        activity(4.0),
    ]
    entries = [at(10.0, ANN, event) for event in events] + [at(10.0, BOB, activity(8.0))]
    report = build_report(entries, FACTS)
    found = report.microbatches
    assert (found.replayed, found.recalled, found.overlapped) == (1, 1, 1)
    assert (report.ask.offers, report.ask.busy) == (14, 1)
    assert (report.suspicions, report.false_suspicions, report.frames_refused) == (2, 1, 1)
    assert (report.alarms, report.faults) == (["look"], {"kill": 1})
    assert report.busy_fraction == pytest.approx(0.6)


def test_of_every_boundary_the_last_reading_stands_in_the_report() -> None:
    def read(boundary: int, step: int, deviation: float) -> ev.Entry:
        event = ev.BoundaryRead(
            boundary=boundary,
            step=Step(step),
            magnitude=1.0,
            deviation=deviation,
            least_deviation=0.1,
            saturation=0.0,
            error=0.1,
            gradient_norm=None,
        )
        return at(float(step), ANN, event)

    entries = [read(1, 0, 0.5), read(0, 0, 1.0), read(0, 1, 2.0), read(0, 1, 3.0), read(0, 0, 4.0)]
    found = build_report(entries, FACTS).boundaries
    assert [(b.boundary, b.step, b.deviation) for b in found] == [(0, 1, 2.0), (1, 0, 0.5)]


def test_nothing_seen_is_said_as_nothing() -> None:
    report = build_report([], FACTS)
    assert (report.steps, report.loss, report.val_loss) == (0, [], None)
    assert (report.tokens_per_second, report.busy_fraction, report.ask.offers) == (None,) * 3
    assert report.wire.ratio_vs_fp32 is None
    assert report.recovery_seconds.median is None


def test_the_file_holds_the_fields_that_were_promised(tmp_path: Path) -> None:
    facts = msgspec.structs.replace(FACTS, verified=True, reference_digest="aa")
    entries = [*whole_run(), at(9.0, ANN, commit(3, 0, loss=None, val_loss=0.7))]
    path = tmp_path / "report.json"
    write_report(build_report(entries, facts), path)
    read = json.loads(path.read_bytes())
    promised = [
        "run_id",
        "commit",
        "seed",
        "peers",
        "stages",
        "replicas",
        "steps",
        "tokens",
        "seconds",
        "tokens_per_second",
        "loss",
        "val_loss",
        "baseline_val_loss",
        "wire",
        "microbatches",
        "faults",
        "recovery_seconds",
        "busy_fraction",
        "ask",
        "weights_digest",
        "reference_digest",
        "verified",
        "peak_rss_bytes",
        "false_suspicions",
        "orphans",
    ]
    assert list(read)[: len(promised)] == promised
    assert read["loss"][0] == [0, 3.0]
    assert (read["val_loss"], read["verified"]) == (0.7, True)
    assert list(read["wire"])[:4] == [
        "forward_bytes_per_microbatch",
        "backward_bytes_per_microbatch",
        "ratio_vs_bf16",
        "ratio_vs_fp32",
    ]
