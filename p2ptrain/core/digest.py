"""Names for weights: a digest per tensor, and one digest for the whole model.

The whole digest is taken over the digests of the tensors in name order. So it does
not depend on how the layers are cut into stages, and peers that hold one stage each
can give their part without moving a byte of weights. Optimizer state stands apart.

Alternative refused: hashing one long concatenation. It needs every byte in one place.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.units import DIGEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Buffer: TypeAlias = bytes | bytearray | memoryview


def tensor_digest(name: str, dtype: str, shape: Sequence[int], data: Buffer) -> str:
    """Digest (hex) of one tensor; ``data``: its elements in row order, little-endian.

    ``dtype`` is the name that safetensors uses (``F32``).
    """
    state = blake2b(digest_size=DIGEST_BYTES, person=b"p2ptrain tensor")
    header = f"{name}\0{dtype}\0{','.join(str(size) for size in shape)}\0"
    state.update(header.encode())
    state.update(data)
    return state.hexdigest()


def combine_digests(tensors: Mapping[str, str]) -> str:
    """Digest (hex) of a whole model from its tensors' digests, in name order."""
    state = blake2b(digest_size=DIGEST_BYTES, person=b"p2ptrain weights")
    for name in sorted(tensors):
        state.update(f"{name}\0{tensors[name]}\0".encode())
    return state.hexdigest()


def weights_digest(tensors: Mapping[str, tuple[str, Sequence[int], Buffer]]) -> str:
    """Digest (hex) of a whole model, given (dtype, shape, bytes) by global name."""
    return combine_digests({name: tensor_digest(name, *value) for name, value in tensors.items()})
