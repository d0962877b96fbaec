"""Starts the processes of a simulated swarm: the address book, and peers that join by it.

Every peer is the very program that a volunteer runs (``p2ptrain peer``), with its own
identity, p2pd and folder; nothing is shared but the machine. Ports are the kernel's choice.

    folder/run.toml  bootstrap.key  peer-0/{identity, events.jsonl, result.json, cut}  peer-1/...

Invariant: a newcomer gets one address, the address book's, and after that one's death those
of a few peers which serve; while a partition is played it comes on the address book's side.

Refused: peers as tasks of one process (they would share an interpreter lock and a fate).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.errors import InternalError
from p2ptrain.net.partition import write_cut
from p2ptrain.run import to_toml
from peers.member import Member
from peers.progress import Tail

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, PeerId, Seconds
    from peers.children import Child, Children

START_SECONDS = 120.0
"""From a process's start to its first event, on a machine that is busy with everything else."""

LOOK_SECONDS = 0.2
"""Between looks for the bootstrap's address in its output."""

CUT_FILE = "cut"
"""In a peer's folder: whom a played partition keeps from it."""

CLAIM_FILE = "halted"
"""Made by the one peer that stands still at a failpoint."""

WAYS_IN = 3
"""Peers whose addresses a newcomer gets when the address book is dead: one may die next."""

ADDRESS = re.compile(r"--initial-peers (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmOptions:
    """How many peers, of which run. ``link`` shapes each peer's uplink (net/emulation).

    ``program``: the arguments of Python that make it the ``p2ptrain`` command.
    ``pause_seconds``: the longest time that planned faults may keep the whole run from stepping.
    ``halt_at``: ``TIMES:POINT``, one peer stands still there (peers/failpoint).
    ``severable``: peers watch for a partition that is played (net/partition).
    ``threads``: how many each peer computes with, in turn; empty: as the RunSpec says.
    """

    spec: RunSpec
    peers: int
    data: Path | None = None
    link: str | None = None
    memory_bytes: Bytes | None = None
    program: tuple[str, ...] = ("-m", "p2ptrain")
    pause_seconds: Seconds = 0.0
    severable: bool = False
    halt_at: str | None = None
    threads: tuple[int, ...] = ()


class Launcher:
    """Starts bootstrap and peers. Ending them is the ``children``'s owner's."""

    def __init__(self, options: SwarmOptions, children: Children, folder: Path) -> None:
        self._options, self._children, self._folder = options, children, folder
        self.bootstrap: Child | None = None  # None: dead, or not up yet
        self._book: tuple[Child, str] | None = None
        self._beyond: frozenset[PeerId] = frozenset()

    async def start_bootstrap(self) -> None:
        """Write the RunSpec for all, start the address book, wait for its address.

        Raises:
            InternalError: it did not come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "run.toml").write_text(to_toml(self._options.spec))
        child = await self._children.start(
            "bootstrap",
            [
                *self._options.program, "bootstrap", "--host-maddrs", "/ip4/127.0.0.1/tcp/0",
                "--identity-path", str(self._folder / "bootstrap.key"), "--no-relay",
            ],
        )  # fmt: skip
        try:
            async with asyncio.timeout(START_SECONDS):
                while child.alive:
                    found = ADDRESS.search(child.output())
                    if found is not None:
                        self.bootstrap, self._book = child, (child, found[1])
                        return
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            raise InternalError(f"the bootstrap did not come up: {child.last_words()}") from error
        raise InternalError(f"the bootstrap failed: {child.last_words()}")

    async def start_peer(
        self, number: int, others: Iterable[Member], *, heir_of: Path | None = None
    ) -> Member:
        """Start peer ``number``, which must be new; ``others``: the living peers.

        ``heir_of``: the folder of a dead one, whose identity and checkpoints it goes on with.
        """
        folder = self._folder / f"peer-{number}"
        folder.mkdir(exist_ok=True)
        home = heir_of or folder
        ways_in = self._ways_in(others)
        arguments = [
            *self._options.program, "peer",
            *(word for _, address in ways_in for word in ("--initial-peers", address)),
            "--run", str(self._folder / "run.toml"), "--host-maddrs", "/ip4/127.0.0.1/tcp/0",
            "--identity-path", str(home / "identity"), "--checkpoint-dir", str(home),
            "--events", str(folder / "events.jsonl"), "--result", str(folder / "result.json"),
        ]  # fmt: skip
        threads = self._options.threads
        optional = {
            "--data": self._options.data,
            "--link": self._options.link,
            "--max-memory": self._options.memory_bytes,
            "--halt-at": self._halting(),
            "--cut-file": folder / CUT_FILE if self._options.severable else None,
            "--threads": threads[number % len(threads)] if threads else None,
        }
        for flag, value in optional.items():
            arguments += [flag, str(value)] if value is not None else []
        arguments += ["--no-relay"] if heir_of is None else ["--no-relay", "--resume"]
        write_cut(folder / CUT_FILE, without=self._beyond)
        child = await self._children.start(f"peer-{number}", arguments)
        return Member(
            child=child,
            tail=Tail(folder / "events.jsonl"),
            folder=folder,
            home=home,
            ways_in=tuple(way for way, _ in ways_in),
        )

    def _halting(self) -> str | None:
        halt_at = self._options.halt_at
        return None if halt_at is None else f"{halt_at}:{self._folder / CLAIM_FILE}"

    def split(self, living: Collection[Member], names: Collection[str]) -> list[PeerId]:
        """Cut the peers of these names off from all others; return who they are."""
        inside = [each.peer for each in living if each.name in names and each.peer is not None]
        self._beyond = frozenset(inside)
        for member in living:
            if member.peer in self._beyond:
                write_cut(member.folder / CUT_FILE, only=inside)
            else:
                write_cut(member.folder / CUT_FILE, without=inside)
        return inside

    def mend(self, living: Iterable[Member]) -> None:
        """Everybody can reach everybody again."""
        self._beyond = frozenset()
        for member in living:
            write_cut(member.folder / CUT_FILE)

    def kill_bootstrap(self) -> None:
        """The address book dies."""
        if self.bootstrap is not None:
            self.bootstrap.process.kill()
            self.bootstrap = None

    def _ways_in(self, others: Iterable[Member]) -> list[tuple[Child, str]]:
        """Processes by whose addresses one joins, and the addresses."""
        assert self._book is not None  # start_bootstrap comes first
        serving = [each for each in others if each.seats and each.addresses]
        if self.bootstrap is not None or not serving:
            return [self._book]
        return [(each.child, each.addresses[0]) for each in serving[:WAYS_IN]]
