"""Codecs: what crosses a boundary between stages, as bytes and back.

A codec is a pure function of the tensor and of where it stands in the run
(:class:`CodecContext`), never of time, peer or history. So a replayed microbatch
encodes to the same bytes anywhere, and one process that pushes its activations through
the same codec computes what the swarm computes.

Invariants:
    * ``encode`` gives exactly ``size_bytes`` bytes, little-endian;
    * ``decode`` refuses every other size before it allocates, and accepts any bytes of
      the right size (what they mean is arithmetic, and a loss that is not finite has weight 0);
    * bf16 rounds to nearest, ties to even.

Alternative refused: a self-describing blob. Shape and type are known to both ends from
the RunSpec; describing them again only gives a peer something to lie about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from p2ptrain.core.sizes import Direction, codec_bytes
from p2ptrain.errors import MisbehaviourError

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer
    from p2ptrain.run import CodecName
    from p2ptrain.units import Bytes, Slot, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecContext:
    """Where a tensor stands in a run; stochastic codecs draw from nothing else.

    ``boundary`` b lies between stage b and stage b + 1.
    """

    seed: int
    step: Step
    slot: Slot
    boundary: int
    direction: Direction


class Codec(Protocol):
    """Activations and gradients <-> bytes. Legend: r rows (tokens), w width."""

    def size_bytes(self, rows: int, width: int) -> Bytes:
        """The only size that an encoding of this shape has."""
        ...

    def encode(self, x_rw: Tensor, context: CodecContext) -> bytes:
        """Encode float32 values from any device."""
        ...

    def decode(self, buffer: Buffer, rows: int, width: int) -> Tensor:
        """Decode to a float32 tensor on the CPU that shares no memory with ``buffer``.

        Raises:
            MisbehaviourError: the buffer has another size.
        """
        ...


class Float32Codec:
    """Values as they are: 4 bytes each, nothing lost."""

    def size_bytes(self, rows: int, width: int) -> Bytes:
        """Exact size of an encoding."""
        return codec_bytes("fp32", rows, width)

    def encode(self, x_rw: Tensor, context: CodecContext) -> bytes:  # noqa: ARG002
        """Encode; the context is not needed, for nothing is random here."""
        return x_rw.detach().cpu().contiguous().numpy().tobytes()

    def decode(self, buffer: Buffer, rows: int, width: int) -> Tensor:
        """Decode, or refuse another size."""
        _check_size(buffer, self.size_bytes(rows, width))
        x_rw = torch.empty(rows, width)
        np.copyto(x_rw.numpy(), np.frombuffer(buffer, dtype="<f4").reshape(rows, width))
        return x_rw


class BFloat16Codec:
    """The upper half of a float32: 2 bytes each, 8 significant bits."""

    def size_bytes(self, rows: int, width: int) -> Bytes:
        """Exact size of an encoding."""
        return codec_bytes("bf16", rows, width)

    def encode(self, x_rw: Tensor, context: CodecContext) -> bytes:  # noqa: ARG002
        """Encode; the context is not needed, for nothing is random here."""
        halves = x_rw.detach().to(torch.bfloat16).contiguous().view(torch.int16)
        return halves.cpu().numpy().tobytes()

    def decode(self, buffer: Buffer, rows: int, width: int) -> Tensor:
        """Decode, or refuse another size."""
        _check_size(buffer, self.size_bytes(rows, width))
        bits_rw = torch.empty(rows, width, dtype=torch.int32)
        halves = np.frombuffer(buffer, dtype="<u2").reshape(rows, width)
        np.left_shift(halves, 16, out=bits_rw.numpy().view(np.uint32), dtype=np.uint32)
        return bits_rw.view(torch.float32)


_CODECS: dict[CodecName, Codec] = {"fp32": Float32Codec(), "bf16": BFloat16Codec()}


def codec_named(name: CodecName) -> Codec:
    """The codec that a RunSpec names; its names are checked when the RunSpec is read."""
    return _CODECS[name]


def _check_size(buffer: Buffer, size_bytes: Bytes) -> None:
    given = memoryview(buffer).nbytes
    if given != size_bytes:
        raise MisbehaviourError(f"an encoded tensor of {given} bytes, not {size_bytes}")
