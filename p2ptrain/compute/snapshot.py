"""A stage's state as one blob: safetensors bytes, equal on all replicas.

The blob holds weights, optimizer state, the step and the sum's exponents, all as tensors:
safetensors sorts tensors by name, while its free-form metadata has no fixed order. A
blob comes from a peer or a disk, so it is checked whole against what this stage must hold
before a single value changes.

Alternative refused: ``torch.save``. It is pickle, which runs what it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from p2ptrain.errors import MisbehaviourError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.ports import Buffer

SAFETENSORS_FLOAT32 = "F32"
"""How weights' type is named in their digests."""


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """All ``tensors`` as one blob; the same tensors give the same bytes."""
    # safetensors wants contiguous tensors of the CPU that share no storage.
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(flat)


def unpack(blob: Buffer, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read a blob that must hold exactly the names, shapes and types of ``expected``.

    Raises:
        MisbehaviourError: it is no such blob; the reason names the first difference.
    """
    try:
        tensors = safetensors.torch.load(bytes(blob))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise MisbehaviourError(f"a snapshot that cannot be read: {error}") from error
    for name in sorted(tensors.keys() ^ expected.keys()):
        verb = "lacks" if name in expected else "has a foreign"
        raise MisbehaviourError(f"a snapshot that {verb} tensor {name!r}")
    for name, like in expected.items():
        found = tensors[name]
        if found.shape != like.shape or found.dtype != like.dtype:
            raise MisbehaviourError(
                f"a snapshot whose {name!r} is {found.dtype} {tuple(found.shape)}, "
                f"not {like.dtype} {tuple(like.shape)}"
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise MisbehaviourError(f"a snapshot whose {name!r} is not finite")
    return tensors


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's elements in row order, little-endian."""
    return tensor.detach().cpu().contiguous().numpy().tobytes()
