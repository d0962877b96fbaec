"""What every codec promises, and what it may know of a tensor.

A codec writes where it is told: into a buffer of the exact size, and into a tensor that is
there. So a frame is written once, where its custodian keeps it, and a seat decodes into one
tensor again and again.

Invariants, for every implementation:
    * ``encode_into`` writes exactly the bytes that ``run/frames`` counts, little-endian, and
      every one of them: what the buffer held before is nowhere in them;
    * ``decode_into`` refuses every other size before it writes, and what an encoder never writes
      where that would not be a finite number; what it refused may have left anything in ``out``;
    * equal values and an equal context give equal bytes, whatever the number of threads;
    * what is not finite before encoding is not finite after decoding: a loss or gradient
      that is spoilt must be seen by the stage that gets it.

Refused: state between calls (error feedback, running scales). A replayed microbatch would
encode otherwise than the first time, and no step could be judged by one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from p2ptrain.errors import MisbehaviourError

if TYPE_CHECKING:
    from torch import Tensor

    from p2ptrain.core.sizes import Direction
    from p2ptrain.ports import Buffer
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
    """Activations and gradients <-> bytes. Legend: r rows (tokens), k channels."""

    def encoded_bytes(self, rows: int, width: int) -> Bytes:
        """Exact size of so many encoded values."""
        ...

    def encode_into(self, x_rk: Tensor, context: CodecContext, out: Tensor) -> None:
        """Encode float32 values, on the device where they are.

        ``out``: flat uint8 on the CPU, of the exact size, the first of its storage.
        """
        ...

    def decode_into(self, buffer: Buffer, out_rk: Tensor) -> None:
        """Decode to float32 on the device of ``out_rk``, which shares no memory with ``buffer``.

        Raises:
            MisbehaviourError: the buffer has another size, or holds what no encoder writes.
        """
        ...


def encoded(codec: Codec, x_rk: Tensor, context: CodecContext) -> memoryview:
    """Encode into a new buffer, which nobody can change."""
    frame = np.empty(codec.encoded_bytes(*x_rk.shape), dtype=np.uint8)
    codec.encode_into(x_rk, context, torch.from_numpy(frame))
    return frame.data.toreadonly()


def decoded(codec: Codec, buffer: Buffer, rows: int, width: int, device: torch.device) -> Tensor:
    """Decode into a new tensor (r, k).

    Raises:
        MisbehaviourError: see ``Codec.decode_into``; of another size nothing is allocated.
    """
    check_size(buffer, codec.encoded_bytes(rows, width))
    out_rk = torch.empty(rows, width, device=device)
    codec.decode_into(buffer, out_rk)
    return out_rk


def check_size(buffer: Buffer, size_bytes: Bytes) -> None:
    """Refuse a buffer of another size.

    Raises:
        MisbehaviourError: it has one.
    """
    given = memoryview(buffer).nbytes
    if given != size_bytes:
        raise MisbehaviourError(f"an encoded tensor of {given} bytes, not {size_bytes}")
