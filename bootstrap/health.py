"""Whether addresses answer: dialled as a newcomer would, each with its own verdict.

Intuition: an operator who shares an address wants to know that others can use it, and a
peer that cannot join wants to know which of its addresses is at fault. So we do exactly
what a newcomer does first: dial, and ask the directory there for its clock.

Invariants: every address gets one verdict with one cause; nothing is stored and no record
of ours is left anywhere; it ends within libp2p's own dialling time.

Refused: a port scan or a TCP connect, which succeed where a newcomer fails.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.net.addresses import parse_peer_addresses
from p2ptrain.net.identity import Identity
from p2ptrain.net.node import Network

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.units import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """``cause`` is empty when the address answers; ``seconds``: until the verdict."""

    address: str
    answers: bool
    cause: str
    seconds: Seconds


async def check(addresses: Iterable[str]) -> tuple[Health, ...]:
    """Dial all addresses from a fresh identity on this machine; verdicts in their order.

    Raises:
        UserError: malformed addresses, all named.
    """
    asked = parse_peer_addresses(addresses)
    loop = asyncio.get_running_loop()
    with Identity.temporary() as identity:
        async with Network.open(identity) as network:
            begun = loop.time()
            found: list[Health] = []
            for address in asked:
                cause = (await network.meet((address,))).get(address, "")
                found.append(
                    Health(
                        address=str(address),
                        answers=not cause,
                        cause=cause,
                        seconds=loop.time() - begun,
                    )
                )
                begun = loop.time()
    return tuple(found)
