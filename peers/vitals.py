"""What this peer's process holds, told every few seconds: memory, descriptors, threads, tasks.

    with watched(emit, daemon_pid, links):
        ...                                     # Resources events; report: observe/growth.py

A peer counts itself, because only it can see its tasks, and because it is then counted in
the same way wherever it runs. Its p2pd is a child of its own and is counted beside it.

Invariants: a sample takes a few system calls (0.3 ms) and no lock; after the ``with`` no
timer is left; a p2pd that has just died counts as nothing.

Refused: a task that sleeps. It would be one of those that it counts.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil

from p2ptrain.observe.events import Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from p2ptrain.observe.events import Emit

SAMPLE_SECONDS = 5.0
"""Twelve samples a minute draw a slope; their cost is not to be measured."""


@contextmanager
def watched(
    emit: Emit, daemon_pid: Callable[[], int | None], links: Callable[[], int]
) -> Iterator[None]:
    """Tell what this process and its p2pd hold, now and every few seconds.

    ``daemon_pid``, ``links``: which process p2pd is, and how many links there are, when asked.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def tell() -> None:
        nonlocal timer
        emit(sample(daemon_pid(), links()))
        timer = loop.call_later(SAMPLE_SECONDS, tell)

    tell()
    try:
        yield
    finally:
        assert timer is not None
        timer.cancel()


def sample(daemon_pid: int | None, links: int) -> Resources:
    """What is held at this instant. Call it on the loop."""
    own = psutil.Process()
    daemon_rss_bytes = daemon_descriptors = 0
    if daemon_pid is not None:
        with contextlib.suppress(psutil.Error):
            daemon = psutil.Process(daemon_pid)
            daemon_rss_bytes = daemon.memory_info().rss
            daemon_descriptors = daemon.num_fds()
    return Resources(
        rss_bytes=own.memory_info().rss,
        descriptors=own.num_fds(),
        threads=own.num_threads(),
        tasks=len(asyncio.all_tasks()),
        daemon_rss_bytes=daemon_rss_bytes,
        daemon_descriptors=daemon_descriptors,
        links=links,
    )
