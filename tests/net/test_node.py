"""A network lives and dies: restarts, refusals in one line, nothing left behind."""

import asyncio
import os
import signal
import socket
import tempfile

import psutil
import pytest

from p2ptrain.errors import BootstrapError, LinkError, UserError
from p2ptrain.net import daemon, node
from p2ptrain.net.emulation import parse_link
from p2ptrain.net.identity import Identity, peer_id_of
from p2ptrain.net.listening import DaemonOptions
from p2ptrain.net.node import Network, NetworkOptions
from p2ptrain.net.peerstore import save_peers

pytestmark = [pytest.mark.net, pytest.mark.asyncio]

NOBODY = peer_id_of(bytes(32))


@pytest.fixture(autouse=True)
def quiet_folder(tmp_path, monkeypatch):
    """Temporary files of the networks go here, so that leavings can be seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture
def identity():
    with Identity.temporary() as found:
        yield found


async def echo(stream) -> None:
    """Give every byte back until the stream ends."""
    byte = bytearray(1)
    while True:
        await stream.receive_into(memoryview(byte))
        await stream.send(byte)


async def ask(stream) -> None:
    await stream.send(b"?")
    answer = bytearray(1)
    await stream.receive_into(memoryview(answer))
    assert answer == b"?"


async def asks(stream) -> None:
    while True:
        await ask(stream)


async def until(question) -> None:
    """Ask again until no LinkError; the test's own timeout bounds it."""
    while True:
        try:
            return await question()
        except LinkError:
            await asyncio.sleep(0.05)


async def test_nothing_is_left_behind(identity, tmp_path):
    before = children(), asyncio.all_tasks(), set(tmp_path.iterdir())
    async with Network.open(identity) as network:
        await network.transport.listen(echo)
        assert network.daemon_pid in children()
        assert await network.directory.store("key", b"alone", lifetime=60)
        assert [found.value for found in await network.directory.read("key")] == [b"alone"]
    assert (children(), asyncio.all_tasks(), set(tmp_path.iterdir())) == before


async def test_nothing_is_left_behind_with_streams_handlers_and_searches_in_flight(identity):
    before = children(), asyncio.all_tasks()
    with Identity.temporary() as second:
        async with Network.open(identity) as a:
            options = NetworkOptions(initial_peers=a.addresses())
            async with Network.open(second, options) as b, asyncio.TaskGroup() as tasks:

                async def never_ends(stream) -> None:
                    await asyncio.Event().wait()

                await b.transport.listen(never_ends)
                stream = await a.transport.open(b.peer)
                await stream.send(b"x")
                searches = [
                    tasks.create_task(b.directory.read(str(number))) for number in range(40)
                ]
                await asyncio.sleep(0)
                for search in searches:
                    search.cancel()
    assert (children(), asyncio.all_tasks()) == before


async def test_a_dead_daemon_comes_back_with_its_id_and_address(identity):
    with Identity.temporary() as second:
        async with Network.open(identity) as a:
            options = NetworkOptions(initial_peers=a.addresses())
            async with Network.open(second, options) as b:
                await b.transport.listen(echo)
                old = await a.transport.open(b.peer)
                await ask(old)
                assert await b.directory.store("key", b"kept", lifetime=120)
                pid, addresses = b.daemon_pid, b.addresses()
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(LinkError):
                    await asks(old)

                async def again() -> None:
                    stream = await a.transport.open(b.peer)
                    await ask(stream)
                    await stream.close()

                await until(again)
                assert (b.addresses(), b.peer) == (addresses, second.peer)
                assert b.daemon_pid not in {None, pid}
                assert [found.value for found in await b.directory.read("key")] == [b"kept"]
                assert await b.directory.store("key", b"new", lifetime=120)
                assert [found.value for found in await a.directory.read("key")] == [b"new"]


async def test_a_hanging_daemon_is_replaced(identity, monkeypatch):
    monkeypatch.setattr(daemon, "PROBE_SECONDS", 0.2)
    async with Network.open(identity) as network:
        pid = network.daemon_pid
        os.kill(pid, signal.SIGSTOP)
        while network.daemon_pid in {None, pid}:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.05)
        assert await network.directory.store("key", b"", lifetime=60)


async def test_leaving_while_the_daemon_comes_back_leaves_nothing(identity):
    before = children(), asyncio.all_tasks()
    with Identity.temporary() as second:
        async with Network.open(identity) as a:
            options = NetworkOptions(initial_peers=a.addresses())
            async with Network.open(second, options) as b:
                pid = b.daemon_pid
                os.kill(pid, signal.SIGKILL)
                while b.daemon_pid in {None, pid}:  # noqa: ASYNC110 - nobody tells when
                    await asyncio.sleep(0)
    assert (children(), asyncio.all_tasks()) == before


async def test_calls_while_the_daemon_is_down_fail_at_once(identity, monkeypatch):
    monkeypatch.setattr(node, "FIRST_WAIT_SECONDS", 60.0)
    async with Network.open(identity) as network:
        os.kill(network.daemon_pid, signal.SIGKILL)
        while network.daemon_pid is not None:  # noqa: ASYNC110 - nobody tells when
            await asyncio.sleep(0.01)
        with pytest.raises(LinkError, match="restarting"):
            await network.transport.open(NOBODY)


async def test_peers_find_each_other_through_the_bootstrap_and_outlive_it(tmp_path):
    store = tmp_path / "peers.json"
    with Identity.temporary() as first, Identity.temporary() as second:
        with Identity.temporary() as book:
            async with Network.open(book) as bootstrap:
                options = NetworkOptions(initial_peers=bootstrap.addresses())
                old = bootstrap.addresses()
                opened = Network.open(first, options)
                a = await opened.__aenter__()
                await a.transport.listen(echo)
                async with Network.open(second, options) as b:
                    await ask(await b.transport.open(a.peer))
                    assert await a.directory.store("key", b"here", lifetime=60)
                    assert len(await b.directory.read("key")) == 1
                    assert b.known_addresses(a.peer) == a.addresses()
        try:
            save_peers(store, {a.peer: (a.addresses()[0].rpartition("/p2p/")[0],)})
            options = NetworkOptions(initial_peers=old, peerstore=store)
            async with Network.open(second, options) as b:
                await ask(await b.transport.open(a.peer))
                assert len(await b.directory.read("key")) == 1
        finally:
            await opened.__aexit__(None, None, None)


async def test_a_swarm_of_ones_own_dials_nobody_from_an_earlier_one(identity, tmp_path):
    store = tmp_path / "peers.json"
    with Identity.temporary() as second:
        async with Network.open(second) as earlier:
            place = earlier.addresses()[0].rpartition("/p2p/")[0]
            save_peers(store, {earlier.peer: (place,)})
            async with Network.open(identity, NetworkOptions(peerstore=store)) as network:
                assert network.directory.neighbours() == 0
                assert network.known_addresses(earlier.peer) == ()


async def test_no_bootstrap_names_every_address_and_its_cause(identity):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with Identity.temporary() as second:
        async with Network.open(second) as living:
            before = children()
            place = living.addresses()[0].rpartition("/p2p/")[0]
            dead = f"/ip4/127.0.0.1/tcp/{free}/p2p/{NOBODY}"
            other = f"{place}/p2p/{peer_id_of(bytes([1]) * 32)}"
            with pytest.raises(BootstrapError) as caught:
                async with Network.open(identity, NetworkOptions(initial_peers=(dead, other))):
                    pytest.fail("it joined nobody")
            assert f"{dead} (connection refused" in str(caught.value)
            assert f"{other} (another peer answers there" in str(caught.value)
            assert "\n" not in str(caught.value)
            assert caught.value.exit_code == 3
            assert children() == before


async def test_one_living_bootstrap_of_several_suffices(identity, caplog):
    dead = f"/ip4/127.0.0.1/tcp/9/p2p/{NOBODY}"
    with Identity.temporary() as second:
        async with Network.open(second) as living:
            options = NetworkOptions(initial_peers=(dead, *living.addresses()))
            async with Network.open(identity, options) as network:
                assert network.directory.neighbours() == 1
    assert dead in caplog.text


async def test_a_malformed_address_is_a_user_error_before_anything_starts(identity):
    with pytest.raises(UserError, match=r"'127\.0\.0\.1:31337': an address looks like"):
        async with Network.open(identity, NetworkOptions(initial_peers=("127.0.0.1:31337",))):
            pytest.fail("it joined nobody")


async def test_a_taken_port_is_a_user_error(identity):
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        options = NetworkOptions(daemon=DaemonOptions(host_maddrs=(host,)))
        with pytest.raises(UserError, match="choose another port"):
            async with Network.open(identity, options):
                pytest.fail("the port was taken")


async def test_a_host_address_that_is_not_ours_is_refused_with_the_reason(identity, monkeypatch):
    monkeypatch.setattr(node, "check_ports_free", lambda _: None)
    options = NetworkOptions(daemon=DaemonOptions(host_maddrs=("/ip4/203.0.113.1/tcp/0",)))
    with pytest.raises(UserError, match=r"p2pd did not start: failed to listen .*--host-maddrs"):
        async with Network.open(identity, options):
            pytest.fail("nobody has that address")


class OursError(Exception):
    """An error that is neither the network's nor anybody's."""


async def test_an_error_of_the_body_comes_out_as_itself(identity):
    with pytest.raises(OursError):
        async with Network.open(identity):
            raise OursError


async def test_an_error_of_a_handler_comes_out_as_itself(identity):
    async def broken(_) -> None:
        raise OursError

    async def serve(network: Network) -> None:
        await network.transport.listen(broken)
        stream = await a.transport.open(network.peer)
        await stream.send(b"x")
        await asyncio.Event().wait()

    with Identity.temporary() as second:
        async with Network.open(identity) as a:
            opened = Network.open(second, NetworkOptions(initial_peers=a.addresses()))
            with pytest.raises(OursError):
                async with opened as b:
                    await serve(b)


async def test_cancelled_while_starting_it_leaves_nothing(identity):
    before = children()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), Network.open(identity):
            await asyncio.Event().wait()
    assert children() == before


async def test_an_emulated_line_is_in_the_way(identity):
    with Identity.temporary() as second:
        async with Network.open(identity) as a:
            options = NetworkOptions(initial_peers=a.addresses(), link=parse_link("100ms"))
            async with Network.open(second, options) as b:
                await a.transport.listen(echo)
                stream = await b.transport.open(a.peer)
                began = asyncio.get_running_loop().time()
                await ask(stream)
                assert asyncio.get_running_loop().time() - began >= 0.1
                await stream.close()
