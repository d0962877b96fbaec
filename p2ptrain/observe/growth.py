"""Do the peers that live grow? Memory, descriptors, tasks and threads over time.

    Resources events of a peer that lived, after its warm-up -> a line through them
                                                             -> growth per minute

Intuition: what leaks under churn leaks a little with every death of a neighbour; no single
number shows it, its slope does. Of several peers the fastest growing counts, each resource
by itself. A peer's p2pd is a process of its own: it is judged apart. Tasks and descriptors
follow the number of links, which follows the number of peers that live: what they grow by
at an equal number of links (the plane of least squares over time and links) is a leak.

Invariants: a peer without enough samples says nothing (a slope of three points is noise);
the warm-up is left out, because allocators and import caches fill then; nor does a peer
count that was killed.

Refused: the difference of two samples. Memory swings by a step's frames from one to the next.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2ptrain.units import PeerId, Seconds

WARM_UP_SECONDS = 180.0
"""From a peer's first step. Measured: Python's blocks and the allocator's heap stop growing after
three minutes, when bounded caches (rankings, keys, addresses, p2pd's own) are full."""

LEAST_SPAN_SECONDS = 115.0
"""Two minutes less a sample; over a shorter time a slope is the noise of the allocator."""

LEAST_SHARE = 0.5
"""Of the longest that any was watched. What is taken on once, like the copy of a state that a new
neighbour asks for, is a step: the shorter the time, the more it looks like a slope."""

LEAST_SAMPLES = 12
"""A peer that was frozen or starved for most of its time says nothing either."""

SECONDS_PER_MINUTE = 60.0


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """Slopes of the fastest growing of ``peers`` that lived to the end, and through most of it.

    ``daemon``: of p2pd; the others are of the peer's own process. ``beyond_links``: the
    slope at an equal number of links.
    """

    peers: int
    rss_bytes_per_minute: float
    descriptors_per_minute: float
    threads_per_minute: float
    tasks_per_minute: float
    daemon_rss_bytes_per_minute: float
    daemon_descriptors_per_minute: float
    links_per_minute: float
    tasks_beyond_links_per_minute: float
    descriptors_beyond_links_per_minute: float
    daemon_descriptors_beyond_links_per_minute: float


def growth(entries: Iterable[ev.Entry]) -> Growth | None:
    """The fastest growth of each resource; None if nothing can be said.

    ``entries``: ordered by time.
    """
    began: dict[PeerId, Seconds] = {}
    killed: set[str] = set()
    samples: dict[PeerId, list[tuple[Seconds, ev.Resources]]] = defaultdict(list)
    for entry in entries:
        match entry.event:
            case ev.StepCommitted():
                began.setdefault(entry.peer, entry.at)
            case ev.FaultFired(fault="kill", target=target):
                killed.add(target)
            case ev.Resources() as sample:
                if entry.at - began.get(entry.peer, entry.at) >= WARM_UP_SECONDS:
                    samples[entry.peer].append((entry.at, sample))
            case _:
                pass
    lived = [taken for peer, taken in samples.items() if peer not in killed and _suffice(taken)]
    longest = max(map(_span, lived), default=0.0)
    lived = [taken for taken in lived if _span(taken) >= LEAST_SHARE * longest]
    return _worst(lived) if lived else None


def _suffice(samples: Sequence[tuple[Seconds, ev.Resources]]) -> bool:
    return len(samples) >= LEAST_SAMPLES and _span(samples) >= LEAST_SPAN_SECONDS


def _span(samples: Sequence[tuple[Seconds, ev.Resources]]) -> Seconds:
    return samples[-1][0] - samples[0][0]


def _worst(peers: Sequence[Sequence[tuple[Seconds, ev.Resources]]]) -> Growth:
    slopes = {
        f"{name}_per_minute": max(_slope(samples, name) for samples in peers)
        for name in ev.Resources.__struct_fields__
    }
    beyond = {
        f"{name}_beyond_links_per_minute": max(_slope_beyond_links(s, name) for s in peers)
        for name in ("tasks", "descriptors", "daemon_descriptors")
    }
    return Growth(peers=len(peers), **slopes, **beyond)


def _slope(samples: Sequence[tuple[Seconds, ev.Resources]], name: str) -> float:
    times, values = _columns(samples, name)
    return statistics.linear_regression(times, values).slope * SECONDS_PER_MINUTE


def _slope_beyond_links(samples: Sequence[tuple[Seconds, ev.Resources]], name: str) -> float:
    """What is left of the slope when the part that goes with the links is taken out of both."""
    times, values = _columns(samples, name)
    _, links = _columns(samples, "links")
    if min(links) == max(links):
        return _slope(samples, name)
    times, values = _without(times, links), _without(values, links)
    slope, _ = statistics.linear_regression(times, values)
    return slope * SECONDS_PER_MINUTE


def _without(values: Sequence[float], links: Sequence[float]) -> list[float]:
    slope, start = statistics.linear_regression(links, values)
    return [value - start - slope * count for value, count in zip(values, links, strict=True)]


def _columns(
    samples: Sequence[tuple[Seconds, ev.Resources]], name: str
) -> tuple[list[float], list[float]]:
    return [at for at, _ in samples], [float(getattr(sample, name)) for _, sample in samples]
