"""A swarm of real peers on this machine: a bootstrap and N peer processes, watched.

Every peer is the very program that a volunteer runs (``p2ptrain peer``), with its own
identity, p2pd and folder; nothing is shared but the machine. They start two at a time,
because twenty interpreters importing torch at once starve each other into timeouts.

Invariants: a peer that ends early by itself is told once and the others go on; a killed one
is no trouble; if no peer says anything for ``STALL_SECONDS``, or none takes a step for
``NO_STEP_SECONDS``, the swarm is given up with an error instead of waited for.

Refused: peers as tasks of one process (they would share an interpreter lock and a fate).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2ptrain.errors import InternalError
from p2ptrain.run import to_toml
from peers.member import Member
from peers.progress import Progress, Tail
from peers.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from p2ptrain.observe.events import Entry
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Seconds
    from peers.children import Child, Children

STARTS_AT_ONCE = 2
"""Importing torch and hivemind takes a core for about 4 s; two cores are the least we expect."""

START_SECONDS = 120.0
"""From a process's start to its first event, on a machine that is busy with everything else."""

STALL_SECONDS = 120.0
"""Silence of all peers; a step of the largest simulated model takes seconds."""

NO_STEP_SECONDS = 180.0
"""Talk without a step. A lost replica costs 10 s, a lost stage 30 s (DESIGN 8), a step on a
slow line a minute; every deadline of the protocol has passed several times by then."""

STEPS_OF_PATIENCE = 10.0
"""Where steps are long: no step for ten times the longest of the last."""

LATE_SECONDS = 40.0
"""When every stage has a peer that has ended in order: others linger 30 s for laggards, so
whoever is not done by then will never be."""

DRAIN_SECONDS = 20.0
"""For peers that were asked to leave: a step of a simulated model takes a few seconds."""

LOOK_SECONDS = 0.2
"""Files are looked at five times a second: cheap, and smooth enough for the eye."""

ADDRESS = re.compile(r"--initial-peers (\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmOptions:
    """How many peers, of which run. ``link`` shapes each peer's uplink (net/emulation).

    ``program``: the arguments of Python that make it the ``p2ptrain`` command.
    ``pause_seconds``: the longest time that planned faults may keep the whole run from stepping.
    """

    spec: RunSpec
    peers: int
    data: Path | None = None
    link: str | None = None
    memory_bytes: Bytes | None = None
    program: tuple[str, ...] = ("-m", "p2ptrain")
    pause_seconds: Seconds = 0.0


@dataclass(slots=True, kw_only=True)
class Invitation:
    """A peer that shall be started at ``at``; ``why`` names the fault that asked for it."""

    at: Seconds
    why: str | None = None


@dataclass(slots=True)
class Swarm:
    """Starts the processes, reads what they say. Ending them is the ``children``'s owner's.

    ``arrived`` is told of every peer that was started by invitation.
    """

    options: SwarmOptions
    children: Children
    folder: Path
    progress: Progress
    members: list[Member] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    peak_rss_bytes: Bytes = 0
    arrived: Callable[[Member, str, Seconds], None] = lambda _member, _why, _now: None
    _waiting: Waiting = field(init=False)
    _invited: list[Invitation] = field(default_factory=list)
    _bootstrap: Child | None = None
    _address: str = ""
    _leave_by: Seconds | None = None
    _heard_at: Seconds = 0.0
    _complete_at: Seconds | None = None

    def __post_init__(self) -> None:
        self._waiting = Waiting(stages=self.progress.stages)

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Start everything, then yield the progress after each look until all peers ended.

        After ``leave`` it ends in time even if some peers have not.

        Raises:
            InternalError: a start failed, or the swarm fell silent or takes no step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        run_file = self.folder / "run.toml"
        run_file.write_text(to_toml(self.options.spec))
        await self._start_bootstrap()
        loop = asyncio.get_running_loop()
        self._heard_at = self.progress.moved_at = loop.time()
        self._invited += [Invitation(at=loop.time()) for _ in range(self.options.peers)]
        while self._invited or any(self.living()):
            await self._start_invited(run_file, loop.time())
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
        self._invited.clear()
        self.children.interrupt()

    def leaving(self) -> bool:
        """Whether somebody has asked the peers to leave."""
        return self._leave_by is not None

    def living(self) -> list[Member]:
        """Peers whose process runs, and was not killed."""
        return [member for member in self.members if member.child.alive and not member.killed]

    def member(self, name: str) -> Member:
        """The peer of that name."""
        return next(member for member in self.members if member.name == name)

    def invite(self, *, at: Seconds, why: str) -> None:
        """Start one more peer at ``at``, or soon after."""
        self._invited.append(Invitation(at=at, why=why))

    def kill_bootstrap(self) -> None:
        """The address book dies; who comes later joins by a peer's address."""
        if self._bootstrap is not None:
            self._bootstrap.process.kill()
            self._bootstrap = None

    def hear(self, entry: Entry, *, now: Seconds) -> None:
        """Take in what a peer, or whoever injects faults, has said."""
        self.progress.feed(entry, now=now)
        self._waiting.feed(entry)

    def look(self, now: Seconds) -> None:
        """Read what is new.

        Raises:
            InternalError: nothing has been new for too long, or no peer is left.
        """
        for member in self.members:
            for entry in member.news():
                self.hear(entry, now=now)
                self._heard_at = now
            code = member.child.process.returncode
            if code and not (member.failed or member.excuses(code) or self.leaving()):
                member.failed = True
                self.troubles.append(
                    f"{member.name} ended with code {code}: {member.child.last_words()}"
                )
        if self._bootstrap is not None and not self._bootstrap.alive and not self.leaving():
            self.troubles.append(f"the bootstrap ended: {self._bootstrap.last_words()}")
            self._bootstrap = None
        self.peak_rss_bytes = max(self.peak_rss_bytes, self.children.peak_rss_bytes())
        self._send_latecomers_home(now)
        self._judge_patience(now)
        if self.members and all(member.failed for member in self.members):
            raise InternalError(f"all peers failed; the first: {self.troubles[0]}")

    def _judge_patience(self, now: Seconds) -> None:
        if now - self._heard_at > STALL_SECONDS:
            raise InternalError(f"no peer has said anything for {STALL_SECONDS:.0f} s")
        longest = self.progress.longest_step_seconds()
        patience = max(NO_STEP_SECONDS, STEPS_OF_PATIENCE * longest) + self.options.pause_seconds
        moved_at = self.progress.moved_at
        if moved_at is None or self.leaving():
            return
        if now - moved_at > patience:
            raise InternalError(f"no step was taken for {patience:.0f} s: {self._waiting.line()}")

    def _send_latecomers_home(self, now: Seconds) -> None:
        """Once the run is complete: who never took a step goes now, who is stuck goes later."""
        if self._complete_at is None:
            if self._is_complete():
                self._complete_at = now
            return
        self._invited.clear()
        for member in self.living():
            if member.dismissed:
                continue
            if not member.has_stepped:
                member.dismissed = True
                member.child.process.terminate()
            elif now - self._complete_at > LATE_SECONDS:
                member.dismissed = True
                self.troubles.append(f"{member.name} did not finish with the others")
                member.child.process.terminate()

    def _is_complete(self) -> bool:
        """Whether peers that have ended in order held every stage."""
        ended = [m for m in self.members if m.child.process.returncode == 0 and m.result.exists()]
        return len({stage for m in ended for stage in m.seats}) == self.progress.stages

    # --- starting ---------------------------------------------------------------------------

    async def _start_bootstrap(self) -> None:
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
                        self._bootstrap, self._address = child, found[1]
                        return
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError as error:
            raise InternalError(f"the bootstrap did not come up: {child.last_words()}") from error
        raise InternalError(f"the bootstrap failed: {child.last_words()}")

    async def _start_invited(self, run_file: Path, now: Seconds) -> None:
        starting = sum(not member.events.exists() for member in self.living())
        due = [invitation for invitation in self._invited if invitation.at <= now]
        for invitation in due[: max(0, STARTS_AT_ONCE - starting)]:
            self._invited.remove(invitation)
            member = await self._start_peer(len(self.members), run_file)
            if invitation.why is not None:
                self.arrived(member, invitation.why, now)

    async def _start_peer(self, number: int, run_file: Path) -> Member:
        folder = self.folder / f"peer-{number}"
        folder.mkdir(exist_ok=True)
        arguments = [
            *self.options.program, "peer", "--initial-peers", self._way_in(),
            "--run", str(run_file), "--host-maddrs", "/ip4/127.0.0.1/tcp/0",
            "--identity-path", str(folder / "identity"),
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

    def _way_in(self) -> str:
        """The bootstrap's address or, when it is dead, that of a peer which serves."""
        if self._bootstrap is None:
            for member in self.living():
                if member.seats and member.addresses:
                    return member.addresses[0]
        return self._address
