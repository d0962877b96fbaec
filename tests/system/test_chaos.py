"""Chaos on real processes: what dies in the middle of training, and what it may not change.

Two runs of four peers in two stages; each is compared with one process training alone.
Longer plans: ``p2ptrain simulate --chaos``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

    from tests.system.conftest import Program

Start = Callable[..., "Program"]

LONG = 80  # steps: half a minute where a step takes the least, two where it takes the most

SMALL = (
    "model.context=32", "model.d_model=64", "model.d_ff=128", "batch.microbatches=8",
    "evaluation.every_steps=0",
)  # fmt: skip

SIMULATE = (
    "simulate", "--peers", "4", "--stages", "2", "--verify", "--json",
    "--report", "report", *(word for value in SMALL for word in ("--set", value)),
)  # fmt: skip


def report_of(program: Program) -> dict[str, Any]:
    assert program.ends(seconds=200.0) == 0, program.output
    report: dict[str, Any] = json.loads(program.output.splitlines()[-1])
    return report


def assert_undisturbed(report: dict[str, Any], steps: int) -> None:
    """Nothing that happened shows in the weights."""
    assert report["verified"] is True
    assert report["steps"] == steps
    assert (report["microbatches"]["lost"], report["microbatches"]["duplicated"]) == (0, 0)
    assert report["orphans"] == 0


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_replica_that_is_killed_is_replaced_and_leaves_no_trace_in_the_weights(
    start: Start,
) -> None:
    report = report_of(
        start(*SIMULATE, "--steps", "24", "--chaos", "kill=0.1%/min:min=1:respawn=0")
    )
    assert_undisturbed(report, 24)
    assert report["faults"] == {"kill": 1, "respawn": 1}
    assert 0.0 <= report["recovery_seconds"]["max"] < 10.0


def daemons(program: Program) -> list[psutil.Process]:
    """The p2pd of every peer, the address book's left out."""
    peers = [child for child in program.children() if "--result" in child.cmdline()]
    return [child for peer in peers for child in peer.children()]


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_peer_whose_p2pd_is_killed_starts_another_and_trains_on(
    start: Start, tmp_path: Path
) -> None:
    """The run is long enough for its links to be rebuilt and for it to catch up (ten seconds)."""
    program = start(*SIMULATE, "--steps", str(LONG))
    program.wait_for(r"step \d+/")
    victim = daemons(program)[0]
    victim.kill()
    report = report_of(program)
    assert_undisturbed(report, LONG)
    logs = [log.read_text() for log in (tmp_path / "report" / "processes").glob("peer-*.log")]
    restarts = [log for log in logs if "p2pd died" in log]
    assert len(restarts) == 1
    assert "the run is complete" in restarts[0]
