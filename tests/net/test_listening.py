"""Options of p2pd: checked, turned into its command line, and kept over restarts."""

import socket
from pathlib import Path

import pytest

from p2ptrain.errors import UserError
from p2ptrain.net.listening import DaemonOptions, check_ports_free, with_ports


def arguments(**options) -> list[str]:
    return list(
        DaemonOptions(**options).arguments(identity=Path("/key"), control=Path("/run/control"))
    )


def test_the_defaults_stay_on_this_machine():
    found = arguments()
    assert "-hostAddrs=/ip4/127.0.0.1/tcp/0" in found
    assert {"-relay=0", "-autoRelay=0", "-autonat=0", "-natPortMap=0"} <= set(found)
    assert "-listen=/unix/run/control" in found
    assert "-id=/key" in found


def test_a_public_peer_passes_its_options_on():
    found = arguments(
        host_maddrs=("/ip4/0.0.0.0/tcp/31337", "/ip6/::/udp/31337/quic-v1"),
        announce_maddrs=("/dns/me.example.org/tcp/31337",),
        use_relay=True,
        use_auto_relay=True,
        trusted_relays=("/ip4/203.0.113.7/tcp/1",),
        auto_nat=True,
        nat_port_map=True,
        reachability="private",
    )
    assert "-hostAddrs=/ip4/0.0.0.0/tcp/31337,/ip6/::/udp/31337/quic-v1" in found
    assert "-announceAddrs=/dns/me.example.org/tcp/31337" in found
    assert "-trustedRelays=/ip4/203.0.113.7/tcp/1" in found
    assert "-forceReachabilityPrivate=1" in found
    assert {"-relay=1", "-autoRelay=1", "-autonat=1", "-natPortMap=1"} <= set(found)


def test_wrong_addresses_are_refused_when_the_options_are_made():
    with pytest.raises(UserError, match="--host-maddrs"):
        DaemonOptions(host_maddrs=("localhost:1",))
    with pytest.raises(UserError, match="--announce-maddrs"):
        DaemonOptions(announce_maddrs=("/ip4/203.0.113.7/tcp/0",))


@pytest.mark.net
def test_a_taken_port_is_refused_and_a_free_one_is_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = DaemonOptions(host_maddrs=(f"/ip4/127.0.0.1/tcp/{port}",))
        with pytest.raises(UserError, match=f"cannot listen on .*{port}: .*another port"):
            check_ports_free(taken)
    check_ports_free(taken)
    check_ports_free(DaemonOptions())


def test_a_restart_keeps_the_ports_of_every_transport():
    options = DaemonOptions(
        host_maddrs=(
            "/ip4/0.0.0.0/tcp/0",
            "/ip4/0.0.0.0/udp/0/quic-v1",
            "/ip6/::/tcp/0",
            "/ip4/127.0.0.1/tcp/77",
        )
    )
    kept = with_ports(
        options,
        ["/ip4/192.0.2.2/tcp/41", "/ip4/127.0.0.1/tcp/41", "/ip4/192.0.2.2/udp/42/quic-v1"],
    )
    assert kept.host_maddrs == (
        "/ip4/0.0.0.0/tcp/41",
        "/ip4/0.0.0.0/udp/42/quic-v1",
        "/ip6/::/tcp/0",
        "/ip4/127.0.0.1/tcp/77",
    )
