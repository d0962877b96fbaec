"""The swarm: processes started in turn, watched, given up when silent. Peers here are scripts."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from p2ptrain.errors import InternalError
from p2ptrain.run import RunSpec, from_toml
from peers import swarm as module
from peers.children import Child, Children
from peers.launch import SwarmOptions
from peers.progress import Progress
from peers.swarm import Swarm

Program = Callable[..., tuple[str, ...]]

pytestmark = pytest.mark.asyncio


async def watch(folder: Path, options: SwarmOptions) -> Swarm:
    children = Children(folder)
    swarm = Swarm(options, children, folder, Progress(stages=2, steps=1))
    try:
        async for _ in swarm.run():
            pass
    finally:
        await children.stop()
    return swarm


async def test_all_peers_start_with_one_run_and_one_address(
    tmp_path: Path, program: Program
) -> None:
    spec = RunSpec(seed=5)
    options = SwarmOptions(spec=spec, peers=3, link="10mbit", data=Path("/book"), program=program())
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


async def test_a_peer_that_fails_is_told_once_and_the_others_go_on(
    tmp_path: Path, program: Program
) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=3, program=program(failing=(1,)))
    swarm = await watch(tmp_path, options)
    assert swarm.troubles == ["peer-1 ended with code 1: no memory left"]
    assert len(swarm.progress.started) == 2


async def test_when_all_fail_the_reason_is_the_first(tmp_path: Path, program: Program) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=2, program=program(failing=(0, 1)))
    with pytest.raises(
        InternalError, match=r"all peers failed; the first: peer-\d ended .* no mem"
    ):
        await watch(tmp_path, options)


async def test_a_silent_swarm_is_given_up(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.3)
    options = SwarmOptions(spec=RunSpec(), peers=1, program=program(silent=(0,), hanging=(0,)))
    with pytest.raises(InternalError, match="no peer has said anything"):
        await watch(tmp_path, options)


async def test_a_swarm_that_talks_but_does_not_step_is_given_up(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NO_STEP_SECONDS", 0.3)
    both = program(stepping=(0,), hanging=(0, 1))
    options = SwarmOptions(spec=RunSpec(), peers=2, program=both)
    with pytest.raises(InternalError, match=r"no step was taken for 0 s: stage 0: nothing yet; "):
        await watch(tmp_path, options)


async def test_planned_pauses_are_waited_for(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NO_STEP_SECONDS", 0.3)
    both = program(stepping=(0,), hanging=(0, 1))
    options = SwarmOptions(spec=RunSpec(), peers=2, program=both, pause_seconds=0.6)
    with pytest.raises(InternalError, match="no step was taken for 1 s"):
        await watch(tmp_path, options)


async def watch_others_finish(
    folder: Path, options: SwarmOptions, *, after: Callable[[Swarm], object]
) -> Swarm:
    """Watch the peers of ``options`` and, once ``after`` holds, two more to the end."""
    children = Children(folder)
    swarm = Swarm(options, children, folder, Progress(stages=2, steps=1))
    clock = asyncio.get_running_loop().time
    invited = False
    try:
        async with asyncio.timeout(15), aclosing(swarm.run()) as looks:
            async for _ in looks:
                if not invited and after(swarm):
                    invited = True
                    for _ in range(2):
                        swarm.invite(at=clock(), why="join")
    finally:
        await children.stop(grace_seconds=0.0)
    assert invited
    return swarm


async def test_who_is_stranded_by_chaos_is_no_trouble_and_tries_again(
    tmp_path: Path, program: Program
) -> None:
    children = Children(tmp_path)
    options = SwarmOptions(spec=RunSpec(), peers=1, program=program(hanging=(0, 2), stranded=(1,)))
    swarm = Swarm(options, children, tmp_path, Progress(stages=2, steps=1))
    try:
        async with asyncio.timeout(15), aclosing(swarm.run()) as looks:
            async for _ in looks:
                if len(swarm.members) == 2:
                    swarm.launcher.kill_bootstrap()
                elif len(swarm.members) == 1 and swarm.members[0].seats:
                    swarm.invite(at=0.0, why="join")
                if len(swarm.members) == 3 and swarm.members[2].seats:
                    break
    finally:
        await children.stop(grace_seconds=0.0)
    assert swarm.troubles == []
    assert [member.dismissed for member in swarm.members] == [False, True, False]


async def test_who_is_stuck_is_told_and_sent_home(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", 0.3)
    some = program(stepping=(0, 1, 2), hanging=(0,))
    options = SwarmOptions(spec=RunSpec(), peers=1, program=some)
    swarm = await watch_others_finish(
        tmp_path, options, after=lambda swarm: any(m.has_stepped for m in swarm.members)
    )
    assert swarm.troubles == ["peer-0 did not finish with the others"]
    assert [member.name for member in swarm.members if member.dismissed] == ["peer-0"]


async def test_who_never_takes_part_is_told_and_sent_home(tmp_path: Path, program: Program) -> None:
    some = program(stepping=(1, 2), hanging=(0,))  # scripts say that they joined at instant 0
    options = SwarmOptions(spec=RunSpec(), peers=1, program=some)
    swarm = await watch_others_finish(
        tmp_path, options, after=lambda swarm: any(m.joined_at == 0.0 for m in swarm.members)
    )
    (trouble,) = swarm.troubles
    assert trouble.startswith("peer-0 joined ")
    assert trouble.endswith(" s ago, took no step")
    assert [member.name for member in swarm.members if member.dismissed] == ["peer-0"]


async def test_a_bootstrap_that_ends_by_itself_is_told(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []
    start = Children.start

    async def remembered(children: Children, name: str, arguments: Sequence[str]) -> Child:
        started.append(await start(children, name, arguments))
        return started[-1]

    monkeypatch.setattr(Children, "start", remembered)
    children = Children(tmp_path)
    options = SwarmOptions(spec=RunSpec(), peers=1, program=program(hanging=(0,)))
    swarm = Swarm(options, children, tmp_path, Progress(stages=2, steps=1))
    try:
        async with asyncio.timeout(15), aclosing(swarm.run()) as looks:
            async for _ in looks:
                if started[0].alive:
                    started[0].process.kill()
                if swarm.troubles:
                    break
    finally:
        await children.stop(grace_seconds=0.0)
    (trouble,) = swarm.troubles
    assert trouble.startswith("the bootstrap ended: others join with")


async def test_no_more_than_two_start_at_once(tmp_path: Path, program: Program) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=4, program=program(silent=(0, 1), hanging=(0, 1)))
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


async def test_who_leaves_while_the_bootstrap_starts_starts_nobody(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(tmp_path)
    options = SwarmOptions(spec=RunSpec(), peers=2, program=program())
    swarm = Swarm(options, children, tmp_path, Progress(stages=2, steps=1))
    begin = children.start

    async def interrupted(name: str, arguments: Sequence[str]) -> Child:
        child = await begin(name, arguments)
        swarm.leave()  # the signal ends it before it has said its address
        await child.process.wait()
        child.log.write_text("")
        return child

    monkeypatch.setattr(children, "start", interrupted)
    assert [state async for state in swarm.run()] == []
    assert swarm.members == []
    await children.stop()
