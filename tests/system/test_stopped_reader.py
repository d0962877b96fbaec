"""A real peer stops reading: its neighbours go round it, and nothing grows beyond its bound.

Real processes, real libp2p: SIGSTOP holds the peer's Python, while its p2pd goes on taking
bytes until its buffers are full, which is the worst that a peer can do without lying.
"""

import os
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from p2ptrain.data import pin
from p2ptrain.observe import events as ev
from p2ptrain.observe.sinks import read_entries
from p2ptrain.run import Batch, Cut, Evaluation, Model, Optimizer, RunSpec, Sync, validate
from peers.children import Children
from peers.launch import SwarmOptions
from peers.member import Member
from peers.progress import Progress
from peers.swarm import Swarm

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(170)]

STEPS = 60
HELD_STEPS = 3  # that the others must take while one does not read


def spec() -> RunSpec:
    spec = RunSpec(
        name="one stops reading",
        model=Model(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=128, context=64),
        cut=Cut(stages=2),
        batch=Batch(sequences=2, microbatches=16),
        optimizer=Optimizer(steps=STEPS, warmup_steps=1),
        sync=Sync(start_replicas=2),
        evaluation=Evaluation(microbatches=0),
    )
    return validate(pin(spec, None))


def serves(member: Member, stage: int) -> bool:
    seats = [e.event for e in read_entries(member.events) if isinstance(e.event, ev.SeatOpened)]
    return bool(seats) and seats[-1].stage == stage


@pytest.mark.asyncio
async def test_a_stopped_reader_is_gone_round_and_no_bound_breaks(tmp_path: Path) -> None:
    children = Children(tmp_path)
    progress = Progress(stages=2, steps=STEPS)
    swarm = Swarm(SwarmOptions(spec=spec(), peers=4), children, tmp_path, progress)
    held: Member | None = None
    stopped_at = released_at = None
    try:
        async with aclosing(swarm.run()) as looks:
            async for seen in looks:
                if held is None and seen.step is not None and seen.step >= 2:
                    held = next(member for member in swarm.members if serves(member, 1))
                    os.kill(held.child.process.pid, signal.SIGSTOP)
                    stopped_at = seen.step
                elif stopped_at is not None and released_at is None and seen.step is not None:
                    if seen.step < stopped_at + HELD_STEPS:
                        continue
                    assert held is not None
                    os.kill(held.child.process.pid, signal.SIGCONT)
                    released_at = seen.step
                    swarm.leave()
    finally:
        if held is not None and released_at is None:
            os.kill(held.child.process.pid, signal.SIGCONT)
        orphans = await children.stop()
    assert released_at is not None
    assert orphans == 0

    entries = [e for member in swarm.members for e in read_entries(member.events)]
    suspected = [e.event for e in entries if isinstance(e.event, ev.Suspected)]
    assert suspected, "the fault did not fire: nobody missed the stopped peer"
    bounds = [e.event for e in entries if isinstance(e.event, ev.Bounds)]
    assert bounds
    for bound in bounds:
        assert bound.queue <= bound.queue_bound
        assert bound.parked <= bound.parked_bound
        assert bound.retained_bytes <= bound.retained_bound
