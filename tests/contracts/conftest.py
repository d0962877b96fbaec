"""The worlds in which the contracts of transport, directory and signer run.

A contract test describes a scenario of some peers, each with its three ports, and hands
it to a world: ``world(scenario, peers=2)``. Add a world by one line in WORLDS; its function
plugs in that many peers that can reach each other, runs ``scenario(*peers)`` to its end
within its own loop and deadline, and leaves nothing behind.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from p2ptrain.ports import Directory, Signer, Transport
from p2ptrain.sim import loop
from p2ptrain.sim.directory import SimTable
from p2ptrain.sim.network import SimNetwork
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import PeerId

Scenario = Callable[..., Coroutine[Any, Any, None]]
World = Callable[..., None]

DEADLINE_SECONDS = 60.0


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


WORLDS: dict[str, Any] = {"simulated": simulated}


@pytest.fixture(params=WORLDS.values(), ids=WORLDS.keys())
def world(request: pytest.FixtureRequest) -> World:
    return request.param  # type: ignore[no-any-return]
