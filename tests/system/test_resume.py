"""The whole swarm dies at once and comes back from its disks, on real processes.

Three peers train until each has a checkpoint, are killed with SIGKILL, and are started again
with ``--resume``. What they end with is what one process gives that was never disturbed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from p2ptrain.compute.reference import train
from p2ptrain.data import load_corpus, pin
from p2ptrain.observe import events as ev
from p2ptrain.observe.report import Facts, build_report
from p2ptrain.observe.sinks import merge_entries
from p2ptrain.run import digest, from_toml
from peers.outcome import read_outcome, together

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import Program

Start = Callable[..., "Program"]
Answer = Callable[..., tuple[int, str]]

LOCAL = ("--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--no-relay")
SLOW = ("--link", "2mbit,10ms")  # else it is over before it can be killed
PEERS, STEPS, EVERY = 3, 12, 2
SMALL = (
    "model.n_layers=3", f"cut.stages={PEERS}", "model.context=32", "model.d_model=32",
    "model.d_ff=64", "batch.microbatches=16", "batch.sequences=2", f"optimizer.steps={STEPS}",
    "optimizer.warmup_steps=0", "evaluation.every_steps=0", f"checkpoint.every_steps={EVERY}",
)  # fmt: skip


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_swarm_killed_to_the_last_goes_on_from_its_checkpoints(
    start: Start, answer: Answer, tmp_path: Path
) -> None:
    settings = [word for value in SMALL for word in ("--set", value)]
    assert answer("init", *settings)[0] == 0
    book = start("bootstrap", *LOCAL, "--identity-path", "book.key")
    address = book.wait_for(r"--initial-peers (/ip4/127\S+)")[1]

    def life(number: int, *more: str) -> list[Program]:
        return [
            start(
                *("peer", "--initial-peers", address, "--run", "run.toml", *LOCAL),
                *("--identity-path", f"key{peer}", "--checkpoint-dir", f"disk{peer}"),
                *("--events", f"events{number}-{peer}", "--result", f"result{number}-{peer}"),
                *more,
            )
            for peer in range(PEERS)
        ]

    first = life(1, *SLOW)
    for peer in first:
        peer.wait_for(rf"checkpoint of version {EVERY} saved")
    daemons = [peer.p2pd() for peer in first]
    for peer in first:
        peer.kill()
    for peer in first:
        assert peer.ends() != 0
    saved = {
        max(int(step) for step in re.findall(r"checkpoint of version (\d+) saved", peer.output))
        for peer in first
    }

    second = life(2, "--resume")
    origin = int(second[0].wait_for(r"resuming from version (\d+)")[1])
    assert origin in saved
    for peer in second:
        assert peer.ends() == 0, peer.output
        assert f"resuming from version {origin}" in peer.output
    assert not any(daemon.is_running() and daemon.status() != "zombie" for daemon in daemons)

    spec = pin(from_toml((tmp_path / "run.toml").read_text()), None)
    outcomes = [read_outcome(tmp_path / f"result2-{peer}") for peer in range(PEERS)]
    swarm = together([outcome for outcome in outcomes if outcome], stages=PEERS)
    assert swarm.weights_digest == train(spec, load_corpus(spec, None)).weights_digest

    entries = merge_entries(
        tmp_path / f"events{number}-{peer}" for number in (1, 2) for peer in range(PEERS)
    )
    resumed = [e.event.version for e in entries if isinstance(e.event, ev.Resumed)]
    assert set(resumed) == {origin}
    facts = Facts(
        run_id=digest(spec), commit="", seed=0, peers=PEERS, stages=PEERS,
        replicas=list(swarm.replicas), seconds=1.0,
    )  # fmt: skip
    counts = build_report(entries, facts).microbatches
    assert (counts.lost, counts.duplicated) == (0, 0)
    assert counts.committed >= STEPS * 16
