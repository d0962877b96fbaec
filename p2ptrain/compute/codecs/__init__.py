"""Codecs: what crosses a boundary between stages, as bytes and back.

A codec is a pure function of the tensor and of where it stands in the run
(:class:`CodecContext`), never of time, peer or history. So a replayed microbatch
encodes to the same bytes anywhere, and one process that pushes its activations through
the same codec computes what the swarm computes.

    contract   what a codec promises, where a tensor stands, and new memory for both ways
    floats     fp32 and bf16: values as they are
    quantiser  integers of 8, 4, 3 or 2 bits under a scale per token or block
    scales, noise, packing, rotation   its parts

The learned bottleneck in front of a codec is part of the model, not of the codec: a codec
sees the values that are to cross, ``r`` tokens by ``k`` channels.

Alternative refused: a self-describing blob. Shape and type are known to both ends from
the RunSpec; describing them again only gives a peer something to lie about.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from p2ptrain.compute.codecs.contract import Codec, CodecContext, decoded, encoded
from p2ptrain.compute.codecs.floats import BFloat16Codec, Float32Codec
from p2ptrain.compute.codecs.quantiser import Quantiser
from p2ptrain.run.frames import bits_at, levels_of

if TYPE_CHECKING:
    from p2ptrain.core.sizes import Direction
    from p2ptrain.run import Bits, Composition

__all__ = [
    "BFloat16Codec",
    "Codec",
    "CodecContext",
    "Float32Codec",
    "Quantiser",
    "codec_at",
    "decoded",
    "encoded",
]


def codec_at(composition: Composition, direction: Direction, step: int) -> Codec:
    """The codec for tensors that cross a boundary in ``direction`` at ``step``."""
    return _codec(composition, bits_at(levels_of(composition, direction), step))


@functools.lru_cache(maxsize=256)
def _codec(composition: Composition, bits: Bits) -> Codec:
    match bits:
        case 32:
            return Float32Codec()
        case 16:
            return BFloat16Codec()
        case _:
            return Quantiser(composition, bits)
