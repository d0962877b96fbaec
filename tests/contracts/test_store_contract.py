"""The promises of ports.Store, kept by the disk and by its simulation."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2ptrain.data.store import DiskStore
from p2ptrain.ports import Store
from p2ptrain.sim.store import MemoryStore

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["real", "simulated"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return DiskStore(tmp_path) if request.param == "real" else MemoryStore()


@pytest.fixture
def fill(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the disk refuse to write from now on."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    def full() -> None:
        if isinstance(store, MemoryStore):
            store.full = True
        else:
            monkeypatch.setattr(os, "fsync", refuse)

    return full


async def test_a_blob_comes_back_as_last_written(store: Store) -> None:
    assert await store.get("state") is None
    for blob in (b"one", bytearray(b"two"), memoryview(b"three"), b""):
        await store.put("state", blob)
        assert await store.get("state") == bytes(blob)


async def test_names_are_sorted_and_whole(store: Store) -> None:
    for name in ("b", "a-1.bin", "C"):
        await store.put(name, name.encode())
    assert list(await store.names()) == ["C", "a-1.bin", "b"]


async def test_what_is_kept_does_not_change_with_the_buffer_given(store: Store) -> None:
    buffer = bytearray(b"before")
    await store.put("state", buffer)
    buffer[:] = b"after!"
    assert await store.get("state") == b"before"


async def test_a_full_disk_leaves_the_old_blob(store: Store, fill: Callable[[], None]) -> None:
    await store.put("state", b"old")
    fill()
    with pytest.raises(OSError, match=r"space|full"):
        await store.put("state", b"new")
    assert await store.get("state") == b"old"
    assert list(await store.names()) == ["state"]


async def test_what_is_removed_is_gone(store: Store) -> None:
    await store.put("state", b"old")
    await store.remove("state")
    await store.remove("never-there")
    assert await store.get("state") is None
    assert list(await store.names()) == []
