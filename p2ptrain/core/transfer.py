"""Values of a state's transfer: what owners offer, what happens, what is to be done.

The machine that says what follows from what is ``core/download``. A snapshot is the state
of a stage at the beginning of a step, cut into chunks under a Merkle root; two owners give
the same one when every field here is equal.

Invariant: a snapshot that is ``sound`` can be received: its leaves are as many as its
chunks, and they give its root.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.core.merkle import merkle_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.units import Bytes, Chain, Digest, PeerId, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What an owner says it can give: the state at the beginning of step ``version``.

    ``base``, ``result``: as the difference of the two states that have these roots.
    """

    epoch: int
    version: Step
    chain: Chain
    size_bytes: Bytes
    chunk_bytes: Bytes
    leaves: tuple[Digest, ...]
    root: Digest
    base: Digest | None = None
    result: Digest | None = None

    @property
    def sound(self) -> bool:
        """Whether it fits itself."""
        return (
            self.size_bytes > 0
            and self.chunk_bytes > 0
            and len(self.leaves) == -(-self.size_bytes // self.chunk_bytes)
            and merkle_root(self.leaves) == self.root
            and (self.base is None) == (self.result is None)
        )

    def bytes_of(self, index: int) -> Bytes:
        """Size of chunk ``index``; the last one may be shorter."""
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)


# --- events ---


@dataclass(frozen=True, slots=True)
class Offered:
    """``peer`` has answered with its snapshot."""

    peer: PeerId
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Denied:
    """``peer`` has no snapshot, or no longer the one that we take (``chunk``)."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """Chunk ``index`` of ``root`` came from ``peer``: so long, with this digest."""

    peer: PeerId
    root: Digest
    index: int
    size_bytes: Bytes
    digest: Digest


@dataclass(frozen=True, slots=True)
class Gone:
    """The link to ``peer`` broke."""

    peer: PeerId
    reason: str


Event: TypeAlias = Offered | Denied | Arrived | Gone

# --- actions ---


@dataclass(frozen=True, slots=True)
class AskSnapshot:
    """Ask ``peer`` for the snapshot of ``version``, or the next it can give."""

    peer: PeerId
    version: Step


@dataclass(frozen=True, slots=True)
class AskChunk:
    """Ask ``peer`` for a chunk."""

    peer: PeerId
    root: Digest
    index: int


@dataclass(frozen=True, slots=True)
class Take:
    """This snapshot it is, as ``owners`` give it; make room for it."""

    snapshot: Snapshot
    owners: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """The chunk that has just arrived is right: put it in its place."""

    index: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """``peer`` is not used (any more). ``lied``: it broke the protocol; close its link."""

    peer: PeerId
    reason: str
    lied: bool


@dataclass(frozen=True, slots=True)
class Warn:
    """Something to be seen in the log; the download goes on."""

    reason: str


Action: TypeAlias = AskSnapshot | AskChunk | Take | Keep | Refuse | Warn


def most_given(offers: Mapping[PeerId, Snapshot]) -> Snapshot | None:
    """The snapshot that most owners give; of equals the newest, then by root."""
    counts = Counter(offers.values())
    return max(counts, key=lambda one: (counts[one], one.version, one.root), default=None)
