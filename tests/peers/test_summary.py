"""The end of a simulation: exit codes that can be trusted, words that the report holds."""

import asyncio
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from p2ptrain.observe.growth import Growth
from p2ptrain.observe.report import build_report
from p2ptrain.run import Cut, RunSpec, digest
from peers import summary
from peers.display import Display
from peers.launch import SwarmOptions
from peers.simulation import Reference, SimulationOptions, simulate

Program = Callable[..., tuple[str, ...]]
SPEC = RunSpec(cut=Cut(stages=2), seed=4)


def options(
    program: tuple[str, ...], *, peers: int = 2, report: Path | None = None
) -> SimulationOptions:
    return SimulationOptions(
        swarm=SwarmOptions(spec=SPEC, peers=peers, program=program), report=report
    )


def test_a_good_end_is_zero_with_everything_written(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report"
    assert summary.conduct(options(program(), report=folder), as_json=True) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert report == json.loads((folder / "report.json").read_bytes())
    assert (report["run_id"], report["seed"], report["replicas"]) == (digest(SPEC), 4, [1, 1])
    assert report["verified"] is None
    assert f"run {digest(SPEC)}" in captured.err
    assert (folder / "events.jsonl").read_bytes().count(b"\n") == 4
    assert (folder / "seats.png").stat().st_size > 0


def test_words_go_to_stdout_when_nothing_else_does(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert summary.conduct(options(program()), as_json=False) == 0
    assert "not compared (--verify does)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("misbehaviour", "trouble"),
    [
        ({"failing": (1,)}, "peer-1 ended with code 1: no memory left"),
        ({"odd": (0,)}, "replicas disagree on w0"),
    ],
)
def test_a_bad_end_is_one_with_its_reason(
    program: Program,
    capsys: pytest.CaptureFixture[str],
    misbehaviour: dict[str, tuple[int, ...]],
    trouble: str,
) -> None:
    assert summary.conduct(options(program(**misbehaviour), peers=3), as_json=False) == 1
    output = capsys.readouterr().out
    assert f"trouble: {trouble}" in output
    assert "output and events of all processes: " in output


@pytest.mark.parametrize(("right", "verdict"), [(True, "equal to those"), (False, "NOT those")])
def test_the_verdict_is_the_references(program: Program, *, right: bool, verdict: str) -> None:
    chosen = options(program())
    with Display() as display:
        simulated = asyncio.run(simulate(chosen, display))
    mine = simulated.outcome.weights_digest
    assert mine is not None
    reference = Reference(
        weights_digest=mine if right else "0" * 64, val_loss=2.0, tokens_per_second=1.0
    )
    judged = dataclasses.replace(simulated, reference=reference)
    report = build_report([], summary.facts(chosen, judged))
    assert report.verified is right
    assert any(verdict in line for line in summary.words(report))
    assert bool(list(summary.faults(judged, report))) is not right


@pytest.mark.parametrize(("val_loss", "near"), [(2.01, True), (2.05, False)])
def test_where_every_peer_rounds_in_its_own_way_losses_are_compared(
    program: Program, *, val_loss: float, near: bool
) -> None:
    chosen = options(program())
    with Display() as display:
        simulated = asyncio.run(simulate(chosen, display))
    reference = Reference(weights_digest="0" * 64, val_loss=2.0, tokens_per_second=1.0)
    judged = dataclasses.replace(simulated, reference=reference, bitwise=False)
    report = build_report([], summary.facts(chosen, judged))
    report = msgspec.structs.replace(report, val_loss=val_loss)
    assert report.verified is None
    assert any("every peer rounds in its own way" in line for line in summary.words(report))
    troubles = [line for line in summary.faults(judged, report) if "is rounding" in line]
    assert bool(troubles) is not near
    assert near or "2.5% apart" in troubles[0]


def test_lost_and_doubled_microbatches_are_troubles(program: Program) -> None:
    chosen = options(program())
    with Display() as display:
        simulated = asyncio.run(simulate(chosen, display))
    report = build_report([], summary.facts(chosen, simulated))
    counts = msgspec.structs.replace(report.microbatches, lost=2, duplicated=1)
    bad = msgspec.structs.replace(report, microbatches=counts)
    assert "2 microbatches lost, 1 counted twice" in list(summary.faults(simulated, bad))


def test_growth_is_told_where_it_was_measured(program: Program) -> None:
    chosen = options(program())
    with Display() as display:
        simulated = asyncio.run(simulate(chosen, display))
    report = build_report([], summary.facts(chosen, simulated))
    assert not [line for line in summary.words(report) if line.startswith("growth")]
    grown = Growth(
        peers=3, rss_bytes_per_minute=1.5e6, descriptors_per_minute=2.0, threads_per_minute=0.0,
        tasks_per_minute=9.0, daemon_rss_bytes_per_minute=2e5, daemon_descriptors_per_minute=2.0,
        links_per_minute=1.0, tasks_beyond_links_per_minute=-0.5,
        descriptors_beyond_links_per_minute=0.25, daemon_descriptors_beyond_links_per_minute=0.0,
    )  # fmt: skip
    (line,) = [
        line
        for line in summary.words(msgspec.structs.replace(report, growth=grown))
        if line.startswith("growth")
    ]
    assert line == (
        "growth a minute, worst of 3 that lived: +1.50 MB (p2pd +0.20 MB), +0.00 threads, "
        "+1.00 links; at equal links -0.50 tasks, +0.25 descriptors (p2pd +0.00)"
    )


def test_an_interrupted_report_leaves_no_folder(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(summary, "build_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        summary.conduct(options(program()), as_json=False)
    assert list(tmp_path.glob("p2ptrain-simulate-*")) == []
