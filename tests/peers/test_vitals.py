"""Vitals: what a process holds, counted by itself, and its daemon beside it."""

import asyncio
import os
import socket
import threading

import psutil
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.sim.loop import run
from peers.vitals import SAMPLE_SECONDS, sample, watched

NOBODY = 2**22 + 1  # beyond every process id of Linux


@pytest.mark.asyncio
async def test_a_sample_counts_what_was_opened() -> None:
    before = sample(None, 0)
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    with socket.socket(), socket.socket():
        thread.start()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
            after = sample(None, 0)
    over.set()
    thread.join()
    assert after.descriptors - before.descriptors == 2
    assert after.threads - before.threads == 1
    assert after.tasks - before.tasks == 1
    assert after.rss_bytes > 10**7


@pytest.mark.asyncio
async def test_the_daemon_is_counted_apart() -> None:
    here = sample(os.getpid(), 0)  # any process will do
    assert here.daemon_descriptors == psutil.Process().num_fds()
    assert here.daemon_rss_bytes > 10**7
    for gone in (sample(None, 0), sample(NOBODY, 0)):
        assert (gone.daemon_rss_bytes, gone.daemon_descriptors) == (0, 0)


def test_samples_come_at_once_and_then_now_and_then_until_the_end() -> None:
    told: list[ev.AnyEvent] = []

    async def live() -> None:
        with watched(told.append, lambda: None, lambda: 7):
            await asyncio.sleep(2.5 * SAMPLE_SECONDS)
        await asyncio.sleep(2 * SAMPLE_SECONDS)

    run(live(), ceiling_seconds=60.0)
    assert len(told) == 3
    assert [event.links for event in told if isinstance(event, ev.Resources)] == [7, 7, 7]
