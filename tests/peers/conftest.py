"""Peers that are scripts: they answer to the flags of ``p2ptrain peer`` and ``bootstrap``."""

from collections.abc import Callable
from pathlib import Path

import pytest

FAKE = """
import json, pathlib, signal, subprocess, sys
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if sys.argv[1] == "bootstrap":
    if {bootstrap!r} == "dies":
        sys.exit("port taken")
    print("others join with: p2ptrain peer --initial-peers /ip4/127.0.0.1/tcp/1/p2p/X", flush=True)
    signal.pause()
assert sys.argv[1] == "peer"
folder = pathlib.Path(flags["--events"]).parent
number = int(folder.name.rpartition("-")[2])
(folder / "flags.json").write_text(json.dumps(flags))
if number in {stranded!r}:
    sys.exit(3)
if number in {failing!r}:
    sys.exit("no memory left")
def say(**event):
    line = json.dumps(dict(at=0.0, peer="P%d" % number, event=event))
    with open(flags["--events"], "a") as log:
        print(line, file=log)
if number in {daemonic!r}:
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
if number not in {silent!r}:
    say(type="PeerStarted", run="r", addresses=[])
    say(type="SeatOpened", stage=number % 2, version=0, reason="hole")
if number in {stepping!r}:
    say(
        type="StepCommitted", epoch=0, stage=number % 2, step=0, chain="", digest="", cover=[],
        expected="", loss=1.0, val_loss=None, skipped=False, tokens=1, seconds=1.0,
    )
if number in {hanging!r}:
    signal.pause()
stage = number % 2
outcome = dict(
    peer="P%d" % number, run="r", finished=True, versions={stage: 1}, chain="",
    tensor_digests={"w%d" % stage: "odd" if number in {odd!r} else "even"},
    false_suspicions=0, peak_rss_bytes=1,
)
pathlib.Path(flags["--result"]).write_text(json.dumps(outcome))
"""

MISBEHAVIOURS = ("failing", "hanging", "silent", "stepping", "odd", "daemonic", "stranded")


def write_program(folder: Path, *, bootstrap: str = "lives", **numbers: object) -> tuple[str, ...]:
    """``numbers``: tuples of the peers that are failing, hanging, silent, stepping, odd or
    daemonic (they leave a process behind when they are killed) or stranded (they find nobody)."""
    script = folder / "fake.py"
    values = {name: numbers.pop(name, ()) for name in MISBEHAVIOURS} | {"bootstrap": bootstrap}
    assert not numbers
    text = FAKE
    for name, value in values.items():
        text = text.replace(f"{{{name}!r}}", repr(value))
    script.write_text(text)
    return (str(script),)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Makes a ``SwarmOptions.program``; its arguments number the peers that misbehave."""
    return lambda **misbehaviour: write_program(tmp_path, **misbehaviour)
