"""A Merkle root over chunks: one digest names a snapshot, a leaf convicts a bad chunk.

    root = H(count, top)      top: the only node left when neighbours are hashed in pairs,
                              level by level; an odd one out rises as it is
    leaf = H(chunk)

A puller asks for the list of leaves, checks it against the root that others vouch for, and
then checks every chunk on arrival: a wrong byte costs one chunk and names its sender.

Invariants: leaf, node and root are hashed with different personalisations, so none can be
passed off as another (RFC 6962 does it by a prefix byte); the count is in the root, so
lists of different lengths have different roots.

Chunks are 4 MiB; a small state is cut finer, so that several owners can give a part each.
Their size follows from the state's, or equal states would have different roots.

Refused: a digest over the whole. It can only be checked when everything has arrived, and
then does not say which of several donors lied.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from p2ptrain.units import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2ptrain.units import Bytes

    Buffer = bytes | bytearray | memoryview

CHUNK_MOST_BYTES: Final = 4 << 20
"""One lost costs little; the leaves of 1 GB fit one small message."""

CHUNK_LEAST_BYTES: Final = 64 << 10
"""Below, asking takes longer than sending."""

CHUNKS_WANTED: Final = 8
"""Of a small state: enough to share out among a few owners."""


def chunk_size(size_bytes: Bytes) -> Bytes:
    """Into pieces of what size a state of ``size_bytes`` is cut: a power of two."""
    share = max(1, size_bytes // CHUNKS_WANTED)
    return min(CHUNK_MOST_BYTES, max(CHUNK_LEAST_BYTES, 1 << (share.bit_length() - 1)))


def leaf_digest(chunk: Buffer) -> Digest:
    """Digest of one chunk."""
    return _hash(b"p2ptrain leaf", chunk)


def merkle_root(leaves: Sequence[Digest]) -> Digest:
    """The root over ``leaves`` in order; of no leaves, a root like any other."""
    level = list(leaves)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        odd = level[-1:] if len(level) % 2 else []
        level = [_hash(b"p2ptrain node", left + right) for left, right in pairs] + odd
    top = level[0] if level else b""
    return _hash(b"p2ptrain root", len(leaves).to_bytes(8, "little") + top)


def chunks(blob: memoryview, chunk_bytes: int) -> Iterator[memoryview]:
    """Consecutive pieces of ``blob``, the last one possibly shorter; none of an empty one."""
    return (blob[start : start + chunk_bytes] for start in range(0, len(blob), chunk_bytes))


def _hash(person: bytes, data: Buffer) -> Digest:
    return Digest(blake2b(data, digest_size=DIGEST_BYTES, person=person).digest())
