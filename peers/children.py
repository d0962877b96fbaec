"""The processes of a simulation: started in sessions of their own, and none left behind.

Each child leads a session, so a Ctrl-C on the terminal reaches the supervisor alone, which
then drains the swarm; and a child that must die takes its own children (p2pd) with it. If
the supervisor itself is killed, Linux kills the children (PR_SET_PDEATHSIG).

Invariants: only processes started here, or by them, are ever signalled; ``stop`` returns
when all of them are gone, and says how many had been left behind by a dead child.

Refused: ``multiprocessing`` and forks of a process that holds torch (see STYLE.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STOP_SECONDS = 10.0
"""A peer drains and closes its p2pd in 2 s on an idle machine; a busy one has two cores for all."""

REAP_SECONDS = 2.0
"""p2pd notices its peer's death within 0.1 s."""

LOOK_SECONDS = 0.05
"""How often we look whether the last processes are gone."""

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""

LAST_LINES = 3
"""Of a failed child's output, for the message."""

_OWN_VARIABLES = "P2PTRAIN_"
_KEPT_VARIABLES = {"P2PTRAIN_DEBUG"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process that we started; its output goes to ``log``."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    def output(self) -> str:
        """All that it has printed."""
        return self.log.read_text(errors="replace")

    def last_words(self) -> str:
        """The end of its output, as one line."""
        lines = self.output().strip().splitlines()
        return " | ".join(lines[-LAST_LINES:]) or "no output"


class Children:
    """Starts and ends the processes of one simulation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []

    async def start(self, name: str, arguments: Sequence[str]) -> Child:
        """Run ``python ARGUMENTS`` with one arithmetic thread and without our own settings."""
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(_OWN_VARIABLES) or key in _KEPT_VARIABLES
        }
        environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        child = Child(name=name, process=process, log=log)
        self._children.append(child)
        return child

    def peak_rss_bytes(self) -> int:
        """Resident memory of the largest process that runs now."""
        sizes = [0]
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                sizes.append(process.memory_info().rss)
        return max(sizes)

    async def stop(self, *, grace_seconds: float = STOP_SECONDS) -> int:
        """End all children; return how many processes the *dead* ones had left behind.

        SIGTERM first; who is still there after ``grace_seconds`` is killed. Cancelled, it
        kills at once.
        """
        try:
            self._signal(signal.SIGTERM)
            async with asyncio.timeout(grace_seconds):
                for child in self._children:
                    await child.process.wait()
            orphans = await self._gone()
        except TimeoutError:
            orphans = 0
        finally:
            self._kill()
        for child in self._children:
            await child.process.wait()
        await self._gone()
        return orphans

    def interrupt(self) -> None:
        """Ask all children to drain and leave (as one Ctrl-C does)."""
        self._signal(signal.SIGINT)

    async def _gone(self) -> int:
        """Wait a little for the sessions to empty; return how many processes did not go."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REAP_SECONDS):
                while self._processes():  # noqa: ASYNC110 -- strangers' ends wake nobody
                    await asyncio.sleep(LOOK_SECONDS)
        return len(self._processes())

    def _signal(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.alive:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(number)

    def _kill(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _processes(self) -> list[psutil.Process]:
        """Every living process in the sessions that our children lead."""
        sessions = {child.process.pid for child in self._children}
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
                zombie = process.status() == psutil.STATUS_ZOMBIE
                if os.getsid(process.pid) in sessions and not zombie:
                    found.append(process)
        return found


def _die_with_parent() -> None:
    """In the child, before it runs: ask Linux for SIGKILL when the supervisor dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
