"""One peer process of a simulated swarm, as its event log and its exit tell of it.

Invariant: nothing is asked of the peer; what it holds is what it has said so far, up to the
instant at which it was killed.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2ptrain.errors import BootstrapError
from p2ptrain.observe import events as ev
from p2ptrain.units import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from p2ptrain.units import PeerId, Seconds, Stage
    from peers.children import Child
    from peers.outcome import PeerOutcome
    from peers.progress import Tail


@dataclass(slots=True)
class Member:
    """A peer process and its files.

    ``failed``: it ended by itself with an error. ``killed``: chaos has killed it.
    ``home``: the folder of its identity and checkpoints. ``halted``: where it stands still.
    ``ways_in``: the processes by whose addresses it joins.
    ``dismissed``: it came too late to take part and was sent home. ``joined_at``: by the
    clock of the events.
    """

    child: Child
    tail: Tail
    folder: Path
    home: Path | None = None
    ways_in: tuple[Child, ...] = ()
    failed: bool = False
    killed: bool = False
    dismissed: bool = False
    peer: PeerId | None = None
    addresses: tuple[str, ...] = ()
    seats: dict[Stage, Step] = field(default_factory=dict)
    has_stepped: bool = False
    joined_at: Seconds | None = None
    halted: ev.Halted | None = None

    @property
    def events(self) -> Path:
        """Its event log."""
        return self.folder / "events.jsonl"

    @property
    def result(self) -> Path:
        """What it left when it ended in order."""
        return self.folder / "result.json"

    @property
    def name(self) -> str:
        """``peer-3``; never used twice in one simulation."""
        return self.child.name

    def excuses(self, code: int) -> bool:
        """Whether ending with ``code`` is our doing: killed, or sent home while it started."""
        stranded = self.dismissed and self.is_stranded(code)
        return self.killed or stranded or (self.dismissed and code == -signal.SIGTERM)

    def is_stranded(self, code: int) -> bool:
        """Whether it ended because all whom it could have joined by died while it started."""
        ways_died = bool(self.ways_in) and not any(way.alive for way in self.ways_in)
        return code == BootstrapError.exit_code and self.peer is None and ways_died

    def owes(self, outcome: PeerOutcome | None) -> bool:
        """Whether it should have left more than ``outcome``.

        Who never took a step, or gave its seats away, need not have finished.
        """
        if self.killed or self.failed or self.dismissed:
            return False
        took_part = self.has_stepped and bool(self.seats)
        return outcome is None or (took_part and not outcome.finished)

    def news(self) -> Iterator[ev.Entry]:
        """What it has said since the last call."""
        for entry in self.tail.read():
            self._note(entry)
            yield entry

    def _note(self, entry: ev.Entry) -> None:
        match entry.event:
            case ev.PeerStarted(addresses=addresses):
                self.peer, self.addresses, self.joined_at = entry.peer, addresses, entry.at
            case ev.SeatOpened(stage=stage, version=version):
                self.seats[stage] = version
            case ev.SeatClosed(stage=stage):
                self.seats.pop(stage, None)
            case ev.StepCommitted(stage=stage, step=step):
                self.has_stepped = True
                if stage in self.seats:
                    self.seats[stage] = Step(step + 1)
            case ev.Halted() as halted:
                self.halted = halted
            case _:
                pass
