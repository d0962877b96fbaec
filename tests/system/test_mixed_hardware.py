"""Peers whose arithmetic differs train one run: other kernels and thread counts, real processes.

``ATEN_CPU_CAPABILITY`` makes torch compute with the kernels of a lesser processor, which sum in
another order: the same machine rounds in two ways, as two machines would.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.system.conftest import Program

STEPS = 12
MINUTES_SECONDS = 240.0  # two peers that share two cores with whatever else runs

RUN = (
    *("--set", "sync.agreement=canonical", "--set", "sync.canonical_steps=4"),
    *(
        "--set",
        "checkpoint.every_steps=0",
        "--set",
        "cut.stages=1",
        "--set",
        "batch.microbatches=24",  # who is slow to step must not be two steps behind by then
    ),
    *("--set", f"optimizer.steps={STEPS}", "--set", "sync.start_replicas=2"),
)

KERNELS = ("default", "avx2")
"""Without vector instructions, and with those of ten years ago: most machines have both."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def digest_of(folder: Path, kernels: str) -> str:
    """Of the weights after two steps of one process with these kernels."""
    done = subprocess.run(
        [sys.executable, "-m", "peers.reference", "--run", "run.toml", "--steps", "2", "--json"],
        cwd=folder,
        env=os.environ | {"ATEN_CPU_CAPABILITY": kernels, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        text=True,
    )
    return str(json.loads(done.stdout.splitlines()[-1])["weights_digest"])


def events(folder: Path, peer: str) -> Iterator[dict[str, object]]:
    for line in (folder / f"{peer}.jsonl").read_text().splitlines():
        yield json.loads(line)["event"]


@pytest.mark.parametrize("adoption", ["exact", "int8"])
def test_peers_that_round_differently_agree_on_sums_and_adopt_one_state(
    start: Callable[..., Program],
    answer: Callable[..., tuple[int, str]],
    tmp_path: Path,
    adoption: str,
) -> None:
    how = ("--set", f"sync.adoption={adoption}")
    code, said = answer("init", "--preset", "tiny", "-o", "run.toml", *RUN, *how)
    assert code == 0, said
    assert (
        len({digest_of(tmp_path, kernels) for kernels in KERNELS}) == 2
    )  # they do round otherwise
    book = start("bootstrap", "--port", "0", "--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--no-relay")
    address = book.wait_for(r"--initial-peers (\S+)")[1]

    def peer(name: str, threads: int, kernels: str) -> Program:
        return start(
            *("peer", "--run", "run.toml", "--initial-peers", address, "--no-relay"),
            *("--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--identity-path", f"{name}.key"),
            *("--threads", str(threads), "--events", f"{name}.jsonl"),
            *("--result", f"{name}.json"),
            environment={"ATEN_CPU_CAPABILITY": kernels, "OMP_NUM_THREADS": "1"},
        )

    peers = [
        peer(f"peer{n}", threads, kernels)
        for n, (threads, kernels) in enumerate(zip((1, 2), KERNELS, strict=True))
    ]
    for one in peers:
        assert one.ends(seconds=MINUTES_SECONDS) == 0, one.output
    results = [json.loads((tmp_path / f"peer{n}.json").read_bytes()) for n in range(2)]
    assert all(result["finished"] for result in results)
    assert results[0]["tensor_digests"] == results[1]["tensor_digests"]
    assert results[0]["chain"] == results[1]["chain"]

    roots: defaultdict[object, set[object]] = defaultdict(set)
    sums: defaultdict[object, set[object]] = defaultdict(set)
    losses: list[float] = []
    alarms: list[object] = []
    for event in (event for n in range(2) for event in events(tmp_path, f"peer{n}")):
        if event["type"] == "StateAdopted":
            roots[event["version"]].add(event["root"])
        elif event["type"] == "StepCommitted":
            sums[event["step"]].add(event["digest"])
            loss = event["loss"]
            losses += [loss] if isinstance(loss, float) else []
        elif event["type"] == "Alarm":
            alarms.append(event["reason"])
    assert not [alarm for alarm in alarms if "no state to adopt" in str(alarm)]
    assert set(roots) == {4, 8, 12}
    assert {len(found) for found in roots.values()} == {1}
    assert {len(found) for found in sums.values()} == {1}
    assert min(losses) < losses[0] - 1.0


def test_a_bitwise_run_refuses_threads_of_ones_own(answer: Callable[..., tuple[int, str]]) -> None:
    code, said = answer(
        *("peer", "--new-swarm", "--preset", "tiny", "--threads", "3", "--no-relay"),
        *("--host-maddrs", "/ip4/127.0.0.1/tcp/0"),
    )
    assert code == 4
    assert re.search(r"1 threads everywhere: leave out --threads", said)
