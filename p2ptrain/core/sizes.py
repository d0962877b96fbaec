"""How many bytes things take on the wire: exact, and without torch.

A receiver computes the only admissible size of every payload from the RunSpec and
refuses anything else before it allocates (DESIGN 3). Those sizes must therefore be
known where no tensor library is: in ``wire``, in the engine, in a bootstrap node.
The codecs of ``compute`` take their sizes from here, so the two cannot drift apart.

Alternative refused: a size field in the message. It would let a peer choose how
much memory another peer allocates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from p2ptrain.errors import RunSpecError

if TYPE_CHECKING:
    from p2ptrain.run import Codec, CodecName, Model, RunSpec
    from p2ptrain.units import Bytes

Direction: TypeAlias = Literal["forward", "backward"]

_VALUE_BYTES: dict[str, int] = {"fp32": 4, "bf16": 2}
_INTEGER_BYTES: dict[str, int] = {"int64": 8, "int32": 4}


def codec_bytes(name: CodecName, rows: int, width: int) -> Bytes:
    """Exact size of ``rows`` x ``width`` values encoded by the codec ``name``.

    Raises:
        RunSpecError: there is no such codec.
    """
    value_bytes = _VALUE_BYTES.get(name)
    if value_bytes is None:
        known = ", ".join(sorted(_VALUE_BYTES))
        raise RunSpecError(f"unknown codec {name!r}; give one of: {known}")
    return rows * width * value_bytes


def boundary_codec(codec: Codec, boundary: int) -> CodecName:
    """The codec between stage ``boundary`` and the next, the same in both directions."""
    return codec.boundaries[boundary] if codec.boundaries else codec.name


def boundary_bytes(spec: RunSpec, boundary: int) -> Bytes:
    """Exact size of one microbatch's activations (or gradient) at ``boundary``."""
    name = boundary_codec(spec.codec, boundary)
    return codec_bytes(name, nominal_tokens(spec), spec.model.d_model)


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


def integer_bytes(spec: RunSpec) -> Bytes:
    """Size of one element of a gradient sum."""
    return _INTEGER_BYTES[spec.accumulator.dtype]
