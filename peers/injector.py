"""Carries out what chaos decides, on the processes of a simulated swarm.

    Death      SIGKILL; p2pd must notice by itself that its peer is gone
    Halt       SIGSTOP to Python, to its p2pd, or to both; Thaw is SIGCONT
    Drag       SIGSTOP and SIGCONT in turns: a peer that gets a tenth of its time
    Split      a file tells each peer whom it reaches; its streams and requests obey
    DaemonDeath  SIGKILL to a peer's p2pd; the peer must start another
    Doom       SIGKILL to all; each comes back with its identity and checkpoints, --resume
    Arrival    a new process with a new identity, that joins by address alone

Every blow that fell is written as a ``FaultFired`` event into ``faults.jsonl``, beside the
peers' own logs and by the same clock (Linux and macOS count both from the machine's boot),
so that the report counts faults and measures recovery from one stream.

Invariants: only processes of this simulation are signalled; after ``end`` none of them is
stopped. Refused: faults that a peer plays on itself; it would know.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, assert_never

import psutil

from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId
from peers import chaos as c

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from p2ptrain.observe.sinks import Sink
    from p2ptrain.units import Seconds
    from peers.member import Member
    from peers.swarm import Swarm

DRAG_SECONDS = 0.5
"""One turn of running and standing still: long beside the kernel's slices, short beside the
seconds of silence after which a peer is suspected."""

RESPAWN_SECONDS = 3.0
"""Until who was killed at a failpoint is replaced, or who died with all comes back."""

WIDOW_SECONDS = 10.0
"""A p2pd whose peer was killed goes within a second; a machine with more processes than cores
may let it wait for its turn."""


class Injector:
    """Strikes a swarm as ``chaos`` says. Call ``tick`` after each look at the swarm.

    ``steps``: of the whole run, the one that only evaluates included.
    """

    def __init__(
        self,
        swarm: Swarm,
        chaos: c.Chaos,
        *,
        steps: int,
        sink: Sink,
        say: Callable[[str], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._swarm, self._chaos = swarm, chaos
        self._steps, self._sink, self._say, self._tasks = steps, sink, say, tasks
        self._halted: dict[str, list[psutil.Process]] = {}
        self._drags: list[asyncio.Task[None]] = []
        self._widows: list[tuple[Seconds, str, psutil.Process]] = []

    def tick(self, *, now: Seconds) -> None:
        """Strike what is due; nothing more once the run is complete or drained."""
        self._look_for_widows(now)
        if self._swarm.leaving() or self._swarm.progress.ended:
            self.end(now=now)
            return
        taken = self._swarm.progress.steps_taken(now=now)
        sight = c.Sight(
            share=None if taken is None else taken / self._steps,
            seats={m.name: dict(m.seats) for m in self._swarm.living() if m.seats},
        )
        for blow in self._chaos.tick(sight, now=now):
            self._strike(blow, now)
        for member in self._swarm.living():
            if member.halted is not None:  # it stands where it was to be killed
                self._fired(f"at {member.halted.point}", member, now)
                self._strike(c.Death(peer=member.name, respawn_seconds=RESPAWN_SECONDS), now)

    def end(self, *, now: Seconds) -> None:
        """Let go of everything that is stopped; may be called twice."""
        for blow in self._chaos.end():
            self._strike(blow, now)
        for task in self._drags:
            task.cancel()
        self._drags.clear()

    # --- one by one -------------------------------------------------------------------------

    def _strike(self, blow: c.Blow, now: Seconds) -> None:  # noqa: C901, PLR0912 -- one match
        match blow:
            case c.Death(peer=name, respawn_seconds=seconds):
                self._kill(self._swarm.member(name), now)
                if seconds is not None:
                    self._swarm.invite(at=now + seconds, why="respawn")
            case c.Halt(peer=name, part=part):
                self._halt(self._swarm.member(name), part, now)
            case c.Thaw(peer=name):
                self._thaw(self._swarm.member(name), now)
            case c.Drag(peer=name, factor=factor):
                member = self._swarm.member(name)
                self._fired("slow", member, now, f"{factor:g} times")
                self._drags.append(self._tasks.create_task(self._drag(member, factor)))
            case c.Arrival():
                self._swarm.invite(at=now, why="join")
            case c.DaemonDeath(peer=name):
                self._kill_daemon(self._swarm.member(name), now)
            case c.Doom():
                self._doom(now)
            case c.Loss(what=what, stage=stage):
                self._fired(what, f"stage {stage}", now)
            case c.BookDeath():
                self._fired("bootstrap-death", "", now)
                self._swarm.launcher.kill_bootstrap()
            case c.Split(peers=names):
                cut_off = ",".join(sorted(self._swarm.launcher.split(self._swarm.living(), names)))
                self._fired("partition", cut_off, now, f"{', '.join(names)} from the others")
            case c.Mend():
                self._swarm.launcher.mend(self._swarm.living())
                self._fired("heal", "", now)
            case _:
                assert_never(blow)

    def arrived(self, member: Member, why: str, now: Seconds) -> None:
        """A peer that was invited has been started."""
        self._fired(why, member, now)

    def _kill(self, member: Member, now: Seconds) -> None:
        self._fired("kill", member, now, _stages(member))
        with contextlib.suppress(psutil.Error):
            for daemon in psutil.Process(member.child.process.pid).children():
                self._widows.append((now + WIDOW_SECONDS, member.name, daemon))
        member.killed = True
        member.seats.clear()
        member.child.process.kill()
        self._resume(self._halted.pop(member.name, ()))  # a stopped p2pd could not notice

    def _kill_daemon(self, member: Member, now: Seconds) -> None:
        with contextlib.suppress(psutil.Error):
            daemons = psutil.Process(member.child.process.pid).children()
            self._fired("daemon-death", member, now, _stages(member))
            for daemon in daemons:
                daemon.kill()

    def _doom(self, now: Seconds) -> None:
        self._fired("swarm-death", "", now)
        for member in self._swarm.living():
            self._swarm.invite(at=now + RESPAWN_SECONDS, why="resume", heir_of=member.home)
            self._kill(member, now)

    def _look_for_widows(self, now: Seconds) -> None:
        for _, name, daemon in [widow for widow in self._widows if widow[0] <= now]:
            with contextlib.suppress(psutil.Error):
                if daemon.is_running() and daemon.status() != psutil.STATUS_ZOMBIE:
                    self._swarm.troubles.append(f"p2pd outlived {name}, which was killed")
        self._widows = [widow for widow in self._widows if widow[0] > now]

    def _halt(self, member: Member, part: c.Part, now: Seconds) -> None:
        try:
            process = psutil.Process(member.child.process.pid)
            daemons = process.children()
        except psutil.Error:
            return  # it has just ended by itself
        chosen = {"process": [process], "daemon": daemons, "both": [process, *daemons]}[part]
        what = {"process": "Python", "daemon": "p2pd", "both": "Python and p2pd"}[part]
        self._fired("freeze", member, now, f"{what}, {_stages(member)}")
        self._halted[member.name] = chosen
        for each in chosen:
            with contextlib.suppress(psutil.Error):
                each.suspend()

    def _thaw(self, member: Member, now: Seconds) -> None:
        halted = self._halted.pop(member.name, [])
        if halted and member.child.alive:
            self._fired("thaw", member, now)
        self._resume(halted)

    def _resume(self, halted: Iterable[psutil.Process]) -> None:
        for each in halted:
            with contextlib.suppress(psutil.Error):
                each.resume()

    async def _drag(self, member: Member, factor: float) -> None:
        """Let ``member`` run a ``factor``-th of the time, while it lives."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(member.child.process.pid)
            try:
                while member.child.alive:
                    if member.name not in self._halted:
                        process.suspend()
                    await asyncio.sleep(DRAG_SECONDS * (1 - 1 / factor))
                    if member.name not in self._halted:
                        process.resume()
                    await asyncio.sleep(DRAG_SECONDS / factor)
            finally:
                process.resume()

    def _fired(self, fault: str, target: Member | str, now: Seconds, detail: str = "") -> None:
        name = target if isinstance(target, str) else target.name
        peer = PeerId(target if isinstance(target, str) else target.peer or target.name)
        entry = ev.Entry(at=now, peer=peer, event=ev.FaultFired(fault=fault, target=peer))
        self._sink(entry)
        self._swarm.hear(entry, now=now)
        of = f" on {name}" if name and fault != "partition" else ""
        self._say(f"fault {fault}{of}" + (detail and f" ({detail})"))


def _stages(member: Member) -> str:
    return f"stage {'+'.join(map(str, sorted(member.seats)))}"
