"""The simulated directory keeps good records, refuses bad ones, and fails like a DHT."""

import asyncio
from dataclasses import replace

import pytest

from p2ptrain.errors import DirectoryError
from p2ptrain.sim import loop
from p2ptrain.sim.directory import HEARING_SECONDS, SimDirectory, SimTable
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def now() -> float:
    return asyncio.get_running_loop().time()


def seats(table: SimTable, *peers: PeerId) -> list[SimDirectory]:
    return [table.directory(SimSigner(peer)) for peer in peers]


async def values(directory: SimDirectory) -> list[tuple[PeerId, bytes]]:
    return [(record.owner, record.value) for record in await directory.read("key")]


def test_records_are_seen_by_all_until_they_expire() -> None:
    async def main() -> None:
        b, a = seats(SimTable(), B, A)
        assert await b.store("key", b"from b", lifetime=60)
        assert await a.store("key", b"from a", lifetime=10)
        assert await values(b) == [(A, b"from a"), (B, b"from b")]
        await asyncio.sleep(20)
        assert await values(a) == [(B, b"from b")]
        assert await a.read("another key") == ()

    loop.run(main())


def test_the_newest_record_of_an_owner_replaces_also_after_a_restart() -> None:
    async def main() -> None:
        table = SimTable()
        (before,) = seats(table, A)
        for i in range(3):
            assert await before.store("key", bytes([i]), lifetime=60)
        (after,) = seats(table, A)
        assert await after.store("key", b"reborn", lifetime=60)
        (record,) = await before.read("key")
        assert record.value == b"reborn"

    loop.run(main())


def test_too_much_and_too_long_are_refused_at_once() -> None:
    async def main() -> None:
        (a,) = seats(SimTable(), A)
        with pytest.raises(ValueError, match="bytes"):
            await a.store("key", bytes(4097), lifetime=1)
        with pytest.raises(ValueError, match="lifetime"):
            await a.store("key", b"", lifetime=121)
        assert now() == 0

    loop.run(main())


def test_bad_records_are_neither_taken_nor_shown() -> None:
    async def main() -> None:
        table = SimTable()
        a, b = seats(table, A, B)
        await a.store("key", b"honest", lifetime=60)
        good = b.signed("key", b"value", sequence=10**12, expires_at=now() + 60)
        bad = [
            replace(good, owner=A),
            replace(good, value=b"altered"),
            replace(good, signature=b""),
            replace(b.signed("key 2", b"moved", sequence=10**12, expires_at=now() + 60), key="key"),
            b.signed("key", bytes(5000), sequence=10**12, expires_at=now() + 60),
            b.signed("key", b"pinned for ever", sequence=10**12, expires_at=now() + 1e9),
            b.signed("key", b"expired", sequence=10**12, expires_at=now() - 1),
        ]
        for record in bad:
            assert not table.put(record, SimSigner(C), now=now())
            table.plant(record)
            assert await values(a) == [(A, b"honest")]
        assert table.refused >= len(bad)
        assert table.put(good, SimSigner(C), now=now())
        assert not table.put(replace(good), SimSigner(C), now=now()), "a replay is no news"

    loop.run(main())


def test_a_directory_that_is_down_says_so_after_its_deadline() -> None:
    async def main() -> None:
        table = SimTable()
        a, b = seats(table, A, B)
        table.unplug(A)
        with pytest.raises(DirectoryError):
            await a.read("key")
        assert 5 < now() < 6
        assert await b.read("key") == ()
        table.down = True
        with pytest.raises(DirectoryError):
            await b.store("key", b"", lifetime=1)

    loop.run(main())


def test_who_was_unplugged_has_been_listened_to_once_there_was_time_to_say_it() -> None:
    async def main() -> None:
        table = SimTable()
        (a,) = seats(table, A)
        assert table.has_listened(A)
        table.unplug(A)
        await asyncio.sleep(20.0)
        assert not table.has_listened(A)
        assert table.has_listened(B)
        table.plug(A)
        assert await a.store("key", b"", lifetime=60)
        assert not table.has_listened(A)  # but who calls only every second may not have been
        await asyncio.sleep(HEARING_SECONDS)
        table.plug(A)  # it is
        assert table.has_listened(A)
        table.down = True
        assert not table.has_listened(A)

    loop.run(main())


def test_the_sides_of_a_partition_diverge_and_the_newer_record_wins_after() -> None:
    async def main() -> None:
        table = SimTable()
        a, b = seats(table, A, B)
        await a.store("key", b"before", lifetime=100)
        table.split([[A], [B]])
        await a.store("key", b"during", lifetime=100)
        await b.store("key", b"over there", lifetime=100)
        assert await values(a) == [(A, b"during")]
        assert await values(b) == [(A, b"before"), (B, b"over there")]
        table.merge()
        assert await values(a) == await values(b) == [(A, b"during"), (B, b"over there")]

    loop.run(main())
