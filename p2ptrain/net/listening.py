"""Where and how p2pd listens: options as its command line, and the ports they name.

Intuition: p2pd opens every port with SO_REUSEPORT, so two peers told to use one port share
it silently and each gets half of the other's connections (measured). So we look first.
And a restarted p2pd must come back at the address that others remember.

Invariant: options are checked when made; p2pd never sees one that it would misread.

Refused: believing p2pd that its port was free.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from p2ptrain.errors import UserError
from p2ptrain.net.addresses import check_listen_addresses, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# p2pd leaves by itself if we die between its start and our first persistent connection.
IDLE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """How p2pd meets the world. The defaults suit one machine; a public peer sets more.

    ``host_maddrs``: where to listen (tcp, udp quic-v1, IPv4 and IPv6); ``announce_maddrs``:
    what to tell others instead; ``trusted_relays``: relays to use when not reachable.
    """

    host_maddrs: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce_maddrs: tuple[str, ...] = ()
    use_relay: bool = False
    use_auto_relay: bool = False
    trusted_relays: tuple[str, ...] = ()
    auto_nat: bool = False
    nat_port_map: bool = False
    reachability: Literal["auto", "public", "private"] = "auto"

    def __post_init__(self) -> None:
        check_listen_addresses(self.host_maddrs, option="--host-maddrs", fixed_port=False)
        check_listen_addresses(self.announce_maddrs, option="--announce-maddrs", fixed_port=True)

    def arguments(self, *, identity: Path, control: Path) -> tuple[str, ...]:
        """The command line of p2pd."""
        arguments = [
            f"-listen=/unix{control}",
            f"-id={identity}",
            f"-hostAddrs={','.join(self.host_maddrs)}",
            "-dhtServer=1",
            "-connManager=1",
            "-tls=1",
            f"-idleTimeout={IDLE_SECONDS}s",
            f"-relay={int(self.use_relay)}",
            f"-autoRelay={int(self.use_auto_relay)}",
            f"-autonat={int(self.auto_nat)}",
            f"-natPortMap={int(self.nat_port_map)}",
        ]
        if self.announce_maddrs:
            arguments.append(f"-announceAddrs={','.join(self.announce_maddrs)}")
        if self.trusted_relays:
            arguments.append(f"-trustedRelays={','.join(self.trusted_relays)}")
        if self.reachability != "auto":
            arguments.append(f"-forceReachability{self.reachability.title()}=1")
        return tuple(arguments)


def check_ports_free(options: DaemonOptions) -> None:
    """Refuse TCP ports that are taken, because p2pd would share them with their owner.

    Raises:
        UserError: naming the address and what to do.
    """
    for text in options.host_maddrs:
        (protocol, host), *rest = parts_of(text)
        if protocol not in {"ip4", "ip6"} or not rest or rest[0][0] != "tcp" or rest[0][1] == "0":
            continue
        family = socket.AF_INET if protocol == "ip4" else socket.AF_INET6
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Only a listener may refuse us, not the remains of closed connections.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, int(rest[0][1])))
            except OSError as error:
                raise UserError(
                    f"cannot listen on {text}: {os.strerror(error.errno or 0)}; "
                    "choose another port, or stop the program that uses it"
                ) from error


def with_ports(options: DaemonOptions, listening: Sequence[str]) -> DaemonOptions:
    """Replace ports 0 by those that p2pd got, so that a restarted p2pd keeps its addresses."""
    found: dict[str, str] = {}
    for place in listening:
        parts = parts_of(place)
        if len(parts) > 1:
            found.setdefault(f"{parts[0][0]}/{parts[1][0]}", parts[1][1])

    def pinned(text: str) -> str:
        parts = parts_of(text)
        kind = f"{parts[0][0]}/{parts[1][0]}"
        if parts[1][1] != "0" or kind not in found:
            return text
        return text.replace(f"/{parts[1][0]}/0", f"/{parts[1][0]}/{found[kind]}", 1)

    return replace(options, host_maddrs=tuple(pinned(text) for text in options.host_maddrs))
