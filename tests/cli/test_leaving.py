"""Ctrl-C where no program runs yet, or none any more: at once, without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2ptrain.cli.leaving import at_once

INSIDE = """
import os, signal
from p2ptrain.cli.leaving import at_once
with at_once():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        print("an import would have swallowed it")
print("it went on")
"""

needs_a_full_disk = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full"
)


def python(program: str, **streams: int) -> "subprocess.CompletedProcess[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, text=True, check=False, env=buffered, **streams)


def test_ctrl_c_while_importing_ends_the_process_with_130() -> None:
    found = python(INSIDE)
    assert (found.returncode, found.stdout, found.stderr) == (130, "", "")


def test_elsewhere_ctrl_c_is_an_exception_again() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with at_once():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_the_end_waits_for_no_thread() -> None:
    program = (
        "import threading; from p2ptrain.cli.leaving import leave;"
        "threading.Thread(target=threading.Event().wait).start();"  # one that would not end
        "leave(7)"
    )
    found = python(program)
    assert (found.returncode, found.stderr) == (7, "")


@needs_a_full_disk
def test_words_that_nobody_can_read_leave_no_traceback() -> None:
    program = (
        "import sys; from p2ptrain.cli import main;"
        "print('something', end='', file=sys.stdout);"
        "main(['nonsense'])"
    )
    with Path("/dev/full").open("w") as full:
        found = python(program, stdout=full.fileno())
        assert found.returncode == 2
        assert "no command 'nonsense'" in found.stderr
        assert len(found.stderr.splitlines()) == 1
        assert python(program, stdout=full.fileno(), stderr=full.fileno()).returncode == 2


@needs_a_full_disk
def test_a_full_disk_under_our_output_is_the_users_to_mend() -> None:
    program = "from p2ptrain.cli import main; main(['--version'])"
    with Path("/dev/full").open("w") as full:
        found = python(program, stdout=full.fileno())
    assert found.returncode == 2
    assert "No space left on device; make room on the disk" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_output_that_was_closed_costs_nothing() -> None:
    program = "import sys; sys.stdout = None; from p2ptrain.cli import main; main(['--version'])"
    found = python(program)
    assert (found.returncode, found.stderr) == (0, "")
