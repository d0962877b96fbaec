"""The address book as people run it: its first lines, its end, and what it refuses."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from bootstrap.node import BootstrapOptions, run, serve, welcome
from p2ptrain.errors import BootstrapError, UserError
from p2ptrain.net.identity import Identity, peer_id_of
from p2ptrain.net.node import Network, NetworkOptions

LOCAL = ("/ip4/127.0.0.1/tcp/0",)
PEER = peer_id_of(bytes(32))

PROGRAM = """
import sys
from pathlib import Path
from bootstrap.node import BootstrapOptions, run
options = BootstrapOptions(host_maddrs=("/ip4/127.0.0.1/tcp/0",), identity_path=Path(sys.argv[1]))
sys.exit(run(options, say=lambda line: print(line, flush=True)))
"""


def test_the_address_that_others_can_reach_comes_first():
    lines = welcome(
        (f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}", f"/ip4/203.0.113.1/tcp/1/p2p/{PEER}"), lasting=True
    )
    assert lines[0] == f"peer id: {PEER}"
    assert lines[2] == f"  --initial-peers /ip4/203.0.113.1/tcp/1/p2p/{PEER}"
    assert lines[3] == f"  --initial-peers /ip4/127.0.0.1/tcp/1/p2p/{PEER}"
    assert len(lines) == 4


def test_an_address_that_will_not_last_says_so():
    lines = welcome((f"/ip4/203.0.113.1/tcp/1/p2p/{PEER}",), lasting=False)
    assert "--identity-path" in lines[-1]


def test_a_port_alone_means_all_interfaces():
    options = BootstrapOptions(port=4242).network()
    assert options.daemon.host_maddrs == ("/ip4/0.0.0.0/tcp/4242",)


def test_wrong_addresses_are_refused_before_anything_starts():
    with pytest.raises(UserError, match="--host-maddrs"):
        run(BootstrapOptions(host_maddrs=("nonsense",)), say=print)
    with pytest.raises(UserError, match="bad address 'nonsense'"):
        run(BootstrapOptions(host_maddrs=LOCAL, initial_peers=("nonsense",)), say=print)


@pytest.mark.net
def test_a_taken_port_is_refused_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"cannot listen on {taken}: .*choose another port"):
            run(BootstrapOptions(host_maddrs=(taken,)), say=print)


@pytest.mark.net
def test_bootstraps_that_do_not_answer_are_named():
    dead = f"/ip4/127.0.0.1/tcp/9/p2p/{PEER}"
    with pytest.raises(BootstrapError, match=dead):
        run(BootstrapOptions(host_maddrs=LOCAL, initial_peers=(dead,)), say=print)


@pytest.mark.net
def test_it_ends_when_nobody_reads_what_it_says(capsys):
    def nobody(_line):
        raise BrokenPipeError

    assert run(BootstrapOptions(host_maddrs=LOCAL), say=nobody) == 1
    assert capsys.readouterr().err == "p2ptrain: nobody reads our output any more: leaving\n"


@pytest.mark.net
@pytest.mark.asyncio
async def test_a_copied_line_is_enough_to_join(tmp_path):
    said: asyncio.Queue[str] = asyncio.Queue()
    options = BootstrapOptions(host_maddrs=LOCAL, identity_path=tmp_path / "key")
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(serve(options, say=said.put_nowait))
        while not (found := re.search(r"--initial-peers (\S+)", await said.get())):
            pass
        with Identity.temporary() as identity:
            joining = NetworkOptions(initial_peers=(found[1],))
            async with Network.open(identity, joining) as network:
                assert await network.directory.store("key", b"here", lifetime=60)
                assert network.directory.neighbours() == 1
        serving.cancel()


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_with_its_code_and_its_process(tmp_path, number, code):
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "key")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as program:
        assert program.stdout is not None
        first = program.stdout.readline()
        children = psutil.Process(program.pid).children()
        assert [child.name() for child in children] == ["p2pd"]
        program.send_signal(number)
        _, errors = program.communicate(timeout=15)
    assert program.returncode == code
    assert errors == ""
    assert not any(child.is_running() for child in children)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key", "key.lock"]
    with Identity.open(tmp_path / "key") as identity:
        assert first == f"peer id: {identity.peer}\n"
