"""Values as integers of 8, 4, 3 or 2 bits, by a scale per token or per block of 64.

    u16 highest scale | bf16 mean of every channel | scales | integers, packed

    x -> minus the channel's mean -> rotated -> divided by its scale -> rounded -> packed

The mean of a latent's channel holds most of its energy and tells nothing of a token, so it goes
once a message. A scale follows the greatest value under it, never a multiple of
sigma: clipped tokens feel no force that would bring them back. Activations round to nearest;
gradients round stochastically, so that their sum is right on average.

Grids: 8 and 4 bits hold zero (-7..7 of 4 bits), 3 and 2 bits do not (+-1/2, +-3/2 of 2 bits): there
a level lost is worse than a zero lost.

Invariants:
    * the bytes do not depend on the number of threads: the only sum over tokens is of
      integers, all else is by element, or a maximum;
    * values that are not finite, or beyond 2^100 (2^109 if no mean goes), spoil their message: it
      decodes to NaN everywhere, so the loss or gradient of it has no weight (``scales.SPOILT``);
    * any other bytes are refused or decode to finite values.

Refused: a clip at so many sigma (measured: the encoder ran away), and error feedback (state).

Legend: r rows (tokens), k channels, n scales, g values under one scale, s a slab of scales.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from p2ptrain.compute.codecs import scales
from p2ptrain.compute.codecs.contract import CodecContext, check_size
from p2ptrain.compute.codecs.noise import HALF_STEP, Noise
from p2ptrain.compute.codecs.packing import GROUP, pack, packed_bytes, unpack
from p2ptrain.compute.codecs.rotation import rotated
from p2ptrain.errors import MisbehaviourError
from p2ptrain.run.frames import (
    BLOCK_SCALE_BYTES,
    BLOCK_VALUES,
    MEAN_BYTES,
    QUANTISER_HEADER_BYTES,
    TOKEN_SCALE_BYTES,
    encoded_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.ports import Buffer
    from p2ptrain.run import Bits, Composition
    from p2ptrain.units import Bytes

SLAB_VALUES = 1 << 17
"""Values that a CPU takes through all passes at a time: 512 KiB of floats, which stay in a cache of
the second level; measured, half of it and twice of it are slower. A GPU takes all at once."""

COARSE_BITS = 3
"""So many bits and fewer make a grid without a zero."""

MEAN_DIGITS = 22
"""Binary digits of a value in the sum for the mean: 2^31 tokens then sum exactly in a double."""


class _Parts(NamedTuple):
    """The parts of a message, as views of its bytes."""

    means: Tensor
    scales: Tensor
    packed: Tensor


class Quantiser:
    """One composition at one number of bits."""

    def __init__(self, composition: Composition, bits: Bits) -> None:
        self._composition = composition
        self._bits = bits
        self._by_token = composition.scale == "token"
        coarse = bits <= COARSE_BITS
        self._least_code = 0 if coarse else 1
        self._most_code = (1 << bits) - 1
        self._middle = (self._least_code + self._most_code) / 2
        self._reach = self._most_code - self._middle

    def encoded_bytes(self, rows: int, width: int) -> Bytes:
        """Exact size."""
        return encoded_bytes(self._composition, self._bits, rows, width)

    def encode_into(self, x_rk: Tensor, context: CodecContext, out: Tensor) -> None:
        """Encode; what is not finite spoils the message."""
        x_rk = x_rk.detach().float().contiguous()
        message = out if x_rk.is_cpu else torch.empty_like(out, device=x_rk.device)
        highest = self._encode(x_rk, context, self._parts(message, *x_rk.shape))
        if highest == scales.SPOILT:
            message.zero_()
        message[0], message[1] = highest & 0xFF, highest >> 8
        if message is not out:
            out.copy_(message)

    def decode_into(self, buffer: Buffer, out_rk: Tensor) -> None:
        """Decode, or refuse another size and what no encoder writes."""
        rows, width = out_rk.shape
        check_size(buffer, self.encoded_bytes(rows, width))
        message = _bytes(buffer)
        highest = int.from_bytes(bytes(message[:QUANTISER_HEADER_BYTES].tolist()), "little")
        if highest == scales.SPOILT:
            if bool(message[QUANTISER_HEADER_BYTES:].any()):
                raise MisbehaviourError("a spoilt message with something in it")
            out_rk.fill_(math.nan)
            return
        parts = self._parts(message.to(out_rk.device), rows, width)
        if self._by_token:
            scale_n = scales.token_scales(highest, parts.scales)
        elif highest:
            raise MisbehaviourError(f"a message of blocks with the header {highest}")
        else:
            scale_n = scales.checked_block_scales(_halves(parts.scales))
        self._dequantise(parts.packed, scale_n, out_rk)
        if self._composition.mean:
            out_rk += scales.checked_means(_halves(parts.means))

    # --- inside -------------------------------------------------------------------------

    def _encode(self, x_rk: Tensor, context: CodecContext, parts: _Parts) -> int:
        """Fill the parts; return the header."""
        if self._composition.mean:
            top = float(x_rk.abs().amax())
            if not top <= scales.LARGEST:
                return scales.SPOILT
            mean_k = channel_means(x_rk, top)
            parts.means.copy_(mean_k.view(torch.uint8))
            x_rk = x_rk - mean_k.float()
        x_ng = self._under_scales(x_rk)
        if self._composition.hadamard:
            x_ng = rotated(x_ng)
        peak_n = peaks(x_ng)
        if not float(peak_n.amax()) <= scales.LARGEST_ROTATED:  # a NaN is no less either
            return scales.SPOILT
        header = 0
        if self._by_token:
            header, code_n = scales.token_codes(peak_n)
            parts.scales.copy_(code_n)
            scale_n = scales.token_scales(header, code_n)
        else:
            half_n = scales.block_scales(peak_n)
            parts.scales.copy_(half_n.view(torch.uint8))
            scale_n = half_n.float()
        self._quantise(x_ng, scale_n, context, parts.packed)
        return header

    def _quantise(
        self, x_ng: Tensor, scale_n: Tensor, context: CodecContext, packed: Tensor
    ) -> None:
        """Divide by the scales, round, and pack, slab by slab."""
        steps_n = torch.where(scale_n > 0, self._reach / scale_n, 0.0)[:, None]
        group, work = x_ng.shape[1], _Workspace(x_ng)
        backward = context.direction == "backward"
        noise = Noise(context, group, x_ng.device) if backward else None
        for slab in _slabs(x_ng):
            y_sg = torch.mul(x_ng[slab], steps_n[slab], out=work.values(slab))
            if noise is not None:
                h_sg = noise.rows(slab.start, slab.stop, work.hashes(slab))
                y_sg.add_(h_sg, alpha=HALF_STEP)
            y_sg.add_(self._middle).round_().clamp_(self._least_code, self._most_code)
            begin, end = slab.start * group * self._bits, slab.stop * group * self._bits
            out = packed[begin // 8 : -(-end // 8)]
            code_sg = y_sg.to(torch.int16).to(torch.uint8)  # four times as fast as at once
            pack(code_sg.view(-1), self._bits, out)

    def _dequantise(self, packed: Tensor, scale_n: Tensor, out_rk: Tensor) -> None:
        # Times the inverse: a GPU divides by a number so, and a CPU must do as it does.
        steps_n = (scale_n * (1 / self._reach))[:, None]
        x_ng = self._under_scales(out_rk)
        group = x_ng.shape[1]
        for slab in _slabs(x_ng):
            begin, end = slab.start * group * self._bits, slab.stop * group * self._bits
            codes = (slab.stop - slab.start) * group
            code_s = unpack(packed[begin // 8 : -(-end // 8)], self._bits, codes)
            torch.sub(code_s.view(-1, group), self._middle, out=x_ng[slab])
            x_ng[slab] *= steps_n[slab]
        if self._composition.hadamard:
            x_ng = rotated(x_ng)
        if x_ng.data_ptr() != out_rk.data_ptr():
            out_rk.view(-1).copy_(x_ng.view(-1)[: out_rk.numel()])

    def _under_scales(self, x_rk: Tensor) -> Tensor:
        """A row for every scale: a view, but for a last block that is filled with zeros."""
        if self._by_token:
            return x_rk
        values = x_rk.view(-1)
        missing = -values.numel() % BLOCK_VALUES
        if missing:
            values = functional.pad(values, (0, missing))
        return values.view(-1, BLOCK_VALUES)

    def _parts(self, message: Tensor, rows: int, width: int) -> _Parts:
        mean_bytes = MEAN_BYTES * width if self._composition.mean else 0
        blocks = -(-rows * width // BLOCK_VALUES)
        codes = rows * width if self._by_token else blocks * BLOCK_VALUES
        scale_bytes = rows * TOKEN_SCALE_BYTES if self._by_token else blocks * BLOCK_SCALE_BYTES
        _, means, scales_, packed = torch.split(
            message,
            [QUANTISER_HEADER_BYTES, mean_bytes, scale_bytes, packed_bytes(codes, self._bits)],
        )
        return _Parts(means=means, scales=scales_, packed=packed)


def _bytes(buffer: Buffer) -> Tensor:
    """As flat uint8 on the CPU; copied where it is read-only, for torch warns of such memory."""
    view = memoryview(buffer).cast("B")
    return torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)


def _halves(part: Tensor) -> Tensor:
    """Bytes as bf16; copied, for a payload may begin at an odd address."""
    return part.clone().view(torch.bfloat16)


def channel_means(x_rk: Tensor, top: float) -> Tensor:
    """The mean of every channel in bf16; ``top`` bounds the values, and is finite.

    The values are rounded to integers of MEAN_DIGITS digits, whose sum is exact in any order.
    """
    exponent = max(math.frexp(top)[1], -100)
    integers_rk = (x_rk * 2.0 ** (MEAN_DIGITS - exponent)).round_()
    total_k = integers_rk.sum(0, dtype=torch.int64).cpu().numpy()  # not all devices know doubles
    mean_k = total_k * (2.0 ** (exponent - MEAN_DIGITS) / len(x_rk))
    return torch.from_numpy(mean_k.astype(np.float32)).to(torch.bfloat16).to(x_rk.device)


def peaks(x_ng: Tensor) -> Tensor:
    """The greatest magnitude in every row; NaN where there is one."""
    work = _Workspace(x_ng)
    peak_n = x_ng.new_empty(len(x_ng))
    for slab in _slabs(x_ng):
        torch.amax(torch.abs(x_ng[slab], out=work.values(slab)), 1, out=peak_n[slab])
    return peak_n


class _Workspace:
    """Buffers for one slab, used again for the next: the cache keeps them."""

    def __init__(self, x_ng: Tensor) -> None:
        shape = min(len(x_ng), _slab_rows(x_ng)), x_ng.shape[1]
        self._values = x_ng.new_empty(shape)
        self._hash = x_ng.new_empty(shape, dtype=torch.int32)
        self._moved = x_ng.new_empty(shape, dtype=torch.int32)

    def values(self, slab: slice) -> Tensor:
        """Room for the floats of ``slab``."""
        return self._values[: slab.stop - slab.start]

    def hashes(self, slab: slice) -> tuple[Tensor, Tensor]:
        """Room for the noise of ``slab``."""
        size = slab.stop - slab.start
        return self._hash[:size], self._moved[:size]


def _slab_rows(x_ng: Tensor) -> int:
    """Rows of a slab, so many that each begins on a whole byte, whatever the bits."""
    if x_ng.device.type != "cpu":
        return max(len(x_ng), 1)
    return max(SLAB_VALUES // x_ng.shape[1] // GROUP, 1) * GROUP


def _slabs(x_ng: Tensor) -> Iterator[slice]:
    count, each = len(x_ng), _slab_rows(x_ng)
    return (slice(start, min(start + each, count)) for start in range(0, count, each))
