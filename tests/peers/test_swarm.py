"""The swarm: processes started in turn, watched, given up when silent. Peers here are scripts."""

import json
from pathlib import Path

import pytest

from p2ptrain.errors import InternalError
from p2ptrain.run import RunSpec, from_toml
from peers import swarm as module
from peers.children import Children
from peers.progress import Progress
from peers.swarm import Swarm, SwarmOptions

pytestmark = pytest.mark.asyncio

FAKE = """
import json, pathlib, signal, sys
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
if number in {failing!r}:
    sys.exit("no memory left")
def say(**event):
    line = json.dumps(dict(at=0.0, peer="P%d" % number, event=event))
    with open(flags["--events"], "a") as log:
        print(line, file=log)
if number not in {silent!r}:
    say(type="PeerStarted", run="r", addresses=[])
    say(type="SeatOpened", stage=number % 2, version=0, reason="hole")
if number in {hanging!r}:
    signal.pause()
"""


def program(
    folder: Path,
    *,
    bootstrap: str = "lives",
    failing: tuple[int, ...] = (),
    hanging: tuple[int, ...] = (),
    silent: tuple[int, ...] = (),
) -> tuple[str, ...]:
    script = folder / "fake.py"
    values = {"bootstrap": bootstrap, "failing": failing, "hanging": hanging, "silent": silent}
    text = FAKE
    for name, value in values.items():
        text = text.replace(f"{{{name}!r}}", repr(value))
    script.write_text(text)
    return (str(script),)


async def watch(folder: Path, options: SwarmOptions) -> Swarm:
    children = Children(folder)
    swarm = Swarm(options, children, folder, Progress(stages=2, steps=1))
    try:
        async for _ in swarm.run():
            pass
    finally:
        await children.stop()
    return swarm


async def test_all_peers_start_with_one_run_and_one_address(tmp_path: Path) -> None:
    spec = RunSpec(seed=5)
    options = SwarmOptions(
        spec=spec, peers=3, link="10mbit", data=Path("/book"), program=program(tmp_path)
    )
    swarm = await watch(tmp_path, options)
    assert swarm.troubles == []
    assert swarm.progress.seats() == (2, 1)
    assert swarm.peak_rss_bytes > 0
    assert from_toml(read(tmp_path / "run.toml")) == spec
    for number in range(3):
        flags = json.loads(read(tmp_path / f"peer-{number}" / "flags.json"))
        assert flags["--initial-peers"] == "/ip4/127.0.0.1/tcp/1/p2p/X"
        assert flags["--link"] == "10mbit"
        assert flags["--data"] == "/book"
    assert len({member.events for member in swarm.members}) == 3


async def test_a_peer_that_fails_is_told_once_and_the_others_go_on(tmp_path: Path) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=3, program=program(tmp_path, failing=(1,)))
    swarm = await watch(tmp_path, options)
    assert swarm.troubles == ["peer-1 ended with code 1: no memory left"]
    assert len(swarm.progress.started) == 2


async def test_when_all_fail_the_reason_is_the_first(tmp_path: Path) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=2, program=program(tmp_path, failing=(0, 1)))
    with pytest.raises(
        InternalError, match=r"all peers failed; the first: peer-\d ended .* no mem"
    ):
        await watch(tmp_path, options)


async def test_a_silent_swarm_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    options = SwarmOptions(
        spec=RunSpec(), peers=1, program=program(tmp_path, silent=(0,), hanging=(0,))
    )
    with pytest.raises(InternalError, match="no peer has said anything"):
        await watch(tmp_path, options)


async def test_a_bootstrap_that_dies_says_why(tmp_path: Path) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=1, program=program(tmp_path, bootstrap="dies"))
    with pytest.raises(InternalError, match="the bootstrap failed: port taken"):
        await watch(tmp_path, options)


async def test_no_more_than_two_start_at_once(tmp_path: Path) -> None:
    options = SwarmOptions(
        spec=RunSpec(), peers=4, program=program(tmp_path, silent=(0, 1), hanging=(0, 1))
    )
    children = Children(tmp_path)
    swarm = Swarm(options, children, tmp_path, Progress(stages=2, steps=1))
    looks = 0
    try:
        async for _ in swarm.run():
            looks += 1
            assert len(swarm.members) <= 2
            if looks == 3:
                break
    finally:
        assert await children.stop() == 0


def read(path: Path) -> str:
    return path.read_text()
