"""Reachability: refused only where it is certain that nobody can dial us."""

import pytest

from p2ptrain.errors import UnreachableError
from p2ptrain.net.identity import peer_id_of
from p2ptrain.net.reach import check_reachable, own_ips

PEER = peer_id_of(bytes(32))
LOCAL = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"
LOCAL6 = f"/ip6/::1/tcp/4001/p2p/{PEER}"
HOME = f"/ip4/192.168.1.5/tcp/4001/p2p/{PEER}"
FAR = f"/ip4/203.0.113.7/tcp/31337/p2p/{PEER}"
NAME = f"/dns/boot.example.org/tcp/31337/p2p/{PEER}"
MACHINE = frozenset({"127.0.0.1", "192.168.1.5"})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([LOCAL], [FAR]),
        ([LOCAL, LOCAL6], [FAR]),
        ([LOCAL], [LOCAL, FAR]),
        ([LOCAL], [f"/ip6/2001:db8::1/tcp/1/p2p/{PEER}"]),
    ],
)
def test_a_peer_of_this_machine_alone_cannot_join_peers_elsewhere(ours, theirs):
    with pytest.raises(UnreachableError, match="leave out --host-maddrs, or add") as caught:
        check_reachable(ours, theirs, machine=MACHINE)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([LOCAL], [LOCAL]),  # a swarm on one machine
        ([LOCAL], [HOME]),  # the same, by the machine's other address
        ([LOCAL], []),  # nobody to join
        ([LOCAL], [NAME]),  # a name may be this machine's
        ([LOCAL, HOME], [FAR]),  # behind a router perhaps: only those outside can tell
        ([f"{FAR}/p2p-circuit/p2p/{PEER}"], [FAR]),  # by a relay
        ([], [FAR]),  # not listening yet
    ],
)
def test_whatever_might_work_is_let_through(ours, theirs):
    check_reachable(ours, theirs, machine=MACHINE)


def test_this_machine_has_a_loopback_address():
    assert "127.0.0.1" in own_ips()
