"""A simulation: files kept or forgotten, interruptions drained, and the real thing once."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from p2ptrain.errors import InternalError, UserError
from p2ptrain.run import Cut, RunSpec
from p2ptrain.sim.faults import parse
from peers.display import Display
from peers.launch import SwarmOptions
from peers.simulation import SimulationOptions, forget, longest_pause_seconds, simulate

Program = Callable[..., tuple[str, ...]]
TWO_STAGES = RunSpec(cut=Cut(stages=2))


def options(program: tuple[str, ...], *, report: Path | None = None) -> SimulationOptions:
    swarm = SwarmOptions(spec=TWO_STAGES, peers=2, program=program)
    return SimulationOptions(swarm=swarm, report=report)


def test_importing_the_supervisor_needs_neither_torch_nor_hivemind() -> None:
    code = (
        "import sys, peers.summary, p2ptrain.cli;"
        " print(sorted({'torch', 'hivemind', 'grpc', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.asyncio
async def test_outcomes_are_put_together_and_files_kept_where_asked(
    tmp_path: Path, program: Program
) -> None:
    report = tmp_path / "report"
    simulated = await simulate(options(program(), report=report), Display())
    assert simulated.folder == report / "processes"
    assert simulated.outcome.weights_digest
    assert simulated.outcome.replicas == (1, 1)
    assert simulated.verified is None
    assert simulated.orphans == 0
    assert not simulated.interrupted
    assert all(path.exists() for path in simulated.events)
    with pytest.raises(UserError, match=r"--report .*report: .*name another folder"):
        await simulate(options(program(), report=report), Display())
    assert all(path.exists() for path in simulated.events)  # nothing is lost


@pytest.mark.asyncio
async def test_a_report_that_is_a_file_is_refused(program: Program, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(UserError, match=r"--report .*afile: a file, not a folder; name another"):
        await simulate(options(program(), report=tmp_path / "afile"), Display())


@pytest.mark.asyncio
async def test_a_report_of_before_is_not_written_over(program: Program, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match="name another folder"):
        await simulate(options(program(), report=tmp_path), Display())
    (tmp_path / "report.json").rename(tmp_path / "notes.txt")  # what is no report may stay
    simulated = await simulate(options(program(), report=tmp_path), Display())
    assert simulated.folder == tmp_path / "processes"


@pytest.mark.asyncio
async def test_without_a_report_the_files_can_be_forgotten(program: Program) -> None:
    simulated = await simulate(options(program()), Display())
    assert simulated.folder.exists()
    forget(simulated.folder)
    assert not simulated.folder.exists()


@pytest.mark.asyncio
async def test_a_failed_start_says_where_the_files_are(program: Program, tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="port taken") as caught:
        await simulate(options(program(bootstrap="dies"), report=tmp_path / "r"), Display())
    assert caught.value.__notes__ == [f"output and events of all processes: {tmp_path}/r/processes"]


@pytest.mark.asyncio
async def test_a_report_folder_that_cannot_be_is_refused(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--report .*file"):
        await simulate(options(program(), report=tmp_path / "file"), Display())


@pytest.mark.asyncio
async def test_chaos_that_could_not_strike_is_a_trouble(program: Program, tmp_path: Path) -> None:
    plan = parse("kill=1%/min:min=2,freeze=1:5s")
    chosen = replace(options(program(), report=tmp_path / "r"), chaos=plan)
    simulated = await simulate(chosen, Display())
    assert sorted(simulated.troubles) == [
        "the run was over after 0 kills; 2 more were planned",
        "the run was over before the freeze that was planned",
    ]
    assert simulated.events[-1].read_bytes() == b""


def test_the_whole_run_may_pause_for_the_longest_of_its_faults() -> None:
    assert longest_pause_seconds(parse("freeze=1:5s,partition=50%:20s,kill=1%/min")) == 20.0
    assert longest_pause_seconds(parse("join=1")) == 0.0


async def interrupted(
    program: tuple[str, ...], folder: Path, *, times: int
) -> tuple[asyncio.Task[object], str]:
    """Simulate peers that wait for ever, and press Ctrl-C once they are up."""
    output = io.StringIO()
    display = Display(console=Console(file=output, width=200))
    task: asyncio.Task[object]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_kept(simulate(options(program, report=folder), display)))
        while not all(started(folder, n) for n in range(2)):  # noqa: ASYNC110 -- files wake nobody
            await asyncio.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)
    return task, output.getvalue()


async def _kept(work: object) -> object:
    try:
        return await work  # type: ignore[misc]
    except asyncio.CancelledError:
        return "cancelled"


def started(folder: Path, number: int) -> bool:
    return (folder / "processes" / f"peer-{number}" / "events.jsonl").exists()


@pytest.mark.asyncio
async def test_one_ctrl_c_drains_and_a_second_ends_it(tmp_path: Path, program: Program) -> None:
    hanging = program(hanging=(0, 1))
    task, said = await interrupted(hanging, tmp_path / "once", times=1)
    simulated = task.result()
    assert getattr(simulated, "interrupted", False)
    assert "finish their step and leave" in said

    task, _ = await interrupted(hanging, tmp_path / "twice", times=2)
    assert task.result() == "cancelled"


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_real_peers_train_what_one_process_trains(tmp_path: Path) -> None:
    found = subprocess.run(
        [
            sys.executable, "-m", "p2ptrain", "simulate", "--peers", "2", "--stages", "2",
            "--steps", "2", "--set", "model.context=32", "--set", "batch.microbatches=4",
            "--verify", "--json", "--report", str(tmp_path / "report"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["verified"] is True
    assert report["weights_digest"] == report["reference_digest"]
    assert report["val_loss"] == report["baseline_val_loss"]
    assert report["microbatches"]["lost"] == 0
    assert report["microbatches"]["duplicated"] == 0
    assert report["orphans"] == 0
    assert json.loads((tmp_path / "report" / "report.json").read_bytes()) == report
