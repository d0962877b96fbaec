"""Do the peers that live grow? Memory, file descriptors and threads over time, from outside.

    samples of a living peer after its warm-up -> a line through them -> growth per minute

Intuition: what leaks under churn leaks a little with every death of a neighbour; no single
number shows it, its slope does. Of several peers the fastest growing counts.

Invariants: a peer without enough samples says nothing (a slope of three points is noise);
the warm-up is left out, because allocators and import caches fill then.

Refused: asyncio tasks, counted by the peer itself; what they hold shows in these three.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from p2ptrain.observe.report import Growth

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2ptrain.units import Bytes, Seconds

SAMPLE_SECONDS = 5.0
"""Between two samples: three system calls a peer."""

WARM_UP_SECONDS = 60.0
"""From a peer's first sample: torch, the directory and every queue have been used by then."""

LEAST_SAMPLES = 24
"""Two minutes; below that a slope is the noise of the allocator."""

SECONDS_PER_MINUTE = 60.0


class Usage:
    """Collects samples; ``growth`` judges the peers that still lived at the end."""

    def __init__(self) -> None:
        self._samples: dict[str, list[tuple[Seconds, Bytes, int, int]]] = defaultdict(list)
        self._due_at: Seconds = 0.0

    def due(self, now: Seconds) -> bool:
        """Whether it is time for the next samples; then it is not for a while."""
        if now < self._due_at:
            return False
        self._due_at = now + SAMPLE_SECONDS
        return True

    def add(
        self, peer: str, *, now: Seconds, rss_bytes: Bytes, descriptors: int, threads: int
    ) -> None:
        """One sample of one peer."""
        self._samples[peer].append((now, rss_bytes, descriptors, threads))

    def growth(self, survivors: Iterable[str]) -> Growth | None:
        """The fastest of ``survivors`` in each of the three; None if nothing can be said."""
        slopes = []
        for peer in survivors:
            samples = self._samples.get(peer, [])
            warm = [each for each in samples if each[0] - samples[0][0] >= WARM_UP_SECONDS]
            if len(warm) >= LEAST_SAMPLES:
                times = [each[0] for each in warm]
                slopes.append([_per_minute(times, [each[n] for each in warm]) for n in (1, 2, 3)])
        if not slopes:
            return None
        rss, descriptors, threads = (max(column) for column in zip(*slopes, strict=True))
        return Growth(
            peers=len(slopes),
            rss_bytes_per_minute=rss,
            descriptors_per_minute=descriptors,
            threads_per_minute=threads,
        )


def _per_minute(times: Sequence[Seconds], values: Sequence[float]) -> float:
    return statistics.linear_regression(times, values).slope * SECONDS_PER_MINUTE
