"""I5: a peer that has ended, or was killed, leaves nothing behind.

    itself    no task, no open stream, no record that says it still serves (``Remains``)
    others    whoever had a link to it says that it is down, within the time in which the
              network gives a silent peer up

Facts are the ends looked at and the links to the ended. Excused from noticing: who ended,
was killed or frozen meanwhile, and everybody where the run was over first.

Refused: counting objects by the garbage collector. A reference that lingers costs memory;
a task, a stream or a record goes on doing something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev
from p2ptrain.sim.verdicts import Verdict, verdict
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.units import Seconds

NOTICE_SECONDS = 60.0
"""libp2p gives a silent connection up after 40 s; a frozen witness gets as long again to wake."""


def check_leftovers(entries: Iterable[ev.Entry]) -> Verdict:
    """Judge a complete stream, ordered by time."""
    watch = _Watch()
    for entry in entries:
        watch.see(entry)
    return verdict("I5", watch.facts, watch.problems)


class _Watch:
    """Who has links to whom, and which of them should have gone."""

    def __init__(self) -> None:
        self.facts = 0
        self.problems: list[str] = []
        self._links: set[tuple[PeerId, PeerId]] = set()  # who to whom
        self._due: list[tuple[Seconds, PeerId, PeerId]] = []  # when, whose link, to whom
        self._over = False

    def see(self, entry: ev.Entry) -> None:
        """Take in one entry."""
        self._expire(entry.at)
        event = entry.event
        match event:
            case ev.LinkUp():
                self._links.add((entry.peer, event.peer))
            case ev.LinkDown():
                self._links.discard((entry.peer, event.peer))
            case ev.PeerStopped():
                self._end(entry.peer, entry.at)
            case ev.FaultFired():
                self._fault(event, entry.at)
            case ev.Remains():
                self._remains(entry, event)
            case _:
                self._other(entry)

    def _other(self, entry: ev.Entry) -> None:
        if isinstance(entry.event, ev.PeerStarted):  # again, under its own name
            self._due = [due for due in self._due if due[2] != entry.peer]
        elif isinstance(entry.event, ev.RunEnded):
            self._over = True

    def _expire(self, now: Seconds) -> None:
        while self._due and self._due[0][0] < now:
            _, peer, ended = self._due.pop(0)
            if (peer, ended) in self._links and not self._over:
                self.problems.append(f"{peer} keeps a link to {ended}, which has ended")

    def _fault(self, event: ev.FaultFired, at: Seconds) -> None:
        target = PeerId(event.target)
        if event.fault == "kill":
            self._end(target, at)
        elif event.fault in ("freeze", "thaw"):  # it will notice when it wakes, in its time
            self._due = sorted(
                (max(due, at + NOTICE_SECONDS) if peer == target else due, peer, ended)
                for due, peer, ended in self._due
            )

    def _end(self, peer: PeerId, at: Seconds) -> None:
        self._links = {link for link in self._links if link[0] != peer}
        noticing = sorted(link[0] for link in self._links if link[1] == peer)
        self.facts += len(noticing)
        self._due += [(at + NOTICE_SECONDS, each, peer) for each in noticing]
        self._due.sort()

    def _remains(self, entry: ev.Entry, event: ev.Remains) -> None:
        self.facts += 1
        left = {"tasks": event.tasks, "streams": event.streams, "records": event.records}
        found = ", ".join(f"{count} {what}" for what, count in left.items() if count)
        if found:
            self.problems.append(f"{entry.at:.3f} s: {entry.peer} has ended and left {found}")
