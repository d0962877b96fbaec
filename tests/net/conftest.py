"""A small laboratory of real networks on loopback, shared by the tests of this folder."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from p2ptrain.net.binding import DHTNode
from p2ptrain.net.daemon import Daemon
from p2ptrain.net.identity import Identity
from p2ptrain.net.listening import DaemonOptions
from p2ptrain.net.node import Network, NetworkOptions

T = TypeVar("T")


@asynccontextmanager
async def held(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave ``manager`` in one task, although fixtures begin and end in two."""
    loop = asyncio.get_running_loop()
    ready, over = loop.create_future(), asyncio.Event()

    async def hold() -> None:
        async with manager as value:
            ready.set_result(value)
            await over.wait()

    task = loop.create_task(hold())
    await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield ready.result()
    over.set()
    await task


class Laboratory:
    """Networks ``a`` and ``b``, who know each other, and ``plain``: a bare hivemind node.

    The plain node is in their DHT but has no validator: it believes and stores anything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._stack = AsyncExitStack()
        self.run(self._open())

    async def _open(self) -> None:
        enter, hold = self._stack.enter_context, self._stack.enter_async_context
        self.a: Network = await hold(held(Network.open(enter(Identity.temporary()))))
        options = NetworkOptions(initial_peers=self.a.addresses())
        self.b: Network = await hold(held(Network.open(enter(Identity.temporary()), options)))
        identity = enter(Identity.temporary())
        self.plain_signer = identity.signer
        daemon = await Daemon.start(DaemonOptions(), identity=identity.path, folder=self._folder)
        self._stack.push_async_callback(daemon.stop)
        for network in (self.a, self.b):
            places = [address.rpartition("/p2p/")[0] for address in network.addresses()]
            await daemon.control.connect(network.peer, places)
        self.plain = await DHTNode.create(
            daemon.p2p, initial_peers=[str(x) for x in self.a.addresses()], cache_locally=False
        )
        self._stack.push_async_callback(self.plain.shutdown)

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(15):
                return await main

        return self._runner.run(bounded())

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    found = Laboratory(tmp_path_factory.mktemp("plain"))
    yield found
    found.close()
