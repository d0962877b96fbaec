"""Chaos, carried out: on scripts here, that wait; real peers: tests/system/test_chaos.py."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from p2ptrain.observe import events as ev
from p2ptrain.observe.sinks import MemorySink
from p2ptrain.run import Cut, RunSpec
from p2ptrain.sim.faults import parse
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from peers import injector as module
from peers.chaos import Chaos
from peers.children import Children
from peers.injector import Injector
from peers.launch import SwarmOptions
from peers.progress import Progress
from peers.swarm import Swarm

Program = Callable[..., tuple[str, ...]]

pytestmark = pytest.mark.asyncio

SPEC = RunSpec(cut=Cut(stages=2))
STOPPED = psutil.STATUS_STOPPED


def clock() -> float:
    return asyncio.get_running_loop().time()


@dataclass(kw_only=True)
class Struck:
    """A swarm of scripts under chaos."""

    swarm: Swarm
    injector: Injector
    looks: AsyncGenerator[Progress, None]
    sink: MemorySink = field(default_factory=MemorySink)
    said: list[str] = field(default_factory=list)

    def fired(self) -> list[str]:
        return [e.event.fault for e in self.sink.entries if isinstance(e.event, ev.FaultFired)]

    def train(self, step: int) -> None:
        """As if the swarm had taken ``step`` of ten."""
        event = ev.StepCommitted(
            epoch=0,
            stage=Stage(0),
            step=Step(step),
            chain=Chain(b""),
            digest=Digest(b""),
            cover=(),
            expected=b"",
            loss=1.0,
            val_loss=None,
            skipped=False,
            tokens=1,
            seconds=1.0,
        )
        self.swarm.hear(ev.Entry(at=0.0, peer=PeerId("somebody"), event=event), now=clock())

    async def until(self, holds: Callable[[], object]) -> None:
        """Look and strike until something holds."""
        async with asyncio.timeout(15):
            async for _ in self.looks:
                self.injector.tick(now=clock())
                if holds():
                    return
        raise AssertionError("the swarm has ended")


@asynccontextmanager
async def struck(folder: Path, program: tuple[str, ...], plan: str) -> AsyncIterator[Struck]:
    """Four peers that hang once they serve, two a stage; chaos by ``plan``."""
    children = Children(folder)
    options = SwarmOptions(spec=SPEC, peers=4, program=program)
    swarm = Swarm(options, children, folder, Progress(stages=2, steps=9))
    sink, said = MemorySink(), list[str]()
    try:
        async with asyncio.TaskGroup() as tasks:
            injector = Injector(
                swarm,
                Chaos(parse(plan), random.Random(0)),
                steps=10,
                sink=sink,
                say=said.append,
                tasks=tasks,
            )
            swarm.arrived = injector.arrived
            async with aclosing(swarm.run()) as looks:
                yield Struck(swarm=swarm, injector=injector, looks=looks, sink=sink, said=said)
            injector.end(now=clock())
    finally:
        await children.stop(grace_seconds=0.0)


def serving(swarm: Swarm, count: int) -> bool:
    return sum(bool(member.seats) for member in swarm.living()) == count


HANGING = tuple(range(8))


async def test_a_killed_peer_is_no_trouble_and_another_comes(
    tmp_path: Path, program: Program
) -> None:
    plan = "kill=0.1%/min:min=1:respawn=0"
    async with struck(tmp_path, program(hanging=HANGING), plan) as it:

        def replaced() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return len(it.swarm.members) == 5 and serving(it.swarm, 4)

        await it.until(replaced)
        (dead,) = (member for member in it.swarm.members if member.killed)
        assert it.swarm.troubles == []
        assert it.fired() == ["kill", "respawn"]
        assert it.sink.entries[0].peer == dead.peer
        assert it.said[0].startswith(f"fault kill on {dead.name} (stage ")
        assert sum(it.swarm.progress.seats()) == 4
        identities = [member.folder / "identity" for member in it.swarm.members]
        assert len(set(identities)) == 5


async def test_a_daemon_that_outlives_its_killed_peer_is_told(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WIDOW_SECONDS", 0.1)
    plan = "kill=0.1%/min:min=1:respawn=never"
    async with struck(tmp_path, program(hanging=HANGING, daemonic=HANGING), plan) as it:

        def told() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return bool(it.swarm.troubles)

        await it.until(told)
        (dead,) = (member for member in it.swarm.members if member.killed)
        assert it.swarm.troubles == [f"p2pd outlived {dead.name}, which was killed"]


async def test_a_frozen_peer_stands_still_until_it_is_let_go(
    tmp_path: Path, program: Program
) -> None:
    async with struck(tmp_path, program(hanging=HANGING), "freeze=1:60s") as it:

        def states() -> list[str]:
            return [psutil.Process(m.child.process.pid).status() for m in it.swarm.living()]

        def frozen() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return STOPPED in states()

        await it.until(frozen)
        assert "Python" in it.said[0]  # by this seed; scripts have no p2pd that could freeze
        it.injector.tick(now=clock() + 61.0)
        assert it.fired() == ["freeze", "thaw"]
        await it.until(lambda: STOPPED not in states())


async def test_a_slow_peer_stands_still_in_turns_and_runs_at_the_end(
    tmp_path: Path, program: Program
) -> None:
    async with struck(tmp_path, program(hanging=HANGING), "slow=100x:1") as it:

        def stopped() -> int:
            found = [psutil.Process(m.child.process.pid) for m in it.swarm.living()]
            return sum(process.status() == STOPPED for process in found)

        def slowed() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return stopped() == 1

        await it.until(slowed)
        assert it.fired() == ["slow"]
        it.injector.end(now=clock())
        await it.until(lambda: stopped() == 0)


async def test_when_the_address_book_is_dead_newcomers_join_by_a_peer(
    tmp_path: Path, program: Program
) -> None:
    async with struck(tmp_path, program(hanging=HANGING), "bootstrap-death,join=1") as it:

        def joined() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return len(it.swarm.members) == 5

        await it.until(joined)
        assert sorted(it.fired()) == ["bootstrap-death", "join"]
        assert it.swarm.troubles == []


async def test_a_complete_run_is_struck_no_more(tmp_path: Path, program: Program) -> None:
    async with struck(tmp_path, program(hanging=HANGING), "kill=10000%/min:min=3") as it:
        ended = ev.RunEnded(step=Step(9), reason="")

        def complete() -> bool:
            if not serving(it.swarm, 4):
                return False
            entry = ev.Entry(at=0.0, peer=PeerId("x"), event=ended)
            it.swarm.hear(entry, now=clock())
            it.train(9)
            it.injector.tick(now=clock() + 100.0)
            return True

        await it.until(complete)
        assert it.fired() == []


async def test_a_p2pd_that_is_killed_leaves_its_peer_alone(
    tmp_path: Path, program: Program
) -> None:
    async with struck(tmp_path, program(hanging=HANGING, daemonic=HANGING), "daemon-death") as it:

        def daemons() -> list[psutil.Process]:
            peers = [psutil.Process(member.child.process.pid) for member in it.swarm.living()]
            found = [child for peer in peers for child in peer.children()]
            return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]

        def killed() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return bool(it.fired()) and len(daemons()) == 3

        await it.until(killed)
        assert it.fired() == ["daemon-death"]
        assert len(it.swarm.living()) == 4


async def test_all_die_and_come_back_with_what_they_had(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESPAWN_SECONDS", 0.0)
    async with struck(tmp_path, program(hanging=HANGING), "swarm-death") as it:

        def back() -> bool:
            if serving(it.swarm, 4) and it.swarm.progress.step is None:
                it.train(8)
            return len(it.swarm.members) == 8 and serving(it.swarm, 4)

        await it.until(back)
        dead, living = it.swarm.members[:4], it.swarm.members[4:]
        assert all(member.killed for member in dead)
        assert it.fired() == ["swarm-death", *["kill"] * 4, *["resume"] * 4]
        for old, new in zip(dead, living, strict=True):
            flags = json.loads((new.folder / "flags.json").read_bytes())
            assert flags["--checkpoint-dir"] == str(old.folder)
            assert flags["--identity-path"] == str(old.folder / "identity")
            assert flags["--no-relay"] == "--resume"  # the last two words
            assert new.events != old.events
        assert it.swarm.troubles == []


async def test_who_stands_still_at_a_failpoint_is_killed_there(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESPAWN_SECONDS", 0.0)
    async with struck(tmp_path, program(hanging=HANGING), "") as it:

        def halted() -> bool:
            if serving(it.swarm, 4) and len(it.swarm.members) == 4:
                it.train(8)
                it.swarm.members[2].halted = ev.Halted(point="plan sent", times=3)
            return len(it.swarm.members) == 5 and serving(it.swarm, 4)

        await it.until(halted)
        assert [member.killed for member in it.swarm.members] == [False, False, True, False, False]
        assert it.fired() == ["at plan sent", "kill", "respawn"]
