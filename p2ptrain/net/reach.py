"""Whether others can dial this peer at all, where that is certain without asking anybody.

Intuition: a peer that listens on 127.0.0.1 alone can join a swarm elsewhere, since it dials
out, and then waits for streams that nobody can open. That is seen from the addresses
themselves, before any training.

Invariant: what is refused here can never work; whatever might work is let through (a
firewall or a missing port forward shows only from outside).

Refused: dialling ourselves at our public address (many routers do not turn such packets
round, so a good peer would be refused), and asking a neighbour to dial back (libp2p answers
over the connection that is open already, so a bad peer would pass).
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

import psutil

from p2ptrain.errors import UnreachableError
from p2ptrain.net.addresses import parse_peer_address, parts_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def check_reachable(
    ours: Iterable[str], theirs: Iterable[str], *, machine: Collection[str]
) -> None:
    """Refuse to join peers elsewhere with addresses that mean this machine alone.

    ``ours``: where we say that we are; ``theirs``: whom we join through; ``machine``: the IP
    addresses of this machine (``own_ips``).

    Raises:
        UnreachableError: none of our addresses can be dialled from where they are.
    """
    places = tuple(ours)
    elsewhere = [text for text in theirs if _is_elsewhere(text, machine)]
    if places and elsewhere and all(_is_loopback(place) for place in places):
        raise UnreachableError(
            f"nobody at {parse_peer_address(elsewhere[0]).place} can reach this peer: it listens "
            "on this machine alone; leave out --host-maddrs, or add --announce-maddrs "
            "/ip4/<public address>/tcp/<port>"
        )


def own_ips() -> frozenset[str]:
    """The IP addresses of this machine's interfaces."""
    return frozenset(
        address.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family in {socket.AF_INET, socket.AF_INET6}
    )


def _is_loopback(place: str) -> bool:
    protocol, host = parts_of(place)[0]
    return protocol in {"ip4", "ip6"} and ipaddress.ip_address(host).is_loopback


def _is_elsewhere(address: str, machine: Collection[str]) -> bool:
    protocol, host = parts_of(address)[0]
    if protocol not in {"ip4", "ip6"}:
        return False  # a name may stand for anything
    return not ipaddress.ip_address(host).is_loopback and host.partition("%")[0] not in machine
