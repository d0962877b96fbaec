"""Programs as people start them: real processes, their output, their end, what they leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

WAIT_SECONDS = 60.0  # a busy machine imports torch for half a minute


class Program:
    """``p2ptrain`` with its arguments, in a process group of its own, as a terminal has it."""

    def __init__(
        self, arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str]
    ) -> None:
        own = {
            "TMPDIR": str(folder / "tmp"),
            "XDG_DATA_HOME": str(folder / "home"),
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "p2ptrain", *arguments],
            cwd=folder,
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        """All that it has said so far."""
        with self._news:
            return "\n".join(self._lines)

    def wait_for(self, pattern: str, *, seconds: float = WAIT_SECONDS) -> re.Match[str]:
        """The first match of ``pattern`` in the output, said already or to come."""
        with self._news:
            found: list[re.Match[str]] = []

            def said() -> bool:
                match = re.search(pattern, "\n".join(self._lines))
                found[:] = [match] if match else []
                return bool(match) or self._ended

            self._news.wait_for(said, timeout=seconds)
        assert found, f"never said {pattern!r}; it said:\n{self.output}"
        return found[0]

    def wait_until(self, holds: Callable[[str], bool], *, seconds: float = WAIT_SECONDS) -> None:
        """Until the output is as it should be."""
        with self._news:
            self._news.wait_for(lambda: holds("\n".join(self._lines)), timeout=seconds)
        assert holds(self.output), f"it said:\n{self.output}"

    def children(self) -> list[psutil.Process]:
        """The processes that it has started."""
        return psutil.Process(self._process.pid).children()

    def p2pd(self) -> psutil.Process:
        """Its libp2p daemon."""
        (child,) = self.children()
        return child

    def ctrl_c(self) -> None:
        """What a terminal does: SIGINT to the whole process group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the program alone."""
        self._process.kill()

    def ends(self, *, seconds: float = WAIT_SECONDS) -> int:
        """Its exit code, once it has ended and all is read."""
        try:
            code = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on:\n{self.output}") from None
        self._reader.join(timeout=seconds)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.ends()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts ``p2ptrain ARGUMENTS`` in ``tmp_path``; ends what is left after the test.

    ``environment``: variables that this program alone gets.
    """
    (tmp_path / "tmp").mkdir()
    with ExitStack() as running:

        def begin(*arguments: str, environment: Mapping[str, str] | None = None) -> Program:
            return running.enter_context(Program(arguments, tmp_path, environment or {}))

        yield begin


@pytest.fixture
def answer(start: Callable[..., Program]) -> Callable[..., tuple[int, str]]:
    """Runs ``p2ptrain ARGUMENTS`` to its end: exit code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        program = start(*arguments)
        code = program.ends()
        return code, program.output

    return run
