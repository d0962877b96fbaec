"""Signatures of the simulated world: keyed BLAKE2b instead of Ed25519.

Ed25519 verification (about 100 microseconds) would be most of a simulation's time. Here
every peer has a secret derived from the world's seed, and to verify is to sign again
(about 1 microsecond). That is no signature in the real sense, since whoever verifies
could forge, but no simulated peer is handed another's secret, so to the engine it behaves
like one: a forged, altered or foreign signature does not verify.

Refused: signatures that are always good. Then no simulated attack could be told apart.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.units import PeerId

SIGNATURE_BYTES = 32


class SimSigner:
    """Signs as ``peer`` and verifies anybody of the world of ``seed``: ``ports.Signer``."""

    def __init__(self, peer: PeerId, *, seed: int = 0) -> None:
        self._peer = peer
        self._seed = seed
        self._secret = self._secret_of(peer)
        self._known: dict[PeerId, bytes] = {peer: self._secret}

    @property
    def peer(self) -> PeerId:
        """Who signs."""
        return self._peer

    def sign(self, message: bytes) -> bytes:
        """Return a signature over ``message``."""
        return blake2b(message, key=self._secret, digest_size=SIGNATURE_BYTES).digest()

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed ``message``."""
        if peer not in self._known:
            self._known[peer] = self._secret_of(peer)
        right = blake2b(message, key=self._known[peer], digest_size=SIGNATURE_BYTES).digest()
        return hmac.compare_digest(right, signature)

    def _secret_of(self, peer: PeerId) -> bytes:
        text = f"p2ptrain simulated secret/{self._seed}/{peer}"
        return blake2b(text.encode(), digest_size=32).digest()
