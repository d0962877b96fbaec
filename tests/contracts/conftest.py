"""The worlds in which the contracts of transport, directory and signer run.

A contract test describes a scenario of some peers, each with its three ports, and hands
it to a world: ``world(scenario, peers=2)``. Add a world by one line in WORLDS; its function
plugs in that many peers that can reach each other, runs ``scenario(*peers)`` to its end
within its own loop and deadline, and leaves nothing behind.

The real world starts three networks (a p2pd each, half a second) once per session. So that
no scenario meets another's leavings, each gets a fresh handler per transport and a name
space of its own in the directory.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

from p2ptrain.net.identity import Identity
from p2ptrain.net.node import Network, NetworkOptions
from p2ptrain.ports import Directory, Record, Signer, Stream, StreamHandler, Transport
from p2ptrain.sim import loop
from p2ptrain.sim.directory import SimTable
from p2ptrain.sim.network import SimNetwork
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import PeerId

Scenario = Callable[..., Coroutine[Any, Any, None]]
World = Callable[..., None]

DEADLINE_SECONDS = 60.0
REAL_PEERS = 3


@dataclass(frozen=True)
class Peer:
    """What one peer has of the network."""

    transport: Transport
    directory: Directory
    signer: Signer


def simulated(scenario: Scenario, peers: int) -> None:
    async def main() -> None:
        async with SimNetwork(seed=1) as network, asyncio.timeout(DEADLINE_SECONDS):
            table = SimTable(seed=1)
            signers = [SimSigner(PeerId(f"peer-{number}"), seed=1) for number in range(peers)]
            await scenario(
                *(
                    Peer(network.transport(signer.peer), table.directory(signer), signer)
                    for signer in signers
                )
            )

    loop.run(main())


class FreshTransport:
    """A transport that lives on, seen by one scenario: ``listen`` can be called anew."""

    def __init__(self, transport: Transport) -> None:
        self.peer = transport.peer
        self.addresses, self.open = transport.addresses, transport.open
        self._transport = transport
        self._handler: StreamHandler | None = None
        self._handling: set[asyncio.Task[Any]] = set()

    async def attach(self) -> None:
        """Listen for real, once."""
        await self._transport.listen(self._handle)

    async def listen(self, handler: StreamHandler) -> None:
        assert self._handler is None
        self._handler = handler

    def forget(self) -> None:
        """The scenario is over: no handler of it goes on."""
        self._handler = None
        for task in self._handling:
            task.cancel()

    async def _handle(self, stream: Stream) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handling.add(task)
        try:
            if self._handler is not None:
                await self._handler(stream)
        finally:
            self._handling.discard(task)
            await stream.close()


class FreshDirectory:
    """A directory that lives on, seen by one scenario."""

    def __init__(self, directory: Directory, scenario: int) -> None:
        self._directory = directory
        self._scenario = scenario

    async def store(self, key: str, value: bytes, *, lifetime: float) -> bool:
        return await self._directory.store(f"{self._scenario}/{key}", value, lifetime=lifetime)

    async def read(self, key: str) -> tuple[Record, ...]:
        return await self._directory.read(f"{self._scenario}/{key}")


class RealSwarm:
    """Networks on loopback in one uvloop: the first is the others' bootstrap."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._over = asyncio.Event()
        self._networks: list[tuple[Network, FreshTransport]] = []
        self._scenarios = itertools.count()
        self._living = self._runner.run(self._start())

    async def _start(self) -> asyncio.Task[None]:
        """Everything is entered and left in one task, which lives between the scenarios."""
        ready = asyncio.Event()
        living = asyncio.get_running_loop().create_task(self._live(ready))
        waiting = asyncio.get_running_loop().create_task(ready.wait())
        await asyncio.wait({living, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        return living

    async def _live(self, ready: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            initial: tuple[str, ...] = ()
            for _ in range(REAL_PEERS):
                identity = stack.enter_context(Identity.temporary())
                options = NetworkOptions(initial_peers=initial)
                network = await stack.enter_async_context(Network.open(identity, options))
                initial = initial or network.addresses()
                transport = FreshTransport(network.transport)
                await transport.attach()
                self._networks.append((network, transport))
            ready.set()
            await self._over.wait()

    def run(self, scenario: Scenario, peers: int) -> None:
        """The world: see above."""
        number = next(self._scenarios)

        async def main() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await scenario(
                    *(
                        Peer(transport, FreshDirectory(network.directory, number), network.signer)
                        for network, transport in self._networks[:peers]
                    )
                )

        try:
            self._runner.run(main())
        finally:
            for _, transport in self._networks:
                transport.forget()

    def close(self) -> None:
        self._over.set()
        self._runner.run(self._join())
        self._runner.close()

    async def _join(self) -> None:
        await self._living


@pytest.fixture(scope="session")
def real_swarm() -> Iterator[RealSwarm]:
    swarm = RealSwarm()
    yield swarm
    swarm.close()


def simulated_world(_: pytest.FixtureRequest) -> World:
    return simulated


def real_world(request: pytest.FixtureRequest) -> World:
    swarm: RealSwarm = request.getfixturevalue("real_swarm")
    return swarm.run


WORLDS = [
    pytest.param(simulated_world, id="simulated"),
    pytest.param(real_world, id="real", marks=pytest.mark.net),
]


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return request.param(request)  # type: ignore[no-any-return]
