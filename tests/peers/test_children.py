"""Children: clean environment, no process left, whatever they do."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from peers.children import Children

pytestmark = pytest.mark.asyncio

WAIT = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}]); {WAIT}"


def said(log: Path, text: str) -> bool:
    return text in log.read_text()


async def until(log: Path, text: str) -> None:
    async with asyncio.timeout(10):
        while not said(log, text):  # noqa: ASYNC110 -- a file cannot wake us
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_a_child_leads_its_session_and_sees_none_of_our_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PTRAIN_SEED", "9")
    code = (
        "import os; print(os.getsid(0) == os.getpid(),"
        " os.environ.get('P2PTRAIN_SEED'), os.environ['OMP_NUM_THREADS'])"
    )
    child = await Children(tmp_path).start("one", ["-c", code])
    assert await child.process.wait() == 0
    assert child.log.read_text() == "True None 1\n"


async def test_stop_ends_all_also_the_stubborn(tmp_path: Path) -> None:
    children = Children(tmp_path)
    started = [
        await children.start(name, ["-c", code])
        for name, code in [("polite", WAIT), ("stubborn", STUBBORN)]
    ]
    for child in started:
        await until(child.log, "up")
    assert children.peak_rss_bytes() > 1 << 20
    assert await children.stop(grace_seconds=0.2) == 0
    assert [child.process.returncode for child in started] == [-signal.SIGTERM, -signal.SIGKILL]


async def test_what_a_dead_child_left_behind_is_counted_and_killed(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = await children.start("parent", ["-c", PARENT])
    async with asyncio.timeout(10):
        while child.log.read_text().count("up") < 2:  # noqa: ASYNC110 -- a file cannot wake us
            await asyncio.sleep(0.01)
    grandchild = psutil.Process(child.process.pid).children()[0].pid
    os.kill(child.process.pid, signal.SIGKILL)
    assert await children.stop() == 1
    assert not alive(grandchild)


async def test_interrupting_is_a_ctrl_c(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = await children.start("one", ["-c", WAIT])
    await until(child.log, "up")
    children.interrupt()
    await child.process.wait()
    assert "KeyboardInterrupt" in child.last_words()
    assert not child.alive


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor = (
        "import asyncio, pathlib, sys; from peers.children import Children\n"
        "async def main():\n"
        f"    children = Children(pathlib.Path({str(tmp_path)!r}))\n"
        f"    child = await children.start('c', ['-c', {WAIT!r}])\n"
        "    print(child.process.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", supervisor, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    await until(tmp_path / "c.log", "up")
    process.kill()
    await process.wait()
    async with asyncio.timeout(5):
        while alive(pid):  # noqa: ASYNC110 -- no event tells of another's child
            await asyncio.sleep(0.01)
