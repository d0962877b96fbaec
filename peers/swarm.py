"""A swarm of real peers on this machine: a bootstrap and N peer processes, watched.

Peers start two at a time (see launch), because twenty interpreters importing torch at once
starve each other into timeouts; others come later, when chaos invites them.

Invariants: a peer that ends early by itself is told once and the others go on; a killed one
is no trouble; if no peer says anything for ``STALL_SECONDS``, or none takes a step for
``NO_STEP_SECONDS``, the swarm is given up with an error instead of waited for.

Refused: to wait for ever, or to end at the first peer's error.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2ptrain.errors import InternalError
from peers.launch import Launcher
from peers.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from p2ptrain.observe.events import Entry
    from p2ptrain.units import Bytes, Seconds
    from peers.children import Children
    from peers.launch import SwarmOptions
    from peers.member import Member
    from peers.progress import Progress

STARTS_AT_ONCE = 2
"""Importing torch and hivemind takes a core for about 4 s; two cores are the least we expect."""

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

JOIN_SECONDS = 60.0
"""A newcomer that was there so long before the end should have taken part: choosing a stage
takes seconds, the state of a simulated model less."""

DRAIN_SECONDS = 20.0
"""For peers that were asked to leave: a step of a simulated model takes a few seconds."""

LOOK_SECONDS = 0.2
"""Files are looked at five times a second: cheap, and smooth enough for the eye."""


@dataclass(slots=True, kw_only=True)
class Invitation:
    """A peer that shall be started at ``at``; ``why`` names the fault that asked for it.

    ``heir_of``: see the launcher.
    """

    at: Seconds
    why: str | None = None
    heir_of: Path | None = None


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
    launcher: Launcher = field(init=False)
    _waiting: Waiting = field(init=False)
    _invited: list[Invitation] = field(default_factory=list)
    _leave_by: Seconds | None = None
    _heard_at: Seconds = 0.0
    _complete_at: Seconds | None = None

    def __post_init__(self) -> None:
        self.launcher = Launcher(self.options, self.children, self.folder)
        self._waiting = Waiting(stages=self.progress.stages)

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Start everything, then yield the progress after each look until all peers ended.

        After ``leave`` it ends in time even if some peers have not.

        Raises:
            InternalError: a start failed, or the swarm fell silent or takes no step.
        """
        try:
            await self.launcher.start_bootstrap()
        except InternalError:
            if not self.leaving():
                raise  # else it was asked to go before it had come
        if self.leaving():
            return
        loop = asyncio.get_running_loop()
        self._heard_at = self.progress.moved_at = loop.time()
        self._invited += [Invitation(at=loop.time()) for _ in range(self.options.peers)]
        while self._invited or any(self.living()):
            await self._start_invited(loop.time())
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

    def invite(self, *, at: Seconds, why: str, heir_of: Path | None = None) -> None:
        """Start one more peer at ``at``, or soon after."""
        self._invited.append(Invitation(at=at, why=why, heir_of=heir_of))

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
                self._failed(member, code, now)
        bootstrap = self.launcher.bootstrap
        if bootstrap is not None and not bootstrap.alive and not self.leaving():
            self.launcher.bootstrap = None
            self.troubles.append(f"the bootstrap ended: {bootstrap.last_words()}")
        self.peak_rss_bytes = max(self.peak_rss_bytes, self.children.peak_rss_bytes())
        self._send_latecomers_home(now)
        self._judge_patience(now)
        if self.members and all(member.failed for member in self.members):
            raise InternalError(f"all peers failed; the first: {self.troubles[0]}")

    def _failed(self, member: Member, code: int, now: Seconds) -> None:
        if member.is_stranded(code):
            member.dismissed = True
            self._invited.append(Invitation(at=now))  # whoever wants to join tries again
            return
        member.failed = True
        self.troubles.append(f"{member.name} ended with code {code}: {member.child.last_words()}")

    def _judge_patience(self, now: Seconds) -> None:
        if now - self._heard_at > STALL_SECONDS:
            raise InternalError(
                f"no peer has said anything for {STALL_SECONDS:.0f} s: {self._standing()}"
            )
        longest = self.progress.longest_step_seconds()
        patience = max(NO_STEP_SECONDS, STEPS_OF_PATIENCE * longest) + self.options.pause_seconds
        moved_at = self.progress.moved_at
        if moved_at is None or self.leaving():
            return
        if now - moved_at > patience:
            raise InternalError(f"no step was taken for {patience:.0f} s: {self._standing()}")

    def _standing(self) -> str:
        """Where the run stands, and what was last cried out."""
        alarms = [f"alarm of {alarm}" for alarm in self.progress.alarms[-1:]]
        return "; ".join([self._waiting.line(), *alarms])

    def _send_latecomers_home(self, now: Seconds) -> None:
        """Once the run is complete: who never took a step goes now, who is stuck goes later."""
        if self._complete_at is None:
            if self._is_complete():
                self._complete_at = now
                self._tell_outsiders(now)
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

    def _tell_outsiders(self, now: Seconds) -> None:
        for member in self.living():
            if member.has_stepped or member.joined_at is None:
                continue
            if now - member.joined_at > JOIN_SECONDS:
                waited = now - member.joined_at
                self.troubles.append(f"{member.name} joined {waited:.0f} s ago, took no step")

    def _is_complete(self) -> bool:
        """Whether peers that have ended in order held every stage."""
        ended = [m for m in self.members if m.child.process.returncode == 0 and m.result.exists()]
        return len({stage for m in ended for stage in m.seats}) == self.progress.stages

    async def _start_invited(self, now: Seconds) -> None:
        starting = sum(not member.events.exists() for member in self.living())
        due = [invitation for invitation in self._invited if invitation.at <= now]
        for invitation in due[: max(0, STARTS_AT_ONCE - starting)]:
            self._invited.remove(invitation)
            member = await self.launcher.start_peer(
                len(self.members), self.living(), heir_of=invitation.heir_of
            )
            self.members.append(member)
            if invitation.why is not None:
                self.arrived(member, invitation.why, now)
