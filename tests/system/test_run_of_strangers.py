"""A run as strangers live it: an address book, one who begins, others with the address alone.

One story in real processes, because each chapter needs what came before it: the stages get
covered, a newcomer takes the weakest, the address book dies, a peer is killed, others leave.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.system.conftest import Program

Start = Callable[..., "Program"]
Answer = Callable[..., tuple[int, str]]

LOCAL = ("--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--no-relay")
SLOW = ("--link", "3mbit,10ms")  # else training takes the cores from those who start
SMALL = (
    "model.n_layers=3", "cut.stages=3", "model.context=32", "model.d_model=32", "model.d_ff=64",
    "batch.microbatches=64", "batch.sequences=2", "optimizer.steps=1000000",
)  # fmt: skip


PLAIN = """
import asyncio, sys
from hivemind.dht.node import DHTNode

async def main(address, key):
    node = await DHTNode.create(initial_peers=[address], client_mode=True)
    print(*sorted((await node.get(key, latest=True)).value))
    await node.shutdown()

asyncio.run(main(*sys.argv[1:]))
"""


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def address_of(program: Program) -> str:
    return program.wait_for(r"--initial-peers (/ip4/127\S+)")[1]


def steps_after(program: Program, step: int, *, count: int = 3) -> None:
    """Wait until ``program`` has taken ``count`` steps more than ``step``."""
    wanted = "|".join(str(number) for number in range(step + count, step + 10 * count))
    program.wait_for(rf"step ({wanted}) ")


def last_step(program: Program) -> int:
    words = program.output.rpartition(" step ")[2].split()
    return int(words[0]) if words and words[0].isdecimal() else 0


def held(output: str) -> set[str]:
    """The stages that a peer says it serves."""
    stages: set[str] = set()
    for word, stage in re.findall(r" (serving|left) stage (\d)", output):
        (stages.add if word == "serving" else stages.discard)(stage)
    return stages


def one_of_two(peers: list[Program]) -> Program:
    """Once each serves one stage: a peer whose stage another serves, too."""
    for peer in peers:
        peer.wait_until(lambda output: len(held(output)) == 1)
    stages = [held(peer.output) for peer in peers]
    return next(peer for peer in reversed(peers) if stages.count(held(peer.output)) > 1)


def seats(status: dict[str, Any]) -> list[int]:
    """Peers that serve, by stage."""
    return [sum(seat["state"] == "serving" for seat in stage) for stage in status["stages"]]


def public_records(address: str, key: str) -> str:
    """What a program that knows nothing of ours, but hivemind, reads under ``key``."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, address, key],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def gone(*daemons: psutil.Process) -> bool:
    _, alive = psutil.wait_procs(daemons, timeout=10)
    return not alive


def look(answer: Answer, address: str, run_id: str, founder: Program) -> None:
    """Anybody may: by ``status``, or with a bare hivemind node."""
    code, text = answer("status", "--initial-peers", address, "--json")
    assert code == 0
    (status,) = json.loads(text)["runs"]
    assert (status["run"], status["steps"]) == (run_id, 1000000)
    assert min(seats(status)) >= 1
    assert status["step"] >= 0
    assert status["loss"] > 0
    assert any(seat["rate"] > 0 for stage in status["stages"] for seat in stage)
    owners = public_records(address, f"p2ptrain/1/{run_id}/spec")
    assert founder.wait_for(r"peer (12D3Koo\w+)")[1] in owners


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_strangers_train_outlive_the_address_book_and_leave(
    start: Start, answer: Answer, tmp_path: Path
) -> None:
    assert answer("init", *settings(*SMALL))[0] == 0
    book = start("bootstrap", *LOCAL, "--identity-path", "book.key")
    address = address_of(book)

    # One begins without saying that it is the first; two come with the address alone.
    founder = start("peer", "--initial-peers", address, "--run", "run.toml", *LOCAL, *SLOW)
    run_id = founder.wait_for(r"run ([0-9a-f]{32})")[1]
    founder.wait_for("serving stage")
    others = [
        start("peer", "--initial-peers", address, "--identity-path", f"key{number}", *LOCAL, *SLOW)
        for number in range(2)
    ]
    for peer in (founder, *others):
        peer.wait_for(r"step \d+ .*loss")

    # A fourth takes the weakest stage, loads its state from there and counts.
    fourth = start("peer", "--initial-peers", address, "--identity-path", "key4", *LOCAL, *SLOW)
    fourth.wait_for(r"stage \d: version \d+, .* MB")
    fourth.wait_for("the weakest|nobody serves")
    fourth.wait_for(r"step \d+ .*loss")

    look(answer, address, run_id, founder)

    # Another RunSpec is another run: nobody begins one by mistake.
    assert answer("init", "-o", "other.toml", *settings(*SMALL, "seed=1"))[0] == 0
    joining = ("peer", "--initial-peers", address, "--run", "other.toml")
    code, text = answer(*joining, "--identity-path", "key5", *LOCAL)
    assert (code, text.count("\n")) == (4, 0)
    assert run_id in text

    # The address book dies: training goes on, no daemon is left behind. A peer leaves.
    victim = one_of_two([founder, *others, fourth])
    staying = [peer for peer in (founder, *others, fourth) if peer is not victim]
    daemon, step = book.p2pd(), last_step(staying[0])
    book.kill()
    steps_after(staying[0], step)
    assert gone(daemon)
    daemon = victim.p2pd()
    victim.ctrl_c()
    assert victim.ends() == 130
    assert gone(daemon)

    # Two leave in good order and hand over what only they hold; the last does not wait.
    daemons = [peer.p2pd() for peer in staying]
    for peer in staying[:2]:
        peer.ctrl_c()
        assert peer.ends() == 130
        assert "leaving: drained" in peer.output
    last = staying[2]
    last.ctrl_c()
    last.wait_for("finishing this step")
    last.ctrl_c()
    assert last.ends() == 130
    assert gone(*daemons)
    assert answer("status", "--initial-peers", address)[0] == 3  # it sweeps up after the killed
    assert not list((tmp_path / "tmp").glob("p2ptrain-*"))
