"""Multiaddresses as people type them: read strictly, refused with the word that is wrong.

Intuition: an address to share is a place (``/ip4/1.2.3.4/tcp/31337``) and the peer that
must answer there (``/p2p/12D3Koo...``). The second half makes the first one safe to copy
from anywhere: another peer at that place is refused by libp2p.

Invariant: the text handed to p2pd never ends in ``/p2p/``: hivemind encodes that part in a
form that p2pd refuses, so place and peer travel apart.

Refused: hivemind's Multiaddr for user input (its errors do not say what to type instead).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2ptrain.errors import UserError
from p2ptrain.net.identity import public_key_of
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXAMPLE: Final = "/ip4/203.0.113.7/tcp/31337/p2p/12D3Koo..."
LISTEN_EXAMPLE: Final = "/ip4/0.0.0.0/tcp/31337"
MAX_PORT: Final = 65535
MAX_ADDRESS_CHARS: Final = 512  # a relayed IPv6 address with two peer ids takes about 250


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddress:
    """``place``: a multiaddress without its final ``/p2p/``; ``peer``: who answers there."""

    peer: PeerId
    place: str

    def __str__(self) -> str:
        return f"{self.place}/p2p/{self.peer}"


def _ip(version: int) -> Callable[[str], str | None]:
    def check(text: str) -> str | None:
        try:
            found = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return f"{text!r} is not an IPv{version} address"
        return None if found.version == version else f"{text!r} is not an IPv{version} address"

    return check


def _name(text: str) -> str | None:
    letters = text.replace("-", "").replace(".", "").replace("_", "")
    return None if letters.isalnum() else f"{text!r} is not a host name"


def _port(text: str) -> str | None:
    if text.isascii() and text.isdigit() and int(text) <= MAX_PORT:
        return None
    return f"{text!r} is not a port (0 to {MAX_PORT})"


def _peer(text: str) -> str | None:
    if public_key_of(text) is not None:
        return None
    return f"{text!r} is not a whole peer id (12D3Koo... with 52 characters)"


_WITH_VALUE: Final[dict[str, Callable[[str], str | None]]] = {
    "ip4": _ip(4),
    "ip6": _ip(6),
    "dns": _name,
    "dns4": _name,
    "dns6": _name,
    "dnsaddr": _name,
    "tcp": _port,
    "udp": _port,
    "p2p": _peer,
}
_ALONE: Final = frozenset({"quic-v1", "ws", "wss", "tls", "p2p-circuit"})
HOSTS: Final = ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr")


def parts_of(text: str) -> tuple[tuple[str, str], ...]:
    """The (protocol, value) pairs of a multiaddress; value is empty where there is none.

    Raises:
        ValueError: with the part that is wrong and what was expected.
    """
    if not text.startswith("/") or len(text) > MAX_ADDRESS_CHARS:
        raise ValueError(f"an address looks like {EXAMPLE}")
    words = iter(text[1:].split("/"))
    parts: list[tuple[str, str]] = []
    for word in words:
        if word in _ALONE:
            parts.append((word, ""))
            continue
        if word not in _WITH_VALUE:
            raise ValueError(f"{word!r} is not known here; an address looks like {EXAMPLE}")
        value = next(words, "")
        complaint = _WITH_VALUE[word](value)
        if complaint is not None:
            raise ValueError(complaint)
        parts.append((word, value))
    return tuple(parts)


def parse_peer_address(text: str) -> PeerAddress:
    """Read an address to dial: host, transport and port, then ``/p2p/`` and the peer id.

    Raises:
        ValueError: with what is wrong or missing.
    """
    if "," in text:
        raise ValueError("separate addresses by spaces")
    if text.strip().endswith("/"):
        raise ValueError("it ends in /: copy the whole line that the other peer printed")
    parts = parts_of(text.strip())
    if parts[0][0] not in HOSTS:
        raise ValueError("it must begin with /ip4/, /ip6/ or /dns/")
    if parts[0][0].startswith("ip") and ipaddress.ip_address(parts[0][1]).is_unspecified:
        raise ValueError(
            f"{parts[0][1]} is no place and cannot be dialled; give the host's address"
        )
    if parts[0][0] != "dnsaddr" and (len(parts) == 1 or parts[1][0] not in {"tcp", "udp"}):
        raise ValueError("the port is missing: /tcp/<port> must follow the host")
    if parts[-1][0] != "p2p":
        raise ValueError("the peer id is missing: it must end in /p2p/12D3Koo...")
    if len(parts) > 1 and parts[1][1] == "0":
        raise ValueError("port 0 cannot be dialled; copy the port the other peer printed")
    place, _, peer = text.strip().rpartition("/p2p/")
    return PeerAddress(peer=PeerId(peer), place=place)


def parse_peer_addresses(texts: Iterable[str]) -> tuple[PeerAddress, ...]:
    """Read all addresses given by the user, and complain of all bad ones at once.

    Raises:
        UserError: one line that names each malformed address and its fault.
    """
    good: list[PeerAddress] = []
    bad: list[str] = []
    for text in texts:
        try:
            good.append(parse_peer_address(text))
        except ValueError as error:
            bad.append(f"{text!r}: {error}")
    if bad:
        raise UserError("bad address " + "; ".join(bad))
    return tuple(dict.fromkeys(good))


def check_listen_addresses(texts: Iterable[str], *, option: str, fixed_port: bool) -> None:
    """Check addresses to listen on or to announce.

    Raises:
        UserError: one line that names ``option`` and each malformed address.
    """
    bad: list[str] = []
    for text in texts:
        try:
            parts = parts_of(text)
        except ValueError as error:
            bad.append(f"{text!r}: {error.args[0].replace(EXAMPLE, LISTEN_EXAMPLE)}")
            continue
        ports = [value for protocol, value in parts if protocol in {"tcp", "udp"}]
        if parts[0][0] not in HOSTS or not ports or parts[-1][0] == "p2p":
            bad.append(f"{text!r}: write for instance {LISTEN_EXAMPLE}")
        elif fixed_port and ports[0] == "0":
            bad.append(f"{text!r}: port 0 cannot be announced; give the port others can dial")
    if bad:
        raise UserError(f"bad {option} " + "; ".join(bad))
