"""Addresses: what is right is read, what is wrong is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import UserError
from p2ptrain.net.addresses import (
    PeerAddress,
    check_listen_addresses,
    parse_peer_address,
    parse_peer_addresses,
)
from p2ptrain.units import PeerId

PEER = PeerId("12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq")


@pytest.mark.parametrize(
    "place",
    [
        "/ip4/203.0.113.7/tcp/31337",
        "/ip6/2001:db8::7/tcp/31337",
        "/ip4/203.0.113.7/udp/31337/quic-v1",
        "/dns/boot.example.org/tcp/443/wss",
        "/dnsaddr/boot.example.org",
    ],
)
def test_a_whole_address_is_read_and_written_back(place):
    address = parse_peer_address(f"  {place}/p2p/{PEER}\n")
    assert address == PeerAddress(peer=PEER, place=place)
    assert parse_peer_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "an address looks like /ip4/"),
        ("203.0.113.7:31337", "an address looks like /ip4/"),
        (f"/p2p/{PEER}", "must begin with /ip4/"),
        (f"/ip4/203.0.113/tcp/1/p2p/{PEER}", "'203.0.113' is not an IPv4 address"),
        (f"/ip6/203.0.113.7/tcp/1/p2p/{PEER}", "is not an IPv6 address"),
        (f"/ip4/203.0.113.7/tcp/http/p2p/{PEER}", "'http' is not a port"),
        (f"/ip4/203.0.113.7/tcp/65536/p2p/{PEER}", "'65536' is not a port"),
        (f"/ip4/203.0.113.7/tcp/0/p2p/{PEER}", "port 0 cannot be dialled"),
        (f"/ip4/203.0.113.7/p2p/{PEER}", "the port is missing"),
        ("/ip4/203.0.113.7/tcp/1", "the peer id is missing"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{PEER[:-3]}", "is not a whole peer id"),
        ("/ip4/203.0.113.7/tcp/1/p2p/", "it ends in /"),
        (f"/ip4/203.0.113.7/tpc/1/p2p/{PEER}", "'tpc' is not known here"),
        (f"/dns/a b/tcp/1/p2p/{PEER}", "'a b' is not a host name"),
        ("/ip4/" + "1" * 600, "an address looks like"),
    ],
)
def test_a_half_typed_address_is_told_what_is_wrong(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_peer_address(text)


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_value_error(text):
    try:
        parse_peer_address(text)
    except ValueError:
        return
    assert text.strip().startswith("/")


def test_all_bad_addresses_are_named_in_one_line():
    good = f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"
    with pytest.raises(UserError, match=r"'one': .*; 'two': ") as caught:
        parse_peer_addresses([good, "one", "two"])
    assert "\n" not in str(caught.value)
    assert parse_peer_addresses([good, good]) == (parse_peer_address(good),)


@pytest.mark.parametrize(
    ("text", "fixed", "complaint"),
    [
        ("31337", False, "an address looks like"),
        ("/ip4/0.0.0.0", False, "write for instance /ip4/0.0.0.0/tcp/31337"),
        ("/ip4/203.0.113.7/tcp/0", True, "port 0 cannot be announced"),
    ],
)
def test_addresses_to_listen_on_are_checked(text, fixed, complaint):
    with pytest.raises(UserError, match=f"--some-maddrs.*{complaint}"):
        check_listen_addresses([text], option="--some-maddrs", fixed_port=fixed)


def test_port_zero_is_fine_to_listen_on():
    check_listen_addresses(["/ip4/127.0.0.1/tcp/0"], option="--host-maddrs", fixed_port=False)
