"""Every rule that a RunSpec must meet, in one place.

A RunSpec also comes from the directory, so the ranges below are a defence as well: no
value that passes makes a peer allocate or wait without bound before it has seen a byte
of training. ``BOUNDS`` has an entry for every number of the RunSpec (a test sees to it);
the functions after it hold the rules that tie several values together. All broken rules
are reported at once, in one line, because mending them one by one is tedious.

The alternative, checks in the constructors, would forbid the half-changed values from
which a RunSpec is put together.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.errors import RunSpecError
from p2ptrain.run.codecs import BUILT_IN, NAMES, RATIOS, broken_promise, named, used_names
from p2ptrain.run.frames import BLOCK_VALUES, DIRECTIONS, levels_of, most_encoded_bytes
from p2ptrain.run.spec import MAX_SPEC_BYTES, RunSpec, encode, readable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.run.spec import CodecName, Composition

BYTE_TOKENS = 256
"""Tokens that the byte tokenizer makes."""

GRADIENT_BITS = 6
"""Least binary digits left of the point for one id's gradient, beside the G-fold sum."""

RETAINED_MICROBATCHES_LEAST = 2
"""Frames of one leave memory for the disk while another is computed."""

TOKEN_BYTES_MOST = 4
"""Of one token id on the wire."""

MOST_LEVELS = 16
"""Changes of a codec's bits in one direction: a schedule, not a program."""

MOST_WIDTH = 4096
"""Of a bottleneck: what b32x takes of the widest model. First values cost width^2 x d_model, so
whoever opened a seat of a wider one would be at it for an hour and more."""

MOST_RANK = 65_536
"""Of an anchor table: the widest model's own width."""

BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "model.vocab_size": (1, 2**24),
    "model.d_model": (1, 65_536),
    "model.n_layers": (1, 1024),
    "model.n_heads": (1, 1024),
    "model.n_kv_heads": (1, 1024),
    "model.d_ff": (1, 2**20),
    "model.context": (1, 2**20),
    "model.rope_theta": (1.0, 1e12),
    "model.norm_eps": (1e-12, 0.1),
    "cut.stages": (1, 1024),
    "batch.sequences": (1, 4096),
    "batch.microbatches": (1, 4096),
    "optimizer.learning_rate": (1e-12, 100.0),
    "optimizer.adamw_learning_rate": (1e-12, 100.0),
    "optimizer.bottleneck_ratio": (0.0, 100.0),
    "optimizer.momentum": (0.0, 0.999_999),
    "optimizer.beta1": (0.0, 0.999_999),
    "optimizer.beta2": (0.0, 0.999_999_9),
    "optimizer.eps": (1e-20, 1.0),
    "optimizer.weight_decay": (0.0, 100.0),
    "optimizer.clip_norm": (0.0, 1e9),
    "optimizer.warmup_steps": (0, 2**31),
    "optimizer.steps": (1, 2**31),
    "optimizer.final_ratio": (0.0, 1.0),
    "sync.start_replicas": (1, 4096),
    "sync.canonical_steps": (1, 2**31),
    "sync.deposit_every": (0, 4096),
    "accumulator.fraction_bits": (1, 56),
    "data.file_count": (0, 2**31),
    "data.total_bytes": (0, 2**48),
    "data.held_out": (0.0, 0.5),
    "arithmetic.threads": (1, 1024),
    "evaluation.every_steps": (0, 2**31),
    "evaluation.microbatches": (0, 4096),
    "checkpoint.every_steps": (0, 2**31),
    "limits.queue_slots": (1, 1024),
    "limits.replay_slots": (1, 1024),
    "limits.window_per_stage": (1, 1024),
    "limits.heartbeat_seconds": (0.05, 60.0),
    "limits.suspect_seconds": (0.1, 600.0),
    "limits.lease_seconds": (0.1, 600.0),
    "limits.record_seconds": (5.0, 120.0),
    "limits.retained_bytes": (1, 2**44),
}
"""Least and greatest value of every number of a RunSpec, by its dotted name."""


def validate(spec: RunSpec) -> RunSpec:
    """Return ``spec`` if it can be run.

    Raises:
        RunSpecError: it cannot; the message names every value that is wrong, and what fits.
    """
    problems = [*_ranges(spec), *_model(spec), *_cut(spec), *_codec(spec), *_batch(spec)]
    problems += [*_data(spec), *_unbuilt(spec), *_canonical(spec), *_limits(spec)]
    if not problems:  # else a number may not even have an encoding
        problems += _size(spec)
    if problems:
        raise RunSpecError("; ".join(problems))
    return spec


def decode(blob: bytes | memoryview) -> RunSpec:
    """Read and validate what ``encode`` wrote.

    Raises:
        RunSpecError: it is no RunSpec of this version, or cannot be run.
    """
    if len(blob) > MAX_SPEC_BYTES:
        raise RunSpecError(f"a RunSpec of {len(blob)} bytes: at most {MAX_SPEC_BYTES} are allowed")
    try:
        spec = msgspec.msgpack.decode(blob, type=RunSpec)
    except msgspec.ValidationError as error:
        raise RunSpecError(f"no RunSpec of this version: {readable(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # the latter: in unknown keys
        raise RunSpecError(f"no RunSpec: {error}") from error
    if encode(spec) != blob:  # the run id is taken from the one way to write it
        raise RunSpecError(
            "no RunSpec as it is published: a value is left out or written otherwise"
        )
    return validate(spec)


def in_range(spec: RunSpec) -> bool:
    """Whether every number lies within its bounds, so that sizes can be computed from it."""
    return not any(_ranges(spec))


def _ranges(spec: RunSpec) -> Iterator[str]:
    for name, (least, greatest) in BOUNDS.items():
        value: object = spec
        for part in name.split("."):
            value = getattr(value, part)
        assert isinstance(value, int | float)
        if not least <= value <= greatest:
            yield f"{name} = {value}: must lie between {least:g} and {greatest:g}"
    if not re.fullmatch(r"[\w .:+-]{1,64}", spec.name):
        yield "name: 1 to 64 letters, digits, spaces or any of _ . : + -"


def _model(spec: RunSpec) -> Iterator[str]:
    model = spec.model
    if model.n_heads > 0 and model.d_model % model.n_heads:
        yield f"model.d_model = {model.d_model} must be a multiple of n_heads = {model.n_heads}"
    elif model.n_heads > 0 and (model.d_model // model.n_heads) % 2:
        yield f"model.d_model / n_heads = {model.d_model // model.n_heads} must be even (RoPE)"
    if model.n_kv_heads > 0 and model.n_heads % model.n_kv_heads:
        yield (
            f"model.n_heads = {model.n_heads} must be a multiple of n_kv_heads = {model.n_kv_heads}"
        )
    if model.vocab_size < BYTE_TOKENS:
        yield f"model.vocab_size = {model.vocab_size}: the byte tokenizer needs {BYTE_TOKENS}"


def _cut(spec: RunSpec) -> Iterator[str]:
    cut, layers = spec.cut, spec.model.n_layers
    if cut.stages > layers:
        yield f"cut.stages = {cut.stages}: at most one stage per layer (n_layers = {layers})"
    if cut.layers:
        if len(cut.layers) != cut.stages:
            yield f"cut.layers names {len(cut.layers)} stages, cut.stages = {cut.stages}"
        if any(count < 1 for count in cut.layers):
            yield "cut.layers: every stage needs a layer"
        if sum(cut.layers) != layers:
            yield f"cut.layers sum to {sum(cut.layers)}, model.n_layers = {layers}"


def _codec(spec: RunSpec) -> Iterator[str]:
    codec, boundaries = spec.codec, spec.codec.boundaries
    if boundaries and len(boundaries) != spec.cut.stages - 1:
        yield (
            f"codec.boundaries names {len(boundaries)} codecs, "
            f"{spec.cut.stages} stages have {spec.cut.stages - 1} boundaries"
        )
    entries = [entry.name for entry in codec.compositions]
    for name in used_names(spec):
        if name not in entries and name in RATIOS:
            yield f"codec.compositions lacks {name}, which is sized when a RunSpec is written"
        elif name not in entries and name not in BUILT_IN:
            where = "codec.boundaries:" if boundaries else "codec.name ="
            yield f"{where} {name!r}: there is no such codec, but {', '.join(NAMES)}"
    for entry in codec.compositions:
        problem = _entry_name(spec, entry.name)
        problems = [problem] if problem is not None else [*_composition(spec, entry)]
        if not problems and entry.name in RATIOS and in_range(spec):
            problems = [*filter(None, [broken_promise(entry.name, spec, entry)])]
        yield from (f"codec.compositions: {entry.name}: {problem}" for problem in problems)


def _entry_name(spec: RunSpec, name: CodecName) -> str | None:
    count = [entry.name for entry in spec.codec.compositions].count(name)
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]{0,31}", name):
        return "a name has up to 32 letters, digits or any of _ . + -"
    if name in BUILT_IN:
        return "built in, and the same for every model: choose another name"
    if count > 1:
        return f"stands there {count} times"
    return None if name in used_names(spec) else "stands at no boundary"


def _composition(spec: RunSpec, entry: Composition) -> Iterator[str]:
    if not 0 <= entry.width < max(spec.model.d_model, 1):
        yield f"width = {entry.width}: 0, or less than d_model = {spec.model.d_model}"
    if entry.width > MOST_WIDTH:
        yield f"width = {entry.width}: {MOST_WIDTH} at most"
    if not 0 <= entry.anchor_rank <= MOST_RANK or (entry.anchor_rank and not entry.anchor_order):
        yield f"anchor_rank = {entry.anchor_rank}: 0 to {MOST_RANK}, and 0 without anchors"
    group = BLOCK_VALUES if entry.scale == "block" else entry.width or spec.model.d_model
    if entry.hadamard and group & (group - 1):
        yield f"hadamard needs a power of two of values under one scale, not {group}"
    for direction in DIRECTIONS:
        starts = [since for since, _ in levels_of(entry, direction)]
        orderly = all(one < next_ for one, next_ in itertools.pairwise(starts))
        if not starts or starts[0] != 0 or not orderly or starts[-1] > spec.optimizer.steps:
            yield f"{direction} = {starts}: steps that rise from 0 to optimizer.steps at most"
        if len(starts) > MOST_LEVELS:
            yield f"{direction} has {len(starts)} levels, at most {MOST_LEVELS}"


def _batch(spec: RunSpec) -> Iterator[str]:
    digits = 63 - spec.accumulator.fraction_bits - max(spec.batch.microbatches - 1, 0).bit_length()
    if spec.accumulator.dtype == "int64" and digits < GRADIENT_BITS:
        yield (
            f"accumulator.fraction_bits = {spec.accumulator.fraction_bits} leaves no room for "
            f"{spec.batch.microbatches} microbatches: at most "
            f"{spec.accumulator.fraction_bits - GRADIENT_BITS + digits}"
        )
    if spec.cut.stages > 1 and not any(_codec(spec)):
        tokens = spec.batch.sequences * (spec.model.context + 1) * TOKEN_BYTES_MOST
        each = tokens + sum(
            max(most_encoded_bytes(spec, named(spec, name), way) for name in used_names(spec))
            for way in DIRECTIONS
        )
        needed = RETAINED_MICROBATCHES_LEAST * each
        if needed > spec.limits.retained_bytes:
            yield (
                f"limits.retained_bytes = {spec.limits.retained_bytes} cannot hold the frames of "
                f"{RETAINED_MICROBATCHES_LEAST} microbatches (others are spilled): {needed} needed"
            )


def _data(spec: RunSpec) -> Iterator[str]:
    data = spec.data
    if data.root and not re.fullmatch(r"[0-9a-f]{64}", data.root):
        yield "data.root: 64 hexadecimal digits, or empty for a corpus that is not pinned yet"
    if bool(data.root) != bool(data.total_bytes) or bool(data.root) != bool(data.file_count):
        yield "data: root, total_bytes and file_count are pinned together (leave all three out)"
    if data.held_out <= 0 and spec.evaluation.microbatches > 0:
        yield "data.held_out = 0 leaves nothing to evaluate on: set evaluation.microbatches = 0"
    if not 1 <= len(data.jsonl_field) <= 64:  # noqa: PLR2004 -- a field's name, in characters
        yield "data.jsonl_field: 1 to 64 characters"
    if len(spec.arithmetic.torch) > 64:  # noqa: PLR2004 -- a version, in characters
        yield "arithmetic.torch: at most 64 characters"


def _unbuilt(spec: RunSpec) -> Iterator[str]:
    if spec.sync.mode != "exact":
        yield f'sync.mode = "{spec.sync.mode}" is not built yet: use "exact"'


def _canonical(spec: RunSpec) -> Iterator[str]:
    """What replicas that drift apart by rounding cannot do."""
    if spec.sync.agreement != "canonical":
        if spec.sync.adoption != "exact":
            yield (
                f'sync.adoption = "{spec.sync.adoption}" loses bits, and replicas of a run with '
                'sync.agreement = "bitwise" hold the same: use "exact", or "canonical"'
            )
        return
    every = spec.sync.canonical_steps
    if every > 0 and spec.checkpoint.every_steps % every:
        yield (
            f"checkpoint.every_steps = {spec.checkpoint.every_steps}: where states are equal only "
            f"every sync.canonical_steps = {every} steps it must be a multiple of that, or 0"
        )
    if not spec.evaluation.microbatches:
        yield (
            'evaluation.microbatches = 0: with sync.agreement = "canonical" replicas take over '
            "their last state before the evaluation at the end, so give 1 or more"
        )
    if spec.accumulator.dtype != "int64":
        yield (
            'accumulator.dtype = "int32" takes its exponents from sums, which may differ by '
            'rounding with sync.agreement = "canonical": use "int64"'
        )


def _size(spec: RunSpec) -> Iterator[str]:
    try:
        size = len(encode(spec))
    except UnicodeEncodeError:
        yield "a value holds characters that are none (a broken environment variable?)"
        return
    if size > MAX_SPEC_BYTES:
        yield f"the RunSpec takes {size} bytes encoded, at most {MAX_SPEC_BYTES} fit"


def _limits(spec: RunSpec) -> Iterator[str]:
    limits = spec.limits
    if limits.suspect_seconds < 2 * limits.heartbeat_seconds:
        yield (
            f"limits.suspect_seconds = {limits.suspect_seconds:g} must be twice "
            f"heartbeat_seconds = {limits.heartbeat_seconds:g} or more"
        )
