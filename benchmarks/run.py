"""What every contender prints, and the arithmetic that turns it into rates.

    contender process -> one JSON line (Run) -> speed(run) -> rounds -> medians

All contenders are timed alike: each notes when a step of the optimizer has ended, the first
step is warm-up (imports, allocations, connections, kernels chosen), and the rate is tokens
over the time between the ends of the first and the last step. Processor seconds are noted
beside: on a machine that others use too, wall time says how the weather was, processor
time how much work was done.

Refused: timing from the outside of a process, which compares how fast Python starts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.units import Seconds, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p2ptrain.run import RunSpec


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One training, as its contender saw it.

    ``ended_at``: when each training step ended, in seconds of the machine's monotonic clock.
    ``cpu_seconds``: by kind of process, used between the ends of the first and last step.
    Losses are in nats per token.
    """

    ended_at: list[Seconds]
    cpu_seconds: dict[str, Seconds]
    loss: list[tuple[Step, float]] = []
    val_loss: float | None = None
    weights_digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of wall time, and processor seconds per thousand tokens."""

    tokens_per_second: float
    cpu_seconds_per_kilotoken: float
    cpu_seconds: Mapping[str, Seconds]


def step_tokens(spec: RunSpec) -> int:
    """Tokens that one optimizer step trains on."""
    return spec.batch.microbatches * spec.batch.sequences * spec.model.context


def speed(spec: RunSpec, run: Run) -> Speed:
    """Rates between the ends of the first and the last step.

    Raises:
        ValueError: fewer than two steps were seen.
    """
    if len(run.ended_at) < 2:  # noqa: PLR2004 -- a rate needs two points
        raise ValueError(f"{len(run.ended_at)} steps have no rate")
    tokens = step_tokens(spec) * (len(run.ended_at) - 1)
    return Speed(
        tokens_per_second=tokens / (run.ended_at[-1] - run.ended_at[0]),
        cpu_seconds_per_kilotoken=1000 * sum(run.cpu_seconds.values()) / tokens,
        cpu_seconds=run.cpu_seconds,
    )


def median(values: Sequence[float]) -> float:
    """The middle one; of rounds on a shared machine the mean is somebody else's doing."""
    return statistics.median(values)
