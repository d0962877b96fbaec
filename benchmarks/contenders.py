"""Starts contenders, each in processes of its own, and reads what they found.

Every contender trains the same run (one RunSpec: ids, microbatches, initial weights,
optimizer). Processes are ended with the caller, whatever happens (peers.children).
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import psutil

from benchmarks.run import Run
from p2ptrain.errors import InternalError
from p2ptrain.observe.events import StepCommitted
from p2ptrain.run import to_toml
from p2ptrain.units import Step
from peers.children import Children
from peers.progress import Tail

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from p2ptrain.run import RunSpec
    from p2ptrain.units import Seconds
    from peers.children import Child

LOOK_SECONDS = 0.05
"""How late processor time is read after a step; steps take a few tenths of a second."""

LOOKS_PER_COUNT = 10
"""Processor time is also read twice a second: what a process used that has ended counts too."""


class Contenders:
    """Runs contenders on one pinned run, one after the other, with files in ``folder``.

    Each is ended after ``limit_seconds``: TimeoutError. One that fails is an InternalError.
    """

    def __init__(self, spec: RunSpec, folder: Path, *, limit_seconds: Seconds) -> None:
        self._spec, self._folder = spec, folder
        self._limit_seconds = limit_seconds
        self._count = 0

    async def alone(self, kind: str, *, threads: int, steps: int | None = None) -> Run:
        """One process; see benchmarks/alone."""
        length = [] if steps is None else ["--steps", str(steps)]
        arguments = ["benchmarks.alone", "--kind", kind, "--threads", str(threads), *length]
        async with self._started(arguments) as (child,):
            await child.process.wait()
        return _found(child)

    async def virtual(self, *, peers: int) -> Run:
        """A swarm in virtual time with real arithmetic; see benchmarks/virtual."""
        async with self._started(["benchmarks.virtual", "--peers", str(peers)]) as (child,):
            await child.process.wait()
        return _found(child)

    async def scheduled(self, *, steps: int) -> Run:
        """torch's own pipeline schedule, a process for each stage; see benchmarks/scheduled."""
        meet = self._folder / f"meet-{self._count}"
        arguments = ["benchmarks.scheduled", "--steps", str(steps), "--meet", str(meet)]
        ranks = [[*arguments, "--rank", str(rank)] for rank in range(self._spec.cut.stages)]
        async with self._started(*ranks) as children:
            for child in children:
                await child.process.wait()
        runs = [_found(child) for child in children]
        seconds = {name: value for run in runs for name, value in run.cpu_seconds.items()}
        return msgspec.structs.replace(runs[-1], cpu_seconds=seconds)

    async def swarm(self, *, peers: int, verify: bool = False) -> tuple[Run, dict[str, object]]:
        """``p2ptrain simulate``; also its report."""
        folder = self._folder / f"swarm-{self._count}"
        arguments = ["p2ptrain", "simulate", "--peers", str(peers), "--report", str(folder)]
        arguments += ["--json", *(["--verify"] if verify else [])]
        async with self._started(arguments) as (child,):
            watch = _SwarmWatch(self._spec, child, folder / "processes", peers)
            while child.alive:
                watch.look()
                await asyncio.sleep(LOOK_SECONDS)
        watch.look()
        report = msgspec.json.decode(_last_line(child), type=dict[str, object])
        return watch.run(report), report

    @asynccontextmanager
    async def _started(self, *programs: Sequence[str]) -> AsyncIterator[list[Child]]:
        """The processes ``python -m PROGRAM``, which end with the block at the latest."""
        self._count += 1
        folder = self._folder / f"contender-{self._count}"
        folder.mkdir(parents=True)
        run_file = self._folder / "run.toml"
        run_file.write_text(to_toml(self._spec))
        children = Children(folder)
        try:
            async with asyncio.timeout(self._limit_seconds):
                yield [
                    await children.start(f"{number}-{program}", _module(program, *rest, run_file))
                    for number, (program, *rest) in enumerate(programs)
                ]
        finally:
            await children.stop()


def _module(program: str, *rest: object) -> list[str]:
    *arguments, run_file = map(str, rest)
    return ["-m", program, *arguments, "--run", run_file]


def _found(child: Child) -> Run:
    return msgspec.json.decode(_last_line(child), type=Run)


def _last_line(child: Child) -> str:
    lines = child.output().splitlines()
    if child.process.returncode or not lines:
        code = child.process.returncode
        raise InternalError(f"{child.name} ended with code {code}: {child.last_words()}")
    return lines[-1]


class _SwarmWatch:
    """Reads a swarm's events as they come and its processor time at the first and last step."""

    def __init__(self, spec: RunSpec, child: Child, processes: Path, peers: int) -> None:
        self._stages, self._last = spec.cut.stages, spec.optimizer.steps - 1
        self._process = psutil.Process(child.process.pid)
        self._tails = [Tail(processes / f"peer-{peer}" / "events.jsonl") for peer in range(peers)]
        self._committed: dict[Step, dict[int, Seconds]] = {}
        self._used: dict[int, tuple[str, Seconds]] = {}
        self._first_used: dict[str, Seconds] | None = None
        self._last_used: dict[str, Seconds] | None = None
        self._looks = 0

    def look(self) -> None:
        """Read what is new."""
        for tail in self._tails:
            for entry in tail.read():
                if isinstance(entry.event, StepCommitted):
                    stages = self._committed.setdefault(entry.event.step, {})
                    stages.setdefault(entry.event.stage, entry.at)
        self._looks += 1
        if self._first_used is None and self._whole(Step(0)):
            self._first_used = self._count()
        if self._last_used is None and self._whole(Step(self._last)):
            self._last_used = self._count()
        if self._looks % LOOKS_PER_COUNT == 0:
            self._count()

    def run(self, report: dict[str, object]) -> Run:
        """What was seen, with the losses of the report."""
        first, last = self._first_used or {}, self._last_used or {}
        steps = sorted(step for step in self._committed if step <= self._last and self._whole(step))
        found = {
            "ended_at": [max(self._committed[step].values()) for step in steps],
            "cpu_seconds": {kind: last[kind] - first.get(kind, 0.0) for kind in last},
            **{name: report[name] for name in ("loss", "val_loss", "weights_digest")},
        }
        return msgspec.convert(found, Run)

    def _whole(self, step: Step) -> bool:
        """Whether all stages have committed ``step``."""
        return len(self._committed.get(step, ())) == self._stages

    def _count(self) -> dict[str, Seconds]:
        """Processor seconds so far: of the peers, of their p2pd, of everything else."""
        processes = []
        with contextlib.suppress(psutil.Error):  # the swarm has ended
            processes = [self._process, *self._process.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):  # it has ended since we listed it
                words, times = process.cmdline(), process.cpu_times()
                daemon = bool(words) and words[0].endswith("p2pd")
                kind = "p2pd" if daemon else "peers" if "peer" in words else "rest"
                self._used[process.pid] = kind, times.user + times.system
        totals = {"peers": 0.0, "p2pd": 0.0, "rest": 0.0}
        for kind, seconds in self._used.values():
            totals[kind] += seconds
        return totals
