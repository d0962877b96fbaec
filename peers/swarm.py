"""A swarm of real peers on this machine: a bootstrap and N peer processes, watched.

Every peer is the very program that a volunteer runs (``p2ptrain peer``), with its own
identity, p2pd and folder; nothing is shared but the machine. They start two at a time,
because twenty interpreters importing torch at once starve each other into timeouts.

Invariants: a peer that ends early is told once and the others go on; if no peer says
anything for ``STALL_SECONDS`` the swarm is given up with an error instead of waited for.

Refused: peers as tasks of one process (they would share an interpreter lock and a fate).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2ptrain.errors import InternalError
from p2ptrain.run import to_toml
from peers.progress import Progress, Tail

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Seconds
    from peers.children import Child, Children

STARTS_AT_ONCE = 2
"""Importing torch and hivemind takes a core for about 4 s; two cores are the least we expect."""

START_SECONDS = 120.0
"""From a process's start to its first event, on a machine that is busy with everything else."""

STALL_SECONDS = 120.0
"""Silence of all peers; a step of the largest simulated model takes seconds."""

DRAIN_SECONDS = 20.0
"""For peers that were asked to leave: a step of a simulated model takes a few seconds."""

LOOK_SECONDS = 0.2
"""Files are looked at five times a second: cheap, and smooth enough for the eye."""

ADDRESS = re.compile(r"--initial-peers (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmOptions:
    """How many peers, of which run. ``link`` shapes each peer's uplink (net/emulation).

    ``program``: the arguments of Python that make it the ``p2ptrain`` command.
    """

    spec: RunSpec
    peers: int
    data: Path | None = None
    link: str | None = None
    memory_bytes: Bytes | None = None
    program: tuple[str, ...] = ("-m", "p2ptrain")


@dataclass(slots=True)
class Member:
    """One peer process and its files."""

    child: Child
    tail: Tail
    folder: Path
    failed: bool = False

    @property
    def events(self) -> Path:
        """Its event log."""
        return self.folder / "events.jsonl"

    @property
    def result(self) -> Path:
        """What it left when it ended in order."""
        return self.folder / "result.json"


@dataclass(slots=True)
class Swarm:
    """Starts the processes, reads what they say. Ending them is the ``children``'s owner's."""

    options: SwarmOptions
    children: Children
    folder: Path
    progress: Progress
    members: list[Member] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    peak_rss_bytes: Bytes = 0
    _leave_by: Seconds | None = None
    _heard_at: Seconds = 0.0

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Start everything, then yield the progress after each look until all peers ended.

        After ``leave`` it ends in time even if some peers have not.

        Raises:
            InternalError: a start failed, or the swarm fell silent.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / "run.toml"
        run_file.write_text(to_toml(self.options.spec))
        address = await self._start_bootstrap()
        waiting = list(range(self.options.peers))
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        while (waiting and not self.leaving()) or any(m.child.alive for m in self.members):
            starting = [m for m in self.members if m.child.alive and not m.events.exists()]
            while waiting and not self.leaving() and len(starting) < STARTS_AT_ONCE:
                starting.append(await self._start_peer(waiting.pop(0), run_file, address))
            self.look(loop.time())
            yield self.progress
            if self._leave_by is not None and loop.time() > self._leave_by:
                break
            await asyncio.sleep(LOOK_SECONDS)
        self.look(loop.time())
        yield self.progress

    def leave(self) -> None:
        """Ask all peers to finish their step and leave; start no more."""
        self._leave_by = asyncio.get_running_loop().time() + DRAIN_SECONDS
        self.children.interrupt()

    def leaving(self) -> bool:
        """Whether somebody has asked the peers to leave."""
        return self._leave_by is not None

    def look(self, now: Seconds) -> None:
        """Read what is new.

        Raises:
            InternalError: nothing has been new for too long, or no peer is left.
        """
        for member in self.members:
            for entry in member.tail.read():
                self.progress.feed(entry, now=now)
                self._heard_at = now
            code = member.child.process.returncode
            if code and not member.failed and not self.leaving():
                member.failed = True
                self.troubles.append(
                    f"{member.child.name} ended with code {code}: {member.child.last_words()}"
                )
        self.peak_rss_bytes = max(self.peak_rss_bytes, self.children.peak_rss_bytes())
        if now - self._heard_at > STALL_SECONDS:
            raise InternalError(f"no peer has said anything for {STALL_SECONDS:.0f} s")
        if self.members and all(member.failed for member in self.members):
            raise InternalError(f"all peers failed; the first: {self.troubles[0]}")

    async def _start_bootstrap(self) -> str:
        child = await self.children.start(
            "bootstrap",
            [
                *self.options.program, "bootstrap", "--host-maddrs", "/ip4/127.0.0.1/tcp/0",
                "--identity-path", str(self.folder / "bootstrap.key"), "--no-relay",
            ],
        )  # fmt: skip
        try:
            async with asyncio.timeout(START_SECONDS):
                while child.alive:
                    found = ADDRESS.search(child.output())
                    if found is not None:
                        return found[1]
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            raise InternalError(f"the bootstrap did not come up: {child.last_words()}") from error
        raise InternalError(f"the bootstrap failed: {child.last_words()}")

    async def _start_peer(self, number: int, run_file: Path, address: str) -> Member:
        folder = self.folder / f"peer-{number}"
        folder.mkdir(exist_ok=True)
        arguments = [
            *self.options.program, "peer", "--initial-peers", address, "--run", str(run_file),
            "--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--identity-path", str(folder / "identity"),
            "--events", str(folder / "events.jsonl"), "--result", str(folder / "result.json"),
        ]  # fmt: skip
        optional = {
            "--data": self.options.data,
            "--link": self.options.link,
            "--max-memory": self.options.memory_bytes,
        }
        for flag, value in optional.items():
            arguments += [flag, str(value)] if value is not None else []
        arguments.append("--no-relay")
        child = await self.children.start(f"peer-{number}", arguments)
        member = Member(child=child, tail=Tail(folder / "events.jsonl"), folder=folder)
        self.members.append(member)
        return member
