"""What every ``ports.Directory`` promises, on the simulated table and on the DHT."""

import asyncio
from typing import Any

import pytest

KEY = "p2ptrain/1/test/stage/0"


async def values(peer: Any, key: str = KEY) -> dict[str, bytes]:
    return {record.owner: record.value for record in await peer.directory.read(key)}


def test_records_are_seen_by_everybody_one_per_owner_in_their_order(world: Any) -> None:
    async def scenario(a: Any, b: Any, c: Any) -> None:
        assert await c.directory.read(KEY) == ()
        assert await a.directory.store(KEY, b"from a", lifetime=60)
        assert await b.directory.store(KEY, b"from b", lifetime=60)
        records = await c.directory.read(KEY)
        assert [record.owner for record in records] == sorted([a.signer.peer, b.signer.peer])
        assert await values(c) == {a.signer.peer: b"from a", b.signer.peer: b"from b"}
        assert await c.directory.read(KEY + "1") == ()

    world(scenario, peers=3)


def test_the_newest_record_of_an_owner_replaces(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        for value in (b"one", b"two", b"three"):
            assert await a.directory.store(KEY, value, lifetime=60)
        assert await values(b) == {a.signer.peer: b"three"}

    world(scenario, peers=2)


def test_the_largest_and_longest_record_fits_and_more_is_refused(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        assert await a.directory.store(KEY, bytes(4000), lifetime=119)
        assert await values(b) == {a.signer.peer: bytes(4000)}
        with pytest.raises(ValueError, match="bytes"):
            await a.directory.store(KEY, bytes(4097), lifetime=60)
        with pytest.raises(ValueError, match="lifetime"):
            await a.directory.store(KEY, b"", lifetime=121)

    world(scenario, peers=2)


def test_a_record_ends_with_its_lifetime(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        assert await a.directory.store(KEY, b"brief", lifetime=2)
        await asyncio.sleep(3)
        assert await values(b) == {}

    world(scenario, peers=2)
