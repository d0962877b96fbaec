"""What the libp2p transport does beyond the contract: bounds, addresses, hand-over."""

import asyncio

import pytest

from p2ptrain.errors import LinkError
from p2ptrain.net import transport
from p2ptrain.net.identity import peer_id_of
from p2ptrain.net.transport import Libp2pTransport
from p2ptrain.units import PeerId

ME = peer_id_of(bytes(32))
OTHERS = [peer_id_of(n.to_bytes(32, "big")) for n in range(1, 5)]


async def alone() -> Libp2pTransport:
    return Libp2pTransport(ME, asyncio.TaskGroup())


@pytest.mark.asyncio
async def test_without_p2pd_nothing_opens_and_the_reason_is_told():
    streams = await alone()
    with pytest.raises(LinkError, match="restarting"):
        await streams.open(OTHERS[0])
    with pytest.raises(LinkError, match="restarting"):
        await streams.connect(OTHERS[0], ["/ip4/127.0.0.1/tcp/1"])


@pytest.mark.asyncio
@pytest.mark.parametrize("peer", ["", "nobody", ME[:-1]])
async def test_what_is_no_peer_id_is_a_link_error(peer):
    with pytest.raises(LinkError, match="is not a peer id"):
        await (await alone()).open(PeerId(peer))


@pytest.mark.asyncio
async def test_addresses_are_remembered_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(transport, "KNOWN_PEERS", 3)
    streams = await alone()
    for peer in OTHERS[:3]:
        streams.learn(peer, ["/ip4/203.0.113.1/tcp/1"])
    streams.learn(OTHERS[0], ["/ip4/203.0.113.2/tcp/2"])
    streams.learn(OTHERS[3], ["/ip4/203.0.113.1/tcp/1"])
    assert list(streams.known()) == [OTHERS[2], OTHERS[0], OTHERS[3]]
    assert streams.known()[OTHERS[0]] == ("/ip4/203.0.113.2/tcp/2",)


@pytest.mark.asyncio
async def test_what_cannot_be_dialled_is_not_remembered():
    streams = await alone()
    streams.learn(ME, ["/ip4/203.0.113.1/tcp/1"])
    streams.learn(OTHERS[0], [])
    streams.learn(OTHERS[1], [f"/ip4/203.0.113.1/tcp/1/p2p/{ME}/p2p-circuit"])
    streams.learn(OTHERS[2], ["/ip4/203.0.113.1/tcp/1"] * 20)
    assert {peer: len(places) for peer, places in streams.known().items()} == {OTHERS[2]: 8}


@pytest.mark.net
def test_a_peer_may_hold_only_so_many_streams(laboratory, monkeypatch, caplog):
    monkeypatch.setattr(transport, "STREAMS_PER_PEER", 2)

    async def main() -> None:
        arrived: asyncio.Queue = asyncio.Queue()
        await laboratory.b.transport.listen(arrived.put)

        async def knock():
            stream = await laboratory.a.transport.open(laboratory.b.peer)
            await stream.send(b"x")
            return stream

        kept = [await knock() for _ in range(2)]
        ends = [await arrived.get() for _ in range(2)]
        surplus = await knock()
        with pytest.raises(LinkError):
            await surplus.receive_into(memoryview(bytearray(1)))
        assert "2 open" in caplog.text
        await ends[0].close()
        again = await knock()
        ends.append(await arrived.get())
        for stream in (*kept, *ends, again, surplus):
            await stream.close()

    laboratory.run(main())
