"""Values as they are: fp32, and bf16 rounded to nearest, ties to even.

Any bytes of the right size are numbers here, NaN and infinities among them: what they mean
is arithmetic, and a loss that is not finite has weight 0.

Refused: to refuse NaN. The sender may have computed it in good faith, and then the stage
above must see it, for that is how a spoilt microbatch comes to weigh nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from p2ptrain.compute.codecs.contract import CodecContext, check_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.ports import Buffer
    from p2ptrain.units import Bytes


class Float32Codec:
    """4 bytes a value, nothing lost."""

    def encoded_bytes(self, rows: int, width: int) -> Bytes:
        """Exact size."""
        return rows * width * 4

    def encode_into(self, x_rk: Tensor, context: CodecContext, out: Tensor) -> None:  # noqa: ARG002
        """Encode; the context is not needed, for nothing is random here."""
        out.view(torch.float32).view(x_rk.shape).copy_(x_rk.detach())

    def decode_into(self, buffer: Buffer, out_rk: Tensor) -> None:
        """Decode, or refuse another size."""
        check_size(buffer, self.encoded_bytes(*out_rk.shape))
        # By numpy: torch warns of a buffer that cannot be written to.
        values_rk = np.frombuffer(buffer, dtype="<f4").reshape(out_rk.shape)
        with _on_cpu(out_rk) as here_rk:
            np.copyto(here_rk.numpy(), values_rk)


class BFloat16Codec:
    """The upper half of a float32: 2 bytes a value, 8 significant bits."""

    def encoded_bytes(self, rows: int, width: int) -> Bytes:
        """Exact size."""
        return rows * width * 2

    def encode_into(self, x_rk: Tensor, context: CodecContext, out: Tensor) -> None:  # noqa: ARG002
        """Encode; the context is not needed, for nothing is random here."""
        halves_rk = out.view(torch.bfloat16).view(x_rk.shape)
        # Rounded where they are: half as many bytes then leave a GPU.
        halves_rk.copy_(x_rk.detach() if x_rk.is_cpu else x_rk.detach().to(torch.bfloat16))

    def decode_into(self, buffer: Buffer, out_rk: Tensor) -> None:
        """Decode, or refuse another size."""
        check_size(buffer, self.encoded_bytes(*out_rk.shape))
        halves_rk = np.frombuffer(buffer, dtype="<u2").reshape(out_rk.shape)
        with _on_cpu(out_rk) as here_rk:
            bits_rk = here_rk.numpy().view(np.uint32)
            np.left_shift(halves_rk, 16, out=bits_rk, dtype=np.uint32)


@contextmanager
def _on_cpu(out_rk: Tensor) -> Iterator[Tensor]:
    """``out_rk`` itself, or what is copied to it in the end."""
    here_rk = out_rk if out_rk.is_cpu else torch.empty(out_rk.shape)
    yield here_rk
    if here_rk is not out_rk:
        out_rk.copy_(here_rk)
