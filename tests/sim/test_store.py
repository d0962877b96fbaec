"""A simulated disk keeps what was written, and refuses like a full one."""

import pytest

from p2ptrain.sim import loop
from p2ptrain.sim.store import MemoryStore


def test_a_full_disk_refuses_and_keeps_the_old_blob() -> None:
    async def main() -> None:
        store = MemoryStore()
        await store.put("b", b"old")
        await store.put("a", memoryview(b"other"))
        store.full = True
        with pytest.raises(OSError, match="full"):
            await store.put("b", b"new")
        assert await store.get("b") == b"old"
        assert await store.get("c") is None
        assert await store.names() == ["a", "b"]

    loop.run(main())
