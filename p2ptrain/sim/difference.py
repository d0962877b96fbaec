"""A toy state as its difference to the last one that was adopted; see compute/difference.

Hashes again: what is shared afterwards is one of (what was shared, the bytes), so that who has
another base, or other bytes, has another state from then on. What is owed goes into the bytes of
whoever makes them, and into nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2ptrain.core.adoption import GENESIS
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.sim.arithmetic import expanded, mixed

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer
    from p2ptrain.sim.arithmetic import ToyState
    from p2ptrain.sim.compute import Device
    from p2ptrain.units import Bytes, Digest

BITS: Final = {"int8": 8, "int4": 4}
HASH_BYTES = 32


class ToyDifference:
    """One seat's side: implements ``ports.Difference``."""

    def __init__(self, state: ToyState, device: Device, kind: str) -> None:
        self.base: Digest | None = GENESIS
        self._state, self._device = state, device
        self._shared, self._owed = state.held, b""
        self._size_bytes = max(HASH_BYTES, state.elements * BITS[kind] // 8)

    @property
    def size_bytes(self) -> Bytes:
        """About as long as the integers would be."""
        return self._size_bytes

    def loaded(self) -> None:
        """A whole state came in the place of ours."""
        self.base, self._owed = None, b""

    async def make(self) -> bytes | None:
        """See ``ports.Difference``, here and below."""
        return await self._device.run("other", self._make)

    async def adopt(self, blob: Buffer) -> None:
        """Take over what ``blob`` leads to."""
        await self._device.run("other", lambda: self._adopt(bytes(blob)))

    async def mark(self, base: Digest) -> None:
        """What is here has this name."""
        await self._device.run("other", lambda: self._mark(base))

    def _make(self) -> bytes | None:
        if self.base is None:
            return None
        seed = mixed("difference", self._shared, self._state.held, self._owed)
        blob = expanded(seed, self._size_bytes)
        self._take(blob)
        return blob

    def _adopt(self, blob: bytes) -> None:
        if self.base is None:
            raise InternalError("a difference to a state that was not adopted here")
        if len(blob) != self._size_bytes or blob != expanded(blob[:HASH_BYTES], len(blob)):
            raise MisbehaviourError(f"no difference of toy stage {self._state.stage}")
        self._take(blob)
        self._state.clear()

    def _take(self, blob: bytes) -> None:
        stood = self._state.held
        self._shared = self._state.held = mixed("shared", self._shared, blob)
        self._owed, self.base = mixed("owed", stood, self._shared), None

    def _mark(self, base: Digest) -> None:
        self._shared, self.base = self._state.held, base
