"""The RunSpec: what every peer of a run must agree on.

A RunSpec is frozen and validated once, where it enters (a file, the directory, a preset);
its digest *is* the run id, so two peers that disagree on anything that could change the
weights are in two different runs and refuse each other at link open. The alternative, to
negotiate settings one by one, lets a run drift apart on whatever was forgotten.

    spec     the values, their encoding and digest
    codecs   the names of codecs, and what each is for a given model
    frames   how many bytes a microbatch takes at a boundary
    check    every rule that a RunSpec must meet, one line each
    text     TOML and overrides to RunSpec and back, with the origin of every value
    presets  models that were sized together
"""

from p2ptrain.run.check import decode, validate
from p2ptrain.run.codecs import resolved
from p2ptrain.run.presets import PRESETS, expected_efficiency, preset
from p2ptrain.run.spec import (
    Accumulator,
    Arithmetic,
    Batch,
    Bits,
    Checkpoint,
    Codec,
    CodecName,
    Composition,
    Cut,
    Data,
    Evaluation,
    Limits,
    Model,
    Optimizer,
    Part,
    RunSpec,
    Sync,
    canonical,
    corpus_root,
    digest,
    encode,
)
from p2ptrain.run.text import Layered, from_toml, layered, to_toml

__all__ = [
    "PRESETS",
    "Accumulator",
    "Arithmetic",
    "Batch",
    "Bits",
    "Checkpoint",
    "Codec",
    "CodecName",
    "Composition",
    "Cut",
    "Data",
    "Evaluation",
    "Layered",
    "Limits",
    "Model",
    "Optimizer",
    "Part",
    "RunSpec",
    "Sync",
    "canonical",
    "corpus_root",
    "decode",
    "digest",
    "encode",
    "expected_efficiency",
    "from_toml",
    "layered",
    "preset",
    "resolved",
    "to_toml",
    "validate",
]
