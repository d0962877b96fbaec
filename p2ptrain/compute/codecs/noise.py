"""Rounding noise from a counter, equal on every device and for every number of threads.

Stochastic rounding adds noise that is uniform over one step of the grid and rounds to nearest;
on average that returns the value, whatever the grid. The noise of an element is a hash of
(run seed, step, slot, boundary, direction, row, column): no generator is advanced, so a
slab of rows can be made alone, and a replay makes the same.

    key --BLAKE2b--> two words;  a_r = mix(row, word 1), b_c = mix(column, word 2)
    h_rc = one more round of multiply and xor-shift over a_r + b_c      (32 bits, wrapping)

Everything is 32-bit integer arithmetic, which wraps alike on CPUs and GPUs; shifts are logical
(the sign's copies are masked away), or two words in a row would share a hash. Rows and columns are
mixed thoroughly (they are few), their sum by one round (they are many): measured, no
correlation of neighbours stands out of a million pairs.

Refused: torch's generators. Their streams differ between devices and between releases.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from p2ptrain.compute.codecs.contract import CodecContext

HALF_STEP = 2.0**-32
"""Times a hash: a number in -1/2..1/2, half a step of the grid to either side."""

_ONE, _TWO = 0x7FEB352D, -0x7B935975  # the multipliers of lowbias32 (Wellons), the second as i32
_DIRECTIONS = {"forward": 0, "backward": 1}


class Noise:
    """The noise of one message, by row and column."""

    def __init__(self, context: CodecContext, columns: int, device: torch.device) -> None:
        place = struct.pack(
            "<QqqqB",
            context.seed,
            context.step,
            context.slot,
            context.boundary,
            _DIRECTIONS[context.direction],
        )
        digest = hashlib.blake2b(place, digest_size=8, person=b"rounding").digest()
        self._row_word, column_word = struct.unpack("<ii", digest)
        self._device = device
        self._columns_c = _mixed(
            torch.arange(columns, dtype=torch.int32, device=device), column_word
        )

    def rows(self, start: int, stop: int, out: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Hashes (r, c) of rows ``start`` to ``stop``, uniform over all of int32.

        ``out``: two buffers to make them in, of that shape; the first is what is returned.
        """
        rows_r = torch.arange(start, stop, dtype=torch.int32, device=self._device)
        rows_r1 = _mixed(rows_r, self._row_word)[:, None]
        if out is None:
            shape = stop - start, len(self._columns_c)
            out = (rows_r.new_empty(shape), rows_r.new_empty(shape))
        h_rc, moved_rc = out
        torch.add(rows_r1, self._columns_c, out=h_rc)
        h_rc *= _ONE
        torch.bitwise_right_shift(h_rc, 15, out=moved_rc)
        moved_rc &= _low(15)
        h_rc ^= moved_rc
        h_rc *= _TWO
        return h_rc


def _mixed(x: Tensor, word: int) -> Tensor:
    """Two rounds over ``x`` (int32), which is left alone."""
    x = x ^ word
    for multiplier in (_ONE, _TWO):
        x ^= (x >> 16) & _low(16)
        x *= multiplier
        x ^= (x >> 15) & _low(15)
    return x


def _low(shift: int) -> int:
    """What a logical shift of 32 bits by ``shift`` leaves."""
    return (1 << (32 - shift)) - 1
