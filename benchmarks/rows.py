"""What the rows of the loss table train: sizes, and what stands at the boundaries.

Rows of a size and seed have equal ids, first weights and optimizer. ``none`` trains in one
piece: without a codec the cut changes no bit, and fp32 activations would only be carried
through memory and back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from p2ptrain.run import (
    Arithmetic,
    Batch,
    Codec,
    Composition,
    Cut,
    Data,
    Evaluation,
    Limits,
    Model,
    Optimizer,
    RunSpec,
    validate,
)
from p2ptrain.run.codecs import BUILT_IN, composition_of
from p2ptrain.run.frames import most_frame_bytes, nominal_tokens

LAYERS, STAGES = 8, 4
CUT = Cut(stages=STAGES, layers=(LAYERS // STAGES,) * STAGES)
CONTEXT, SEQUENCES = 256, 8
"""Microbatches of 2,048 tokens: headers and means then take a tenth of a byte a token."""

LONG_SEQUENCES = 256
"""65,536 tokens: what fills a data-centre GPU, and leaves some 1,500 steps."""

HELD_OUT_TOKENS = 49_152
"""The same for every row and seed of a size; whole microbatches, so ``long`` has more."""

RETAINED_BYTES = 1 << 33
"""Nobody sends these frames; a run is judged as if somebody did, with fp32 of ``long`` too."""

TOKENS = 1_638_400
LONG_TOKENS = 100_000_000

NAMES = "none,codec,cut,anchored,wide,bf16,bf16 latents,int8 latents"
"""In this order for every seed: what is to be shown comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model's width and the latents that are compared at it.

    ``d_ff``: 0 for twice ``d_model``. ``source``: of the corpus, see :class:`Data`.
    """

    d_model: int
    width: int
    bits: int
    tokens: int = TOKENS
    heads: int = 4
    d_ff: int = 0
    sequences: int = SEQUENCES
    source: Literal["stdlib", "text"] = "stdlib"


SIZES = {
    "28x": Size(d_model=128, width=13, bits=4),
    "127x-narrow": Size(d_model=256, width=4, bits=3),
    "127x": Size(d_model=512, width=11, bits=4, heads=8),
    "long": Size(
        d_model=1024,
        width=27,
        bits=4,
        heads=16,
        d_ff=1024,
        sequences=LONG_SEQUENCES,
        tokens=LONG_TOKENS,
        source="text",
    ),
}
"""Each keeps its ratio with ids and headers counted. ``long`` is for a GPU (weeks on one core) and
for the corpus of :mod:`benchmarks.texts`; its feed-forward is as wide as its stream, for the
boundary is what is compared, and minutes of such a GPU are dear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What stands at all three boundaries. ``severed``: nothing does, the control of ``codec``."""

    codec: Composition
    severed: bool = False


def rows_of(size: Size) -> dict[str, Row]:
    """The table's rows by name; ``codec`` is the one whose ratio counts."""

    codec = latent(size.bits, size.width)
    fp32 = ((0, 32),)
    return {
        "none": Row(codec=Composition(name="none")),
        "bf16": Row(codec=Composition(name="bf16")),
        "codec": codec,
        "cut": Row(codec=codec.codec, severed=True),
        "anchored": Row(
            codec=Composition(name="anchored", anchor_order=3, forward=fp32, backward=fp32)
        ),
        "wide": latent(32, size.d_model - 1),
        "bf16 latents": latent(16, size.width),
        "int8 latents": latent(8, size.width),
    }


def row_named(size: Size, name: str) -> Row:
    """One of :func:`rows_of`, or any latents, as ``k18 int3``: 18 values of 3 bits.

    Raises:
        KeyError: it is neither.
    """
    asked = re.fullmatch(r"k([1-9]\d*) int([2348])", name)
    return latent(int(asked[2]), int(asked[1])) if asked else rows_of(size)[name]


def latent(bits: int, width: int) -> Row:
    """A bottleneck of ``width`` values under all three anchors; 16 and 32 bits are floats."""
    return Row(
        codec=Composition(
            name="latent",
            width=width,
            anchor_order=3,
            mean=bits < 16,  # noqa: PLR2004 -- of integers alone
            forward=((0, bits),),  # type: ignore[arg-type]
            backward=((0, bits),),  # type: ignore[arg-type]
        )
    )


def spec_of(size: Size, row: Row, *, seed: int, steps: int) -> RunSpec:
    """The run of one row, not pinned yet."""
    built_in = row.codec.name in BUILT_IN
    return validate(
        RunSpec(
            name="losses",
            seed=seed,
            model=Model(
                d_model=size.d_model,
                n_layers=LAYERS,
                n_heads=size.heads,
                n_kv_heads=size.heads // 2,
                d_ff=size.d_ff or 2 * size.d_model,
                context=CONTEXT,
            ),
            cut=Cut(stages=1) if row.codec.name == "none" else CUT,
            batch=Batch(sequences=size.sequences, microbatches=1),
            optimizer=Optimizer(steps=steps),
            codec=Codec(name=row.codec.name, compositions=() if built_in else (row.codec,)),
            data=Data(source=size.source),
            limits=Limits(retained_bytes=RETAINED_BYTES),
            arithmetic=Arithmetic(dtype="bfloat16"),
            evaluation=Evaluation(
                every_steps=0, microbatches=-(-HELD_OUT_TOKENS // (size.sequences * CONTEXT))
            ),
        )
    )


def steps_of(size: Size) -> int:
    """Steps of one microbatch each."""
    return -(-size.tokens // (size.sequences * CONTEXT))


def bytes_per_token(spec: RunSpec) -> tuple[float, float]:
    """Of whole frames, forward and backward, at the last boundary, where paths are longest."""
    if spec.cut.stages == 1:  # in one piece here; a swarm would send it
        spec = msgspec.structs.replace(spec, cut=CUT)
    boundary = spec.cut.stages - 2
    composition = composition_of(spec, boundary)
    forward, backward = (
        most_frame_bytes(spec, composition, boundary, direction) / nominal_tokens(spec)
        for direction in ("forward", "backward")
    )
    return forward, backward
