"""Readings of one boundary: the first microbatch that a stage sends in a step, and what returns.

Cheap by sampling: one decode and a few reductions a step, on the computing thread, of some
rows of tensors that are there anyway. Nothing that a run computes depends on a reading. A text of
three different tokens or fewer is not read: what stands for it is the same, or at two ends, by
right.

Alternative refused: readings of every microbatch. They would cost a tenth of the encoding
and say the same.

Legend: r rows (tokens), w channels.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from p2ptrain.core.health import BoundaryReading

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ROWS = 4096
"""Of a message, drawn: a mean over so many tokens is sure to 2%. While a core reads
all 65,536 rows of a GPU's microbatch, the GPU stands still."""

LIMIT_SHARE = 0.02
"""Of a channel's range: what is that near to an end is told apart from it by no codec of 4 bits."""

TINY = 1e-30
"""Keeps a ratio finite where all is zero."""

LARGEST = torch.finfo(torch.float32).max
"""What a reading says of numbers that are none."""


class BoundaryWatch:
    """Takes the readings of one seat. :meth:`take` ends a step."""

    def __init__(self, boundary: int) -> None:
        self._boundary = boundary
        self._sent: tuple[float, float, float, float, float] | None = None
        self._gradient: float | None = None

    @property
    def waits(self) -> bool:
        """Whether nothing has been read yet in this step."""
        return self._sent is None

    @torch.no_grad()
    def sent(self, x_rw: Tensor, decoded: Callable[[], Tensor]) -> None:
        """A microbatch went up; ``decoded`` gives what the stage above will see of it."""
        if self._sent is not None:
            return
        rows = _drawn(len(x_rw))
        x_rw = x_rw[rows].detach().float().cpu()
        centred_rw = x_rw - x_rw.mean(dim=0)
        deviation_w = centred_rw.square().mean(dim=0).sqrt()
        deviation = _root_mean_square(deviation_w)
        low_w, high_w = torch.aminmax(x_rw, dim=0)
        margin_w = LIMIT_SHARE * (high_w - low_w)
        at_limit_rw = (x_rw <= low_w + margin_w) | (x_rw >= high_w - margin_w)
        error = _root_mean_square(decoded()[rows].cpu() - x_rw) / max(deviation, TINY)
        self._sent = (
            _root_mean_square(x_rw),
            deviation,
            _root_mean_square(deviation_w.min()),
            float(at_limit_rw.float().mean()),
            error,
        )

    def returned(self, gradient_rw: Tensor) -> None:
        """A gradient came back; of a microbatch that counts as zero it says nothing."""
        if not self._gradient:
            # In float64, on the CPU: the squares of honest gradients leave float32 below 1e-23.
            norm = torch.linalg.vector_norm(gradient_rw.detach().cpu().to(torch.float64))
            self._gradient = float(torch.nan_to_num(norm, nan=LARGEST).clamp_(max=LARGEST))

    def take(self) -> BoundaryReading | None:
        """The reading of the step that ends, None if nothing was sent; begin the next."""
        sent, gradient = self._sent, self._gradient
        self._sent = self._gradient = None
        if sent is None:
            return None
        magnitude, deviation, least, saturation, error = sent
        return BoundaryReading(
            boundary=self._boundary,
            magnitude=magnitude,
            deviation=deviation,
            least_deviation=least,
            saturation=saturation,
            error=error,
            gradient_norm=gradient,
        )


@functools.lru_cache(maxsize=4)
def _drawn(rows: int) -> slice | Tensor:
    """Which of so many rows are read: not every n-th, which a text may repeat itself in."""
    if rows <= MOST_ROWS:
        return slice(None)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(rows))[:MOST_ROWS]


def _root_mean_square(x: Tensor) -> float:
    """Never more than float32 holds: readings travel as JSON, which knows no infinity."""
    return float(torch.nan_to_num(x.square().mean().sqrt(), nan=LARGEST, posinf=LARGEST))
