"""How many bytes a microbatch takes at a boundary, for every codec: arithmetic alone.

It stands below everything that sends or receives, because a RunSpec is judged by it: a
preset promises a ratio of *frames*, ids, path and headers included, and a peer must hold
those of a whole step. ``core/sizes`` says the same for a RunSpec, a boundary and a step.

    payload of 32 or 16 bits     the values
    payload of 8, 4, 3, 2 bits   header | channel means | scales | packed integers

Invariants: a payload's size is exact; ``most_frame_bytes`` is a bound that a frame reaches but for
a few bytes of small numbers (a test in tests/wire holds it against real frames).

Refused: payloads whose length depends on the values (entropy coding). Their size could no
longer be checked before allocating, and it buys 2 to 13%.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from p2ptrain.run.spec import Bits, Composition, Levels, Model, RunSpec
    from p2ptrain.units import Bytes

Direction: TypeAlias = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

BLOCK_VALUES = 64
"""Values that share a scale at full width: 3% of an int8 block, and an outlier harms few."""

QUANTISER_HEADER_BYTES = 2
"""The greatest scale of the message, against which those of the tokens are told."""

TOKEN_SCALE_BYTES = 1
"""Eighths of an octave below the greatest, so 32 octaves."""

BLOCK_SCALE_BYTES = 2
"""A bf16 each."""

MEAN_BYTES = 2
"""A bf16 for every channel."""

FORWARD_FRAME_BYTES = 140
"""Header and message of a Forward with its longest numbers, but for its path and payload."""

PATH_PEER_BYTES = 54
"""A peer id in a path: 52 characters (Ed25519) and their length."""

GRADIENT_FRAME_BYTES = 108
"""Header and message of a Gradient with its longest numbers."""

_RAW_BITS = 16  # and more: values as they are
_BYTE_BITS = 8


def nominal_tokens(spec: RunSpec) -> int:
    """Tokens with a label in one microbatch (m): what a loss is divided by."""
    return spec.batch.sequences * spec.model.context


def token_id_bytes(model: Model) -> Bytes:
    """Width of one token id on the wire."""
    if model.vocab_size <= 1 << 8:
        return 1
    return 2 if model.vocab_size <= 1 << 16 else 4


def microbatch_token_bytes(spec: RunSpec) -> Bytes:
    """Size of a microbatch's token ids; each sequence carries one more token, only a label."""
    return spec.batch.sequences * (spec.model.context + 1) * token_id_bytes(spec.model)


def levels_of(composition: Composition, direction: Direction) -> Levels:
    """The schedule of bits for tensors that go ``direction``."""
    return composition.forward if direction == "forward" else composition.backward


def bits_at(levels: Levels, step: int) -> Bits:
    """Bits per value at ``step``: those of the last level that has begun."""
    bits = levels[0][1]
    for since, level in levels[1:]:
        if step < since:
            break
        bits = level
    return bits


def encoded_bytes(composition: Composition, bits: Bits, rows: int, width: int) -> Bytes:
    """Exact payload of ``rows`` x ``width`` values (tokens x channels on the wire)."""
    values = rows * width
    if bits >= _RAW_BITS:
        return values * bits // _BYTE_BITS
    size = QUANTISER_HEADER_BYTES + (MEAN_BYTES * width if composition.mean else 0)
    if composition.scale == "token":
        return size + rows * TOKEN_SCALE_BYTES + -(-values * bits // _BYTE_BITS)
    blocks = -(-values // BLOCK_VALUES)
    return size + blocks * (BLOCK_SCALE_BYTES + BLOCK_VALUES * bits // _BYTE_BITS)


def wire_width(model: Model, composition: Composition) -> int:
    """Values per token that cross a boundary."""
    return composition.width or model.d_model


def most_encoded_bytes(spec: RunSpec, composition: Composition, direction: Direction) -> Bytes:
    """The greatest payload of any step."""
    rows, width = nominal_tokens(spec), wire_width(spec.model, composition)
    levels = levels_of(composition, direction)
    return max(encoded_bytes(composition, bits, rows, width) for _, bits in levels)


def most_frame_bytes(
    spec: RunSpec, composition: Composition, boundary: int, direction: Direction
) -> Bytes:
    """A frame's greatest length on the wire at ``boundary``, over all steps."""
    payload = most_encoded_bytes(spec, composition, direction)
    if direction == "backward":
        return GRADIENT_FRAME_BYTES + payload
    path = (boundary + 1) * PATH_PEER_BYTES
    return FORWARD_FRAME_BYTES + path + microbatch_token_bytes(spec) + payload


def bf16_bytes(spec: RunSpec) -> Bytes:
    """A microbatch's activations in bf16, at full width: what ratios are told against."""
    return 2 * nominal_tokens(spec) * spec.model.d_model
