"""``p2ptrain simulate``: a whole swarm on this machine, watched, judged and reported.

    run.toml -> swarm (bootstrap + peers, real processes), struck by chaos if asked
             -> events and outcomes
             -> reference (one process training the same run), if asked to verify
             -> report.json, plots, a summary in words or JSON

The verdict comes from outside: covers from the step records are checked for every id
exactly once, and the peers' weights are compared with those of the reference, a process
of its own that shares nothing with the swarm but the arithmetic.

Invariants: this process imports neither torch nor hivemind (it stays small and starts at
once); whatever happens, no process that it started is left; a failed simulation keeps its
files and says where.

Refused: asking peers how they are doing; judging by a loss curve alone.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import tempfile
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.schedule import last_step
from p2ptrain.errors import InternalError, UserError
from p2ptrain.observe.sinks import JsonlSink
from p2ptrain.sim.faults import FaultPlan, Freeze, Partition
from peers.chaos import Chaos
from peers.children import Children
from peers.injector import Injector
from peers.outcome import SwarmOutcome, read_outcome, together
from peers.progress import Progress
from peers.source import source_commit
from peers.swarm import Swarm

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.units import Bytes, Seconds
    from peers.display import Display
    from peers.launch import SwarmOptions

FAULTS_FILE = "faults.jsonl"
"""What chaos did, as events, beside the peers' own."""


REPORT_FILE = "report.json"
"""What a simulation came to; where one lies no other is written over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """What to simulate. ``swarm.spec`` must be pinned. ``report``: a folder for it alone."""

    swarm: SwarmOptions
    chaos: FaultPlan = field(default_factory=FaultPlan)
    verify: bool = False
    report: Path | None = None


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """What ``peers.reference`` says (more fields than these)."""

    weights_digest: str
    val_loss: float | None
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """A simulation that ran to its end, or was interrupted; its files lie in ``folder``.

    ``commit``: of the source when it began. ``unfinished``: peers that took part, were left
    alone by chaos, and did not finish.
    """

    folder: Path
    commit: str
    events: tuple[Path, ...]
    outcome: SwarmOutcome
    reference: Reference | None
    troubles: tuple[str, ...]
    unfinished: tuple[str, ...]
    seconds: Seconds
    peak_rss_bytes: Bytes
    orphans: int
    interrupted: bool
    bitwise: bool = True

    @property
    def verified(self) -> bool | None:
        """Whether the weights are the reference's; None if nobody asked, or nobody finished.

        None also where peers round each in its own way: then losses are compared (summary).
        """
        if self.reference is None or not self.bitwise:
            return None
        mine = self.outcome.weights_digest
        return not self.outcome.disagreements and mine == self.reference.weights_digest


async def simulate(options: SimulationOptions, display: Display) -> Simulated:
    """Run a swarm to its end, and the reference if asked; leave no process.

    SIGINT and SIGTERM drain the swarm, a second one ends it at once (CancelledError).

    Raises:
        InternalError: the swarm could not start, fell silent, or stopped stepping; its files
            are kept.
        UserError: the report's folder cannot be used, is another simulation's, or is full.
    """
    commit = source_commit()
    folder = _folder(options)
    children = Children(folder)
    progress = Progress(
        stages=options.swarm.spec.cut.stages, steps=options.swarm.spec.optimizer.steps
    )
    pause_seconds = longest_pause_seconds(options.chaos)
    severable = any(isinstance(fault, Partition) for fault in options.chaos.faults)
    peers = replace(options.swarm, pause_seconds=pause_seconds, severable=severable)
    swarm = Swarm(peers, children, folder, progress)
    try:
        try:
            with _Interrupts(swarm.leave, display.say):
                seconds, orphans = await _watch(swarm, options.chaos, display)
                reference = await _reference(options, swarm, display) if options.verify else None
        finally:
            await children.stop(grace_seconds=0.0)
    except InternalError as error:
        error.add_note(f"output and events of all processes: {folder}")
        raise
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    except asyncio.CancelledError:
        if options.report is None:
            forget(folder)
        raise
    outcomes = [read_outcome(member.result) for member in swarm.members]
    return Simulated(
        folder=folder,
        commit=commit,
        events=(*(member.events for member in swarm.members), folder / FAULTS_FILE),
        outcome=together(filter(None, outcomes), stages=progress.stages),
        reference=reference,
        troubles=tuple(swarm.troubles),
        unfinished=tuple(
            m.name for m, left in zip(swarm.members, outcomes, strict=True) if m.owes(left)
        ),
        seconds=seconds,
        peak_rss_bytes=swarm.peak_rss_bytes,
        orphans=orphans,
        interrupted=swarm.leaving(),
        bitwise=options.swarm.spec.sync.agreement == "bitwise",
    )


def forget(folder: Path) -> None:
    """Remove the files of a simulation that nobody asked to keep."""
    shutil.rmtree(folder, ignore_errors=True)


class _Interrupts:
    """First signal: drain. Second: cancel the task that entered. Restores what was before."""

    def __init__(self, drain: Callable[[], None], say: Callable[[str], None]) -> None:
        self._drain, self._say = drain, say
        self._again = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._ask)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _ask(self) -> None:
        if self._again and self._task is not None:
            self._task.cancel()
        else:
            self._say("the peers finish their step and leave (Ctrl-C again: end them now)")
            self._drain()
        self._again = True


def _folder(options: SimulationOptions) -> Path:
    if options.report is None:
        return Path(tempfile.mkdtemp(prefix="p2ptrain-simulate-"))
    processes = options.report / "processes"
    if options.report.is_file():
        raise UserError(f"--report {options.report}: a file, not a folder; name another")
    try:
        if processes.exists() or (options.report / REPORT_FILE).exists():
            why = "the files of another simulation lie there; name another folder, or remove it"
            raise UserError(f"--report {options.report}: {why}")
        processes.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--report {options.report}: {error.strerror}") from error
    return processes


async def _watch(swarm: Swarm, plan: FaultPlan, display: Display) -> tuple[Seconds, int]:
    """Run the swarm to its end; return how long it took and how many processes it left behind."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    spec = swarm.options.spec
    chaos = Chaos(plan, random.Random(f"{spec.seed}/chaos"))
    try:
        with JsonlSink(swarm.folder / FAULTS_FILE) as sink:
            async with asyncio.TaskGroup() as tasks, aclosing(swarm.run()) as looks:
                injector = Injector(
                    swarm, chaos, steps=last_step(spec) + 1, sink=sink, say=display.say, tasks=tasks
                )
                swarm.arrived = injector.arrived
                try:
                    async for state in looks:
                        injector.tick(now=loop.time())
                        display.show(state, now=loop.time())
                finally:
                    injector.end(now=loop.time())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the group is ours: one cause has ended it
    if not swarm.leaving():
        swarm.troubles += chaos.unfired()
    return loop.time() - began, await swarm.children.stop()


def longest_pause_seconds(plan: FaultPlan) -> Seconds:
    """How long the faults of ``plan`` may keep a whole run from stepping, beyond recovery."""
    return max((f.seconds for f in plan.faults if isinstance(f, Freeze | Partition)), default=0.0)


async def _reference(
    options: SimulationOptions, swarm: Swarm, display: Display
) -> Reference | None:
    """Train the run in one process; None if somebody wants to leave.

    Raises:
        InternalError: it failed.
    """
    if swarm.leaving():
        return None
    display.say("training the same run in one process, to compare")
    run_file = swarm.folder / "run.toml"
    arguments = ["-m", "peers.reference", "--run", str(run_file), "--json"]
    if options.swarm.data is not None:
        arguments += ["--data", str(options.swarm.data)]
    child = await swarm.children.start("reference", arguments)
    code = await child.process.wait()
    if swarm.leaving():
        return None
    try:
        if code == 0:
            return msgspec.json.decode(child.output().splitlines()[-1], type=Reference)
    except (msgspec.DecodeError, IndexError):
        pass
    raise InternalError(f"the reference ended with code {code}: {child.last_words()}")
