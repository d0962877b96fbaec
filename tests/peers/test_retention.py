"""A disk for frames: private, gone at the end, swept after a kill; and frames that must fit."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest

from p2ptrain.compute.executor import TorchCompute
from p2ptrain.engine.surroundings import frames_of_a_step
from p2ptrain.errors import UserError
from p2ptrain.sim.spill import MemorySpill
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Stage
from peers.retention import check_frames_fit, check_seat_fits, spilling

if TYPE_CHECKING:
    from pathlib import Path

SPEC = toy_spec(stages=3, microbatches=16, steps=1)
STEP = frames_of_a_step(SPEC, Stage(1))  # more than the ends leave
TIGHT = msgspec.structs.replace(
    SPEC, limits=msgspec.structs.replace(SPEC.limits, retained_bytes=STEP // 4)
)

KILLED = """
import asyncio, os, pathlib, signal, sys
from peers.retention import spilling
with spilling(pathlib.Path(sys.argv[1]), 1000) as spill:
    asyncio.run(spill.put((b"frame",)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def frames(base: Path) -> list[bytes]:
    return [path.read_bytes() for path in base.rglob("[0-9]*") if path.is_file()]


def test_frames_lie_in_a_folder_that_goes_with_the_peer(tmp_path: Path) -> None:
    base = tmp_path / "checkpoints"
    with spilling(base, 1000) as spill:
        assert spill is not None
        asyncio.run(spill.put((b"frame",)))
        assert frames(base) == [b"frame"]
    assert list(base.iterdir()) == []


def test_what_a_kill_has_left_is_swept_when_the_next_comes(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path)], check=False, timeout=60.0
    )
    assert killed.returncode == -9
    assert frames(tmp_path) == [b"frame"]
    with spilling(tmp_path, 1000):
        assert frames(tmp_path) == []


def test_two_peers_of_one_base_do_not_meet(tmp_path: Path) -> None:
    with spilling(tmp_path, 1000) as one, spilling(tmp_path, 1000) as other:
        assert one is not None
        assert other is not None
        handle = asyncio.run(one.put((b"mine",)))
        assert asyncio.run(other.put((b"theirs",))) == handle
        assert sorted(frames(tmp_path)) == [b"mine", b"theirs"]


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING), spilling(tmp_path / "file", 1000) as spill:
        assert spill is None
    assert "no frames can be spilled here" in caplog.text


def test_nobody_is_told_of_a_disk_that_nobody_wants(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for base, size in ((None, 1000), (tmp_path, 0)):
        with spilling(base, size) as spill:
            assert spill is None
    assert caplog.text == ""


def test_frames_that_have_no_place_are_refused_in_one_line() -> None:
    check_frames_fit(SPEC, None, None)
    check_frames_fit(TIGHT, None, MemorySpill(bound_bytes=STEP))
    with pytest.raises(UserError, match=r"at stage 1;.*give --max-spill 1MB or more") as caught:
        check_frames_fit(TIGHT, None, MemorySpill(bound_bytes=STEP // 2))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="at stage 0"):
        check_frames_fit(TIGHT, Stage(0), None)


def test_a_stage_that_the_run_does_not_have_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match="--stage 9: this run has the stages 0 to 2"):
        check_frames_fit(SPEC, Stage(9), None)


@pytest.mark.parametrize("stage", [None, Stage(1)])
def test_memory_that_holds_no_seat_is_refused_and_the_least_that_does_is_not(
    stage: Stage | None,
) -> None:
    stages = range(SPEC.cut.stages) if stage is None else (stage,)
    least = min(room(0).seat_bytes(Stage(each)) for each in stages)
    check_seat_fits(room(least), SPEC, stage)
    with pytest.raises(UserError, match=r"a seat of stage 1 takes .* MB.*: raise --max-memory"):
        check_seat_fits(room(least - 1), SPEC, stage)


def room(size: int) -> TorchCompute:
    return TorchCompute(SPEC, device="cpu", inline=True, memory_bytes=size)
