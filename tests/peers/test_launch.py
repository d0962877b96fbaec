"""Starting: what a newcomer is told, by whom it joins, and on which side of a partition."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from p2ptrain.errors import InternalError
from p2ptrain.net.partition import Cut
from p2ptrain.run import RunSpec, from_toml
from p2ptrain.units import PeerId, Stage, Step
from peers.children import Children
from peers.launch import CUT_FILE, Launcher, SwarmOptions
from peers.member import Member

Program = Callable[..., tuple[str, ...]]

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def launcher(tmp_path: Path, program: Program) -> AsyncIterator[Launcher]:
    """With the address book up."""
    children = Children(tmp_path)
    options = SwarmOptions(spec=RunSpec(seed=6), peers=3, severable=True, program=program())
    launcher = Launcher(options, children, tmp_path)
    try:
        await launcher.start_bootstrap()
        yield launcher
    finally:
        await children.stop(grace_seconds=0.0)


async def started(launcher: Launcher, number: int, *others: Member) -> tuple[Member, str]:
    """A peer that was started, and the address that it was given."""
    member = await launcher.start_peer(number, others)
    await member.child.process.wait()
    member.peer = PeerId(f"P{number}")
    return member, flags_of(member)["--initial-peers"]


def flags_of(member: Member) -> dict[str, str]:
    flags: dict[str, str] = json.loads((member.folder / "flags.json").read_bytes())
    return flags


def reaches(member: Member, peer: str) -> bool:
    cut = Cut(member.folder / CUT_FILE)
    cut.look()
    return not cut.severs(peer)


def spec_of(member: Member) -> RunSpec:
    return from_toml(Path(flags_of(member)["--run"]).read_text())


async def test_all_train_the_same_run_each_with_files_of_its_own(launcher: Launcher) -> None:
    members = [(await started(launcher, number))[0] for number in range(2)]
    assert [spec_of(member) for member in members] == [RunSpec(seed=6)] * 2
    for flag in ("--identity-path", "--checkpoint-dir", "--events", "--result"):
        assert len({flags_of(member)[flag] for member in members}) == 2


async def test_newcomers_join_by_the_address_book_and_after_its_death_by_a_peer(
    launcher: Launcher,
) -> None:
    serving, address = await started(launcher, 0)
    assert address.endswith("/p2p/X")
    idle, _ = await started(launcher, 1)
    serving.seats[Stage(0)], serving.addresses = Step(3), ("/ip4/127.0.0.1/tcp/2/p2p/P0",)
    launcher.kill_bootstrap()
    assert launcher.bootstrap is None
    _, address = await started(launcher, 2, idle, serving)
    assert address == "/ip4/127.0.0.1/tcp/2/p2p/P0"


async def test_a_partition_has_two_sides_and_newcomers_come_on_the_address_books(
    launcher: Launcher,
) -> None:
    inside, outside = [(await started(launcher, number))[0] for number in range(2)]
    assert flags_of(inside)["--cut-file"] == str(inside.folder / CUT_FILE)
    assert launcher.split([inside, outside], ["peer-0"]) == ["P0"]
    newcomer, _ = await started(launcher, 2)
    reached = {
        member.name: [peer for peer in ("P0", "P1", "P2", "X") if reaches(member, peer)]
        for member in (inside, outside, newcomer)
    }
    assert reached == {
        "peer-0": ["P0"],
        "peer-1": ["P1", "P2", "X"],
        "peer-2": ["P1", "P2", "X"],
    }
    launcher.mend([inside, outside, newcomer])
    assert all(reaches(member, "P0") and reaches(member, "X") for member in (inside, newcomer))
    assert reaches((await started(launcher, 3))[0], "P0")


async def test_a_bootstrap_that_dies_says_why(tmp_path: Path, program: Program) -> None:
    options = SwarmOptions(spec=RunSpec(), peers=1, program=program(bootstrap="dies"))
    with pytest.raises(InternalError, match="the bootstrap failed: port taken"):
        await Launcher(options, Children(tmp_path), tmp_path).start_bootstrap()
