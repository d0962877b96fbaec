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
        assert await a.directory.store(KEY, b"brief", lifetime=1)
        await asyncio.sleep(1.5)
        assert await values(b) == {}

    world(scenario, peers=2)


def test_a_newer_record_replaces_an_older_one_that_would_live_longer(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        assert await a.directory.store(KEY, b"old", lifetime=120)
        (old,) = await b.directory.read(KEY)
        assert await a.directory.store(KEY, b"new", lifetime=10)
        (new,) = await b.directory.read(KEY)
        assert new.value == b"new"
        assert new.sequence > old.sequence

    world(scenario, peers=2)


def test_values_are_bytes_of_any_kind(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        for value in (b"", bytes(range(256)) * 16):
            assert await a.directory.store(KEY, value, lifetime=30)
            assert await values(b) == {a.signer.peer: value}

    world(scenario, peers=2)


@pytest.mark.parametrize("lifetime", [0, -1, float("nan")])
def test_a_record_without_a_life_is_refused(world: Any, lifetime: float) -> None:
    async def scenario(a: Any, b: Any) -> None:
        with pytest.raises(ValueError, match="lifetime"):
            await a.directory.store(KEY, b"", lifetime=lifetime)
        assert await values(b) == {}

    world(scenario, peers=2)


def test_many_calls_at_once_all_succeed(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(40):
                value = number.to_bytes()
                tasks.create_task(a.directory.store(f"{KEY}/{number}", value, lifetime=30))
        async with asyncio.TaskGroup() as tasks:
            reads = [tasks.create_task(values(b, f"{KEY}/{n}")) for n in range(40)]
        assert [list(read.result().values()) for read in reads] == [
            [n.to_bytes()] for n in range(40)
        ]

    world(scenario, peers=2)


def test_a_cancelled_call_harms_no_later_one(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await a.directory.store(KEY, b"1", lifetime=30)
        assert await a.directory.store(KEY, b"2", lifetime=30)
        assert await values(b) == {a.signer.peer: b"2"}

    world(scenario, peers=2)
