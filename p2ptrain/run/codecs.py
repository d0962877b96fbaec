"""The names of codecs, and what each is for a given model.

    none (fp32), bf16, int8, int4      full width: the model stays as it is
    b32x, b64x, b128x, b256x           a learned bottleneck, sized for the model
    any other name                     a composition that the RunSpec itself holds

``bNx`` promises that the *frame* of a microbatch (wire header, message with its path, token
ids, means, scales, integers) is N times smaller than its activations in bf16, in both
directions and at the last boundary, where the path is longest. From that budget follow the
width k and the bits: int8 where it leaves a width of 32 (int8 latents cost no loss
that we could measure), else int4, which doubles the width. Where int4 leaves fewer than
8 values a token the preset is refused, with the least width and microbatch that do.

Invariants: a sized name is resolved once, when a RunSpec is put together, and travels as plain
numbers: a later release that sizes otherwise still joins the run. ``check`` holds every
entry that is called bNx to its promise, however its numbers came about.

Refused: a ratio of the payload alone. Ids, scales and headers are a third of 8 bytes a token.
"""

from __future__ import annotations

import bisect
import operator
from typing import TYPE_CHECKING, Literal

import msgspec

from p2ptrain.errors import RunSpecError
from p2ptrain.run.frames import DIRECTIONS, bf16_bytes, most_frame_bytes, nominal_tokens
from p2ptrain.run.spec import Composition

if TYPE_CHECKING:
    from p2ptrain.run.spec import Bits, CodecName, Model, RunSpec

BUILT_IN: dict[CodecName, Composition] = {
    "none": Composition(name="none", forward=((0, 32),), backward=((0, 32),)),
    "fp32": Composition(name="fp32", forward=((0, 32),), backward=((0, 32),)),
    "bf16": Composition(name="bf16"),
    "int8": Composition(name="int8", scale="block", forward=((0, 8),), backward=((0, 8),)),
    "int4": Composition(name="int4", scale="block", forward=((0, 4),), backward=((0, 4),)),
}
"""Codecs that are the same for every model; they never stand in a RunSpec's compositions."""

RATIOS: dict[CodecName, int] = {"b32x": 32, "b64x": 64, "b128x": 128, "b256x": 256}
"""Presets that are sized, and the ratio of frames against bf16 that each promises."""

NAMES = (*BUILT_IN, *RATIOS)
"""What ``--codec`` takes without further ado."""

LEAST_WIDTH = 8
"""A floor by caution: 2 bytes a token lost to no wire at all, but that was before latents had a
norm and anchors began as what the encoder drops. What would lower it is the row ``codec`` of
``benchmarks.losses --size 127x-narrow`` (width 4) beside the row ``cut``."""

INT8_WIDTH = 32
"""From this width on bits are taken to be worth more than twice the width. Of the same early
comparison, in which int8 latents cost nothing; no table at equal bytes stands behind it yet."""

ANCHOR_ORDER: Literal[3] = 3
"""Trigram anchors cost nothing on the wire and gave back half of what int4 took."""

WHOLE_TABLES = 4096
"""A vocabulary up to this has whole anchor tables, a larger one factorised ones."""

ANCHOR_RANK = 128
"""Of factorised tables: 50,000 tokens then take 6.4 million parameters a table."""

WIDTH_STEP = 64
"""Widths that are proposed: all common heads divide them."""

LEAST_TOKENS = 2048
"""Microbatches that are proposed first: headers and means then take a tenth of a byte a token."""

_MOST_TOKENS, _MOST_SEQUENCES = 1 << 18, 4096
_WIDTHS = range(WIDTH_STEP, 65_536 + 1, WIDTH_STEP)


def composition_of(spec: RunSpec, boundary: int) -> Composition:
    """What is done at the boundary between stage ``boundary`` and the next.

    Raises:
        RunSpecError: the name is known neither here nor in the RunSpec (``validate`` says so).
    """
    codec = spec.codec
    name = codec.boundaries[boundary] if codec.boundaries else codec.name
    return named(spec, name)


def named(spec: RunSpec, name: CodecName) -> Composition:
    """The composition of that name.

    Raises:
        RunSpecError: there is none in this RunSpec.
    """
    for composition in spec.codec.compositions:
        if composition.name == name:
            return composition
    if name not in BUILT_IN:
        hint = (
            "has not been sized for this model (p2ptrain init does)"
            if name in RATIOS
            else f"is no codec; there are: {', '.join(NAMES)}"
        )
        raise RunSpecError(f"codec.name: {name!r} {hint}")
    return BUILT_IN[name]


def used_names(spec: RunSpec) -> tuple[CodecName, ...]:
    """The codecs at the run's boundaries, each once."""
    return tuple(dict.fromkeys(spec.codec.boundaries or (spec.codec.name,)))


def resolved(spec: RunSpec) -> RunSpec:
    """``spec`` with a composition for every sized name, and none that no boundary uses.

    Raises:
        RunSpecError: the model is too narrow for a name, or the microbatch too small.
    """
    held = {composition.name: composition for composition in spec.codec.compositions}
    kept = [
        held[name] if name in held else sized(name, spec)
        for name in used_names(spec)
        if name in held or name in RATIOS
    ]
    codec = msgspec.structs.replace(spec.codec, compositions=tuple(kept))
    return msgspec.structs.replace(spec, codec=codec)


def sized(name: CodecName, spec: RunSpec) -> Composition:
    """The widest composition that keeps the promise of ``name`` for this model.

    Raises:
        RunSpecError: there is none; the message tells what would do.
    """
    found = _widest(name, spec)
    if found is None:
        tokens = nominal_tokens(spec)
        raise RunSpecError(
            f"codec {name} leaves fewer than {LEAST_WIDTH} values a token at "
            f"d_model = {spec.model.d_model} with microbatches of {tokens} tokens: "
            f"{_what_would_do(name, spec)}"
        )
    return found


def broken_promise(name: CodecName, spec: RunSpec, composition: Composition) -> str | None:
    """What is wrong with a composition that bears a sized name, or None."""
    boundary = max(spec.cut.stages - 2, 0)
    least = min(
        bf16_bytes(spec) / most_frame_bytes(spec, composition, boundary, direction)
        for direction in DIRECTIONS
    )
    if least >= RATIOS[name]:
        return None
    return (
        f"gives {least:.1f}x here, not {RATIOS[name]}x: leave the entry out to have it sized, "
        "or call it otherwise"
    )


def _widest(name: CodecName, spec: RunSpec) -> Composition | None:
    """int8 where it leaves room, else int4; the width by bisection, for frames grow with it."""
    choices: tuple[tuple[Bits, int], ...] = ((8, INT8_WIDTH), (4, LEAST_WIDTH))
    for bits, least in choices:
        fits, fails = 0, spec.model.d_model
        while fails - fits > 1:
            width = (fits + fails) // 2
            whole = broken_promise(name, spec, _bottleneck(name, spec.model, width, bits)) is None
            fits, fails = (width, fails) if whole else (fits, width)
        if fits >= least:
            return _bottleneck(name, spec.model, fits, bits)
    return None


def _bottleneck(name: CodecName, model: Model, width: int, bits: Bits) -> Composition:
    whole = model.vocab_size <= WHOLE_TABLES or model.d_model <= ANCHOR_RANK
    return Composition(
        name=name,
        width=width,
        anchor_order=ANCHOR_ORDER,
        anchor_rank=0 if whole else ANCHOR_RANK,
        mean=True,
        forward=((0, bits),),
        backward=((0, bits),),
    )


def _what_would_do(name: CodecName, spec: RunSpec) -> str:
    """The least width at these microbatches or at large ones, and the least of these."""
    tokens, context = nominal_tokens(spec), spec.model.context
    large = max(tokens, -(-LEAST_TOKENS // context) * context)
    offers = []
    widths = {_least_width(name, spec, count): count for count in (large, tokens)}
    for width, count in sorted(widths.items(), key=operator.itemgetter(1)):
        if width is not None:
            offers.append(f"d_model >= {width} with microbatches of {count} tokens does")
    enough = _least_tokens(name, spec)
    if enough is not None:
        offers.append(f"at this width microbatches of {enough} tokens do")
    smaller = [other for other in RATIOS if RATIOS[other] < RATIOS[name] and _widest(other, spec)]
    if smaller:
        offers.append(f"{smaller[-1]} fits as it is")
    return "; ".join(offers) or "give a codec of full width, like int8"


def _least_width(name: CodecName, spec: RunSpec, tokens: int) -> int | None:
    def fits(width: int) -> bool:
        return _fits(name, spec, width, tokens)

    index = bisect.bisect_left(_WIDTHS, x=True, key=fits)
    return _WIDTHS[index] if index < len(_WIDTHS) else None


def _least_tokens(name: CodecName, spec: RunSpec) -> int | None:
    """As a multiple of what a microbatch has: what a frame bears once weighs ever less."""
    tokens = nominal_tokens(spec)
    most = min(_MOST_TOKENS // tokens, _MOST_SEQUENCES // spec.batch.sequences)

    def fits(times: int) -> bool:
        return _fits(name, spec, spec.model.d_model, times * tokens)

    times = 1 + bisect.bisect_left(range(1, most + 1), x=True, key=fits)
    return times * tokens if times <= most else None


def _fits(name: CodecName, spec: RunSpec, width: int, tokens: int) -> bool:
    model = msgspec.structs.replace(spec.model, d_model=width)
    batch = msgspec.structs.replace(spec.batch, sequences=tokens // spec.model.context)
    return _widest(name, msgspec.structs.replace(spec, model=model, batch=batch)) is not None
