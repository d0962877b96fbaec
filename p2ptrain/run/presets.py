"""Models that were sized together, and what a run's shape is expected to give.

The names say the number of parameters, with the byte vocabulary of 256. ``tiny`` is the
default of a simulation, ``small`` the least width at which compression figures mean
something. The rest follow the shapes of published Llama models of the same size.
"""

from __future__ import annotations

import difflib
import itertools
import math

import msgspec

from p2ptrain.errors import RunSpecError
from p2ptrain.run.spec import Accumulator, Batch, Cut, Limits, Model, Optimizer, RunSpec

_LINKS = Limits(window_per_stage=8)
"""Twice as much in flight as a RunSpec that does not name it: 16 stages of unequal seats then
reach 95% of capacity, and not 89% (benchmarks/capacity, ``stream``)."""

_SLOW_LINKS = msgspec.structs.replace(
    _LINKS, suspect_seconds=15.0, lease_seconds=60.0, retained_bytes=8 << 30
)
"""Frames of tens of megabytes take seconds on a home link."""

PRESETS: dict[str, RunSpec] = {
    "tiny": RunSpec(
        name="tiny",
        model=Model(n_heads=2, n_kv_heads=1),
        optimizer=Optimizer(learning_rate=0.04, adamw_learning_rate=0.01),
        limits=_LINKS,
    ),
    "small": RunSpec(
        name="small",
        model=Model(d_model=512, n_layers=4, n_heads=8, n_kv_heads=4, d_ff=1024, context=256),
        limits=_LINKS,
    ),
    "15m": RunSpec(
        name="15m",
        model=Model(d_model=384, n_layers=10, n_heads=6, n_kv_heads=2, d_ff=1024, context=512),
        optimizer=Optimizer(steps=3000, warmup_steps=100),
        limits=_LINKS,
    ),
    "125m": RunSpec(
        name="125m",
        model=Model(d_model=768, n_layers=20, n_heads=12, n_kv_heads=4, d_ff=2048, context=1024),
        batch=Batch(sequences=4, microbatches=64),
        optimizer=Optimizer(steps=10_000, warmup_steps=300),
        limits=_SLOW_LINKS,
    ),
    "350m": RunSpec(
        name="350m",
        model=Model(d_model=1024, n_layers=24, n_heads=16, n_kv_heads=4, d_ff=4096, context=1024),
        cut=Cut(stages=6),
        batch=Batch(sequences=4, microbatches=64),
        optimizer=Optimizer(steps=20_000, warmup_steps=500),
        limits=_SLOW_LINKS,
    ),
    "1b": RunSpec(
        name="1b",
        model=Model(
            d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=8192, context=2048,
            rope_theta=500_000.0,
        ),
        cut=Cut(stages=8),
        batch=Batch(sequences=2, microbatches=64),
        optimizer=Optimizer(steps=50_000, warmup_steps=1000),
        accumulator=Accumulator(dtype="int32"),
        limits=_SLOW_LINKS,
    ),
    "8b": RunSpec(
        name="8b",
        model=Model(
            d_model=4096, n_layers=36, n_heads=32, n_kv_heads=8, d_ff=14_336, context=2048,
            rope_theta=500_000.0,
        ),
        cut=Cut(stages=18),
        batch=Batch(sequences=1, microbatches=128),
        optimizer=Optimizer(steps=100_000, warmup_steps=2000),
        accumulator=Accumulator(dtype="int32"),
        limits=_SLOW_LINKS,
    ),
}  # fmt: skip
"""RunSpecs by name, with no data pinned."""

_CAPACITY = ((4.0, 0.54), (8.0, 0.69), (16.0, 0.80), (32.0, 0.85))
"""Simulated at 16 stages x 8 replicas, exact mode: (ids per seat and step, part of capacity)."""


def preset(name: str) -> RunSpec:
    """The RunSpec of that name.

    Raises:
        RunSpecError: there is none; the message names those there are.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PRESETS)}"
        raise RunSpecError(f"no preset {name!r}; {hint}")
    return PRESETS[name]


def with_stages(spec: RunSpec, stages: int) -> RunSpec:
    """``spec`` cut into ``stages``, with a layer per stage at least (cuts named before go)."""
    layers = max(spec.model.n_layers, stages)
    return msgspec.structs.replace(
        spec,
        model=msgspec.structs.replace(spec.model, n_layers=layers),
        cut=Cut(stages=stages),
    )


def expected_efficiency(spec: RunSpec, replicas: int) -> float:
    """Part of the seats' capacity that an exact-mode run of ``replicas`` per stage reaches.

    A *simulated* figure (16 stages x 8 replicas of unequal speed; see DESIGN 5), between
    whose points we interpolate over the logarithm of the ids per seat and step. Below 4
    ids it falls in proportion; above 32 we claim no more.

    Raises:
        ValueError: ``replicas`` is not positive.
    """
    if replicas < 1:
        raise ValueError(f"replicas = {replicas}")
    ids = spec.batch.microbatches / replicas
    least, greatest = _CAPACITY[0], _CAPACITY[-1]
    if ids <= least[0]:
        return least[1] * ids / least[0]
    for (ids_below, below), (ids_above, above) in itertools.pairwise(_CAPACITY):
        if ids <= ids_above:
            share = math.log(ids / ids_below) / math.log(ids_above / ids_below)
            return below + share * (above - below)
    return greatest[1]
