"""Every address gets its own verdict."""

import pytest

from bootstrap.health import check
from p2ptrain.errors import UserError
from p2ptrain.net.identity import Identity, peer_id_of
from p2ptrain.net.node import Network

pytestmark = pytest.mark.asyncio


@pytest.mark.net
async def test_living_and_dead_addresses_are_told_apart():
    nobody = peer_id_of(bytes(32))
    with Identity.temporary() as identity:
        async with Network.open(identity) as network:
            living = network.addresses()[0]
            place = living.rpartition("/p2p/")[0]
            dead, wrong = f"/ip4/127.0.0.1/tcp/9/p2p/{nobody}", f"{place}/p2p/{nobody}"
            found = await check([living, dead, wrong])
    assert [health.address for health in found] == [living, dead, wrong]
    assert [health.answers for health in found] == [True, False, False]
    assert found[0].cause == ""
    assert "nothing listens there" in found[1].cause
    assert "another peer answers there" in found[2].cause
    assert all(health.seconds >= 0 for health in found)


async def test_malformed_addresses_are_refused_at_once():
    with pytest.raises(UserError, match=r"'a': .*; 'b': "):
        await check(["a", "b"])
