"""What every codec promises, and what it may know of a tensor.

Invariants, for every implementation:
    * ``encode`` gives exactly the bytes that ``run/frames`` counts, little-endian;
    * ``decode`` refuses every other size before it allocates, and what an encoder never writes
      where that would not be a finite number;
    * equal values and an equal context give equal bytes, whatever the number of threads;
    * what is not finite before ``encode`` is not finite after ``decode``: a loss or gradient
      that is spoilt must be seen by the stage that gets it.

Refused: state between calls (error feedback, running scales). A replayed microbatch would
encode otherwise than the first time, and no step could be judged by one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from p2ptrain.errors import MisbehaviourError

if TYPE_CHECKING:
    import torch
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

    def encode(self, x_rk: Tensor, context: CodecContext) -> bytes:
        """Encode float32 values, on the device where they are."""
        ...

    def decode(self, buffer: Buffer, rows: int, width: int, device: torch.device) -> Tensor:
        """Decode to float32 on ``device``; the tensor shares no memory with ``buffer``.

        Raises:
            MisbehaviourError: the buffer has another size, or holds what no encoder writes.
        """
        ...


def check_size(buffer: Buffer, size_bytes: Bytes) -> None:
    """Refuse a buffer of another size.

    Raises:
        MisbehaviourError: it has one.
    """
    given = memoryview(buffer).nbytes
    if given != size_bytes:
        raise MisbehaviourError(f"an encoded tensor of {given} bytes, not {size_bytes}")
