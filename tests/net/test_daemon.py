"""p2pd does not outlive us, however we die."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from p2ptrain.errors import UserError
from p2ptrain.net.daemon import Daemon
from p2ptrain.net.identity import Identity
from p2ptrain.net.listening import DaemonOptions

pytestmark = pytest.mark.net

PROGRAM = """
import asyncio
from p2ptrain.net.identity import Identity
from p2ptrain.net.node import Network

async def main():
    with Identity.temporary() as identity:
        async with Network.open(identity) as network:
            print(network.daemon_pid, flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_p2pd_ends_when_its_program_is_killed(number, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as program:
        assert program.stdout is not None
        p2pd = psutil.Process(int(program.stdout.readline()))
        assert p2pd.name() == "p2pd"
        program.send_signal(number)
    # In a container it may have nobody who collects it: a zombie is as dead.
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        p2pd.wait(timeout=3)
        return
    assert not p2pd.is_running() or p2pd.status() == psutil.STATUS_ZOMBIE


@pytest.mark.asyncio
async def test_a_daemon_that_cannot_start_says_why_and_is_gone(tmp_path):
    (tmp_path / "key").write_bytes(b"garbage")
    before = psutil.Process().children()
    with pytest.raises(UserError, match="p2pd did not start: proto: cannot parse"):
        await Daemon.start(DaemonOptions(), identity=tmp_path / "key", folder=tmp_path)
    assert psutil.Process().children() == before


@pytest.mark.asyncio
async def test_stopping_ends_a_frozen_daemon_too(tmp_path, monkeypatch):
    monkeypatch.setattr("p2ptrain.net.daemon.STOP_SECONDS", 0.1)
    with Identity.temporary() as identity:
        running = await Daemon.start(DaemonOptions(), identity=identity.path, folder=tmp_path)
        assert running.peer == identity.peer
        os.kill(running.pid, signal.SIGSTOP)
        async with asyncio.timeout(5):
            await running.stop()
            await running.stop()
    assert not psutil.pid_exists(running.pid)
