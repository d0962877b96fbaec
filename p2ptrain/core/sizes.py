"""How many bytes things take on the wire: exact, and without torch.

A receiver computes the only admissible size of every payload from the RunSpec and
refuses anything else before it allocates (DESIGN 3). Those sizes must therefore be
known where no tensor library is: in ``wire``, in the engine, in a bootstrap node.
The codecs of ``compute`` take their sizes from here, so the two cannot drift apart.

Alternative refused: a size field in the message. It would let a peer choose how
much memory another peer allocates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.run.codecs import composition_of
from p2ptrain.run.frames import (
    Direction,
    bits_at,
    encoded_bytes,
    levels_of,
    microbatch_token_bytes,
    most_encoded_bytes,
    nominal_tokens,
    token_id_bytes,
    wire_width,
)

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes

__all__ = [
    "Direction",
    "boundary_bytes",
    "boundary_width",
    "integer_bytes",
    "microbatch_token_bytes",
    "most_boundary_bytes",
    "nominal_tokens",
    "token_id_bytes",
]

_INTEGER_BYTES: dict[str, int] = {"int64": 8, "int32": 4}


def boundary_width(spec: RunSpec, boundary: int) -> int:
    """Values per token that cross ``boundary``, the same in both directions."""
    return wire_width(spec.model, composition_of(spec, boundary))


def boundary_bytes(spec: RunSpec, boundary: int, direction: Direction, step: int) -> Bytes:
    """Exact size of one microbatch's activations (or gradient) at ``boundary`` in ``step``."""
    composition = composition_of(spec, boundary)
    bits = bits_at(levels_of(composition, direction), step)
    width = wire_width(spec.model, composition)
    return encoded_bytes(composition, bits, nominal_tokens(spec), width)


def most_boundary_bytes(spec: RunSpec, boundary: int, direction: Direction) -> Bytes:
    """The greatest size of any step: what memory is set aside for."""
    return most_encoded_bytes(spec, composition_of(spec, boundary), direction)


def integer_bytes(spec: RunSpec) -> Bytes:
    """Size of one element of a gradient sum."""
    return _INTEGER_BYTES[spec.accumulator.dtype]
