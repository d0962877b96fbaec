"""A store in memory keeps what it was given, within its bound."""

from __future__ import annotations

import errno

import pytest

from p2ptrain.engine.attic import Attic
from p2ptrain.sim.loop import run


def test_what_fits_is_kept_and_what_does_not_changes_nothing() -> None:
    async def main() -> None:
        attic = Attic(most_bytes=10)
        await attic.put("b", bytearray(b"12345"))
        await attic.put("a", b"12345")
        await attic.put("a", b"54321")  # in its own place
        with pytest.raises(OSError, match="--checkpoint-dir") as refused:
            await attic.put("c", b"1")
        assert refused.value.errno == errno.ENOSPC
        assert await attic.names() == ["a", "b"]
        assert (await attic.get("a"), await attic.get("c")) == (b"54321", None)
        await attic.remove("b")
        await attic.remove("never there")
        await attic.put("c", b"1")
        assert await attic.names() == ["a", "c"]

    run(main())


def test_what_is_given_may_change_afterwards() -> None:
    async def main() -> None:
        attic, blob = Attic(), bytearray(b"state")
        await attic.put("a", blob)
        blob[:] = b"other"
        assert await attic.get("a") == b"state"

    run(main())
