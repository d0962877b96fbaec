"""The values of a RunSpec, and its digest.

What only one peer decides (its device, its ports, where it keeps files) never stands
here: whatever stands here changes the run id.

Invariants: equal RunSpecs have equal digests whatever they were read from (TOML, the
directory, Python); the encoded form fits one directory record.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import msgspec

from p2ptrain.errors import RunSpecError
from p2ptrain.units import RunId

MAX_SPEC_BYTES = 4000
"""Encoded size: a directory record holds 4 kB, its framing included."""

RUN_ID_BYTES = 16
"""128 bits: no two runs share an id by accident, and it stays short enough to read out."""

CodecName: TypeAlias = str
"""A name that run/codecs knows, or that of a composition in the RunSpec."""

Bits: TypeAlias = Literal[32, 16, 8, 4, 3, 2]
"""Per value on the wire: 32 and 16 are fp32 and bf16 as they are, the rest integers."""

Levels: TypeAlias = tuple[tuple[int, Bits], ...]
"""(from step, bits), the first from step 0: a schedule over t."""


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the RunSpec: frozen, strict, compared by value."""


class Model(Part, frozen=True, kw_only=True):
    """A Llama-style decoder. Sizes are counts; ``context`` is in tokens."""

    vocab_size: int = 256
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 2
    d_ff: int = 256
    context: int = 128
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5


class Cut(Part, frozen=True, kw_only=True):
    """How the layers are cut into stages.

    ``layers`` gives the count of each stage; empty means by estimated cost.
    """

    stages: int = 4
    layers: tuple[int, ...] = ()


class Batch(Part, frozen=True, kw_only=True):
    """``sequences`` of ``context`` tokens make a microbatch, ``microbatches`` (G) a step."""

    sequences: int = 4
    microbatches: int = 16


class Optimizer(Part, frozen=True, kw_only=True):
    """Muon for matrices with AdamW for the rest, or AdamW alone; warm-up, then cosine.

    ``bottleneck_ratio``: share of ``adamw_learning_rate`` that the encoders and decoders of
    bottlenecks take.
    """

    name: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 0.02
    adamw_learning_rate: float = 3e-3
    bottleneck_ratio: float = 0.1
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_steps: int = 10
    steps: int = 300
    final_ratio: float = 0.1


class Sync(Part, frozen=True, kw_only=True):
    """How replicas agree. ``start_replicas``: seats per stage before step 0 begins.

    ``agreement``: ``bitwise`` takes peers of one kind of device, torch version and thread
    count only, and their weights equal those of one process. ``canonical`` takes any: sums
    agree in every step, weights of replicas drift apart by rounding, and every
    ``canonical_steps`` (50: a copy of the state for each replica, little beside fifty steps,
    while rounding has grown no larger than the noise of a gradient) they take over one state.
    ``adoption``: as it is, or, with ``canonical``, as its difference to the last one, by so many
    bits; what that leaves out is sent the next time.
    ``deposit_every``: a seat that has counted so many microbatches more gives a mate a copy of
    its accumulator (0: never), so that they do not die with it. It pays in long steps, while the
    accumulator takes less time on the line than so many microbatches take to compute.
    """

    mode: Literal["exact", "delayed", "local"] = "exact"
    agreement: Literal["bitwise", "canonical"] = "bitwise"
    canonical_steps: int = 50
    start_replicas: int = 1
    adoption: Literal["exact", "int8", "int4"] = "exact"
    deposit_every: int = 0


class Accumulator(Part, frozen=True, kw_only=True):
    """Fixed-point gradient sums. ``fraction_bits``: binary places of an int64 sum."""

    dtype: Literal["int64", "int32"] = "int64"
    fraction_bits: int = 40


class Composition(Part, frozen=True, kw_only=True):
    """What is done to a tensor at a boundary, in the order of the fields.

    ``width``: values per token that a learned bottleneck leaves (0: none, all of d_model);
    ``anchor_order``: the receiver adds learned tables of the token (1), also of the two or three
    last (2, 3), or of none (0), each factorised to ``anchor_rank`` (0: whole tables). Anchors
    without a width leave a norm before the wire and no maps: the control of a bottleneck.
    ``mean``: remove the mean of every channel, per message. ``hadamard``: rotate. Then
    integers of so many bits by a scale per token, or per block of 64 values;
    ``forward`` and ``backward`` say how many bits from which step on.
    """

    name: CodecName
    width: int = 0
    anchor_order: Literal[0, 1, 2, 3] = 0
    anchor_rank: int = 0
    mean: bool = False
    hadamard: bool = False
    scale: Literal["token", "block"] = "token"
    forward: Levels = ((0, 16),)
    backward: Levels = ((0, 16),)


class Codec(Part, frozen=True, kw_only=True):
    """Codec of every boundary, or one name per boundary (stages - 1 of them).

    none, bf16, int8 and int4 leave the model as it is. b32x, b64x, b128x and b256x are sized for
    the model when the RunSpec is written, and then stand under ``compositions``, as may
    others under names of their own.
    """

    name: CodecName = "bf16"
    boundaries: tuple[CodecName, ...] = ()
    compositions: tuple[Composition, ...] = ()


class Data(Part, frozen=True, kw_only=True):
    """The corpus, pinned: every stage-0 peer must hold exactly these bytes.

    ``source``: ``stdlib`` (the running Python's own library), ``text`` (a file or
    folder) or ``jsonl`` (the strings under ``jsonl_field``). The corpus is one string of
    ``total_bytes`` bytes, taken from ``file_count`` files in the order of their paths;
    ``root`` is its BLAKE2b-256 in hex. No list of files stands here: a library has
    hundreds and the RunSpec must fit a directory record. An empty ``root`` means: not
    pinned yet (``p2ptrain init`` and the first peer pin it).
    ``held_out``: the share of the samples kept for validation.
    """

    source: Literal["stdlib", "text", "jsonl"] = "stdlib"
    tokenizer: Literal["bytes"] = "bytes"
    jsonl_field: str = "text"
    file_count: int = 0
    total_bytes: int = 0
    root: str = ""
    held_out: float = 0.02


class Arithmetic(Part, frozen=True, kw_only=True):
    """What must be equal for bit-equality. ``torch``: a version, or empty for any one."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 1
    device: Literal["cpu", "cuda", "mps", "any"] = "any"
    torch: str = ""


class Evaluation(Part, frozen=True, kw_only=True):
    """Every ``every_steps`` steps (0: only at the end) ``microbatches`` held-out microbatches."""

    every_steps: int = 25
    microbatches: int = 4


class Checkpoint(Part, frozen=True, kw_only=True):
    """A snapshot every so many steps (0: never), on the disks of those peers that keep any.

    Peers that restart together lose at most so many steps; one costs a copy of the state.
    """

    every_steps: int = 25


class Limits(Part, frozen=True, kw_only=True):
    """Bounds and deadlines of the protocol; each reason stands beside its use in core/."""

    queue_slots: int = 4
    replay_slots: int = 2
    window_per_stage: int = 4
    heartbeat_seconds: float = 1.0
    suspect_seconds: float = 5.0
    lease_seconds: float = 10.0
    record_seconds: float = 60.0
    retained_bytes: int = 1 << 30


class RunSpec(Part, frozen=True, kw_only=True):
    """Everything a run agrees on. See the sections for units."""

    name: str = "p2ptrain"
    seed: int = 0
    model: Model = Model()
    cut: Cut = Cut()
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    sync: Sync = Sync()
    accumulator: Accumulator = Accumulator()
    codec: Codec = Codec()
    data: Data = Data()
    arithmetic: Arithmetic = Arithmetic()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    limits: Limits = Limits()


ADDED = (("sync", "adoption"), ("sync", "deposit_every"))
"""Fields that came when there were runs already."""

_DEFAULT = RunSpec()


def canonical(spec: RunSpec) -> RunSpec:
    """The same RunSpec with every value of its declared type (``1`` for a float is ``1.0``).

    Raises:
        RunSpecError: a value is of the wrong type; the message names it.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(spec), RunSpec)
    except msgspec.ValidationError as error:
        raise RunSpecError(readable(error)) from error


def encode(spec: RunSpec) -> bytes:
    """Canonical msgpack: what the directory carries and the run id is taken from.

    A field of ADDED stands there only where it is not its default: a run that does without keeps
    the id that it had before there was such a field.
    """
    values = msgspec.to_builtins(canonical(spec))
    for section, name in ADDED:
        if values[section][name] == getattr(getattr(_DEFAULT, section), name):
            del values[section][name]
    return msgspec.msgpack.encode(values)


def digest(spec: RunSpec) -> RunId:
    """The run id: BLAKE2b-128 of the canonical encoding, in hex."""
    return RunId(hashlib.blake2b(encode(spec), digest_size=RUN_ID_BYTES).hexdigest())


def corpus_root(corpus: bytes | memoryview) -> str:
    """What ``Data.root`` must be for these corpus bytes: BLAKE2b-256 in hex."""
    return hashlib.blake2b(corpus, digest_size=32).hexdigest()


def readable(error: msgspec.ValidationError) -> str:
    """One line of ours from a schema error of msgspec: ``model.d_model: expected int, got str``."""
    what, _, where = str(error).partition(" - at ")
    path = where.strip("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    text = what.replace("`", "").replace("Expected", "expected")
    return f"{path}: {text}" if path else text
