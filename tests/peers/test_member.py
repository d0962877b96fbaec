"""A member is what its log has said: where it is, what it holds, whether it took part."""

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Digest, PeerId, RunId, Stage, Step
from peers.children import Children
from peers.member import Member
from peers.outcome import PeerOutcome
from peers.progress import Tail

ME = PeerId("12D3KooWme")


def committed(stage: int, step: int) -> ev.StepCommitted:
    return ev.StepCommitted(
        epoch=0,
        stage=Stage(stage),
        step=Step(step),
        chain=Chain(b""),
        digest=Digest(b""),
        cover=(),
        expected=b"",
        loss=None,
        val_loss=None,
        skipped=False,
        tokens=0,
        seconds=1.0,
    )


def write(path: Path, *events: ev.AnyEvent) -> None:
    with path.open("ab") as file:
        file.writelines(
            msgspec.json.encode(ev.Entry(at=0.0, peer=ME, event=event)) + b"\n" for event in events
        )


@pytest.mark.asyncio
async def test_a_member_learns_who_it_is_and_what_it_serves_from_its_log(tmp_path: Path) -> None:
    child = await Children(tmp_path).start("peer-7", ["-c", ""])
    await child.process.wait()
    member = Member(child=child, tail=Tail(tmp_path / "events.jsonl"), folder=tmp_path)
    assert (member.name, member.peer, list(member.news())) == ("peer-7", None, [])

    started = ev.PeerStarted(run=RunId("r"), addresses=("/ip4/127.0.0.1/tcp/1",))
    opened = [ev.SeatOpened(stage=Stage(s), version=Step(3), reason="hole") for s in (0, 1)]
    write(member.events, started, *opened)
    assert len(list(member.news())) == 3
    assert (member.peer, member.addresses) == (ME, ("/ip4/127.0.0.1/tcp/1",))
    assert member.seats == {0: 3, 1: 3}
    assert not member.has_stepped

    closed = ev.SeatClosed(stage=Stage(1), reason="given away")
    write(member.events, committed(0, 3), closed, committed(1, 3))
    assert len(list(member.news())) == 3
    assert member.seats == {0: 4}  # a seat that was left comes not back by a late line
    assert member.has_stepped


def left(*, finished: bool) -> PeerOutcome:
    return PeerOutcome(
        peer=ME,
        run="r",
        finished=finished,
        versions={},
        tensor_digests={},
        chain="",
        false_suspicions=0,
        peak_rss_bytes=1,
    )


@pytest.mark.asyncio
async def test_who_took_part_owes_a_finished_run_unless_chaos_struck_it(tmp_path: Path) -> None:
    child = await Children(tmp_path).start("peer-7", ["-c", ""])
    await child.process.wait()
    member = Member(child=child, tail=Tail(tmp_path / "events.jsonl"), folder=tmp_path)
    assert member.owes(None)
    assert not member.owes(left(finished=False))  # it came too late
    member.seats[Stage(0)], member.has_stepped = Step(4), True
    assert member.owes(left(finished=False))
    assert not member.owes(left(finished=True))
    member.killed = True
    assert not member.owes(None)


@pytest.mark.asyncio
async def test_who_finds_nobody_because_they_died_is_stranded(tmp_path: Path) -> None:
    children = Children(tmp_path)
    child = await children.start("peer-7", ["-c", ""])
    way = await children.start("bootstrap", ["-c", "import signal; signal.pause()"])
    await child.process.wait()
    tail = Tail(tmp_path / "events.jsonl")
    member = Member(child=child, tail=tail, folder=tmp_path, ways_in=(way,))
    assert not member.is_stranded(3)
    await children.stop(grace_seconds=0.0)
    assert member.is_stranded(3)
    assert not member.is_stranded(1)
    member.peer = ME
    assert not member.is_stranded(3)  # it had joined: something else is wrong


def test_asyncio_and_uvloop_count_time_from_the_same_instant() -> None:
    uvloop = pytest.importorskip("uvloop")
    if sys.platform not in {"linux", "darwin"}:
        pytest.skip("logs of several processes are merged where simulate runs")

    async def now() -> float:
        return asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        theirs = runner.run(now())
    assert abs(asyncio.run(now()) - theirs) < 5.0
