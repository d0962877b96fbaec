"""Values as they are: fp32, and bf16 rounded to nearest, ties to even.

Any bytes of the right size are numbers here, NaN and infinities among them: what they mean
is arithmetic, and a loss that is not finite has weight 0.

Refused: to refuse NaN. The sender may have computed it in good faith, and then the stage
above must see it, for that is how a spoilt microbatch comes to weigh nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from p2ptrain.compute.codecs.contract import CodecContext, check_size

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer


class Float32Codec:
    """4 bytes a value, nothing lost."""

    def encode(self, x_rk: Tensor, context: CodecContext) -> bytes:  # noqa: ARG002
        """Encode; the context is not needed, for nothing is random here."""
        return x_rk.detach().cpu().contiguous().numpy().tobytes()

    def decode(self, buffer: Buffer, rows: int, width: int, device: torch.device) -> Tensor:
        """Decode, or refuse another size."""
        check_size(buffer, rows * width * 4)
        x_rk = torch.empty(rows, width)
        np.copyto(x_rk.numpy(), np.frombuffer(buffer, dtype="<f4").reshape(rows, width))
        return x_rk.to(device)


class BFloat16Codec:
    """The upper half of a float32: 2 bytes a value, 8 significant bits."""

    def encode(self, x_rk: Tensor, context: CodecContext) -> bytes:  # noqa: ARG002
        """Encode; the context is not needed, for nothing is random here."""
        halves = x_rk.detach().to(torch.bfloat16).contiguous().view(torch.int16)
        return halves.cpu().numpy().tobytes()

    def decode(self, buffer: Buffer, rows: int, width: int, device: torch.device) -> Tensor:
        """Decode, or refuse another size."""
        check_size(buffer, rows * width * 2)
        bits_rk = torch.empty(rows, width, dtype=torch.int32)
        halves = np.frombuffer(buffer, dtype="<u2").reshape(rows, width)
        np.left_shift(halves, 16, out=bits_rk.numpy().view(np.uint32), dtype=np.uint32)
        return bits_rk.view(torch.float32).to(device)
