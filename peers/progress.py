"""What a swarm is doing, from its peers' event logs: for a terminal, and for plain lines.

The logs are read from outside, as they grow; nothing is asked of the peers, so watching
cannot disturb them. A kill may tear the last line of a log: an unfinished line waits for
its end and is never read.

Refused: reading text meant for people (regular expressions over one's own log).
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
from rich.table import Table

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from p2ptrain.units import PeerId, Seconds, Stage, Step

RATE_STEPS = 10
"""Tokens per second are taken over the last ten steps: smooth, and soon up to date."""

ALMOST = 0.95
"""Of a step is the most that is said to be done before it has committed."""


class Tail:
    """A growing events.jsonl. ``read`` gives what came since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._decode = msgspec.json.Decoder(ev.Entry).decode

    def read(self) -> Iterator[ev.Entry]:
        """Whole new lines; none while the file is not there yet.

        Raises:
            msgspec.DecodeError: a line is no event of this version.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                yield self._decode(line)


class Progress:
    """The state of a run as its events tell it.

    ``moved_at``: when a step was last taken or, before the first, when a peer came up.
    """

    def __init__(self, *, stages: int, steps: int) -> None:
        self.stages, self.steps = stages, steps
        self.step: Step | None = None
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.started: set[PeerId] = set()
        self.ended: set[PeerId] = set()
        self.busy = 0
        self.suspected = 0
        self.alarms: list[str] = []
        self.moved_at: Seconds | None = None
        self._seats: set[tuple[PeerId, Stage]] = set()
        self._queues: dict[tuple[PeerId, Stage], int] = {}
        self._commits: deque[tuple[Seconds, int]] = deque(maxlen=RATE_STEPS + 1)

    def feed(self, entry: ev.Entry, *, now: Seconds) -> None:  # noqa: C901, PLR0912 -- one match
        """Take in one event that was read at ``now``."""
        peer = entry.peer
        match entry.event:
            case ev.PeerStarted():
                self.started.add(peer)
                if self.step is None:
                    self.moved_at = now
            case ev.PeerStopped() | ev.FaultFired(fault="kill"):
                self._seats = {seat for seat in self._seats if seat[0] != peer}
            case ev.SeatOpened(stage=stage):
                self._seats.add((peer, stage))
            case ev.SeatClosed(stage=stage):
                self._seats.discard((peer, stage))
            case ev.StepCommitted() as commit:
                self._commit(commit, now)
            case ev.Bounds(stage=stage, queue=queue):
                self._queues[peer, stage] = queue
            case ev.BusySaid():
                self.busy += 1
            case ev.Suspected():
                self.suspected += 1
            case ev.Alarm(reason=reason):
                self.alarms.append(f"{peer[-6:]}: {reason}")
            case ev.RunEnded():
                self.ended.add(peer)
            case _:
                pass

    @property
    def tokens_per_second(self) -> float | None:
        """Over the last steps; None before the second commit."""
        if len(self._commits) < 2:  # noqa: PLR2004 -- a rate needs two points
            return None
        began, ended = self._commits[0][0], self._commits[-1][0]
        tokens = sum(tokens for _, tokens in list(self._commits)[1:])
        return tokens / (ended - began) if ended > began else None

    def steps_taken(self, *, now: Seconds) -> float | None:
        """Steps since the start, the present one by its time so far; None before the first."""
        if self.step is None:
            return None
        began, ended = self._commits[0][0], self._commits[-1][0]
        pace = (ended - began) / max(1, len(self._commits) - 1)
        return self.step + 1 + (min((now - ended) / pace, ALMOST) if pace > 0 else 0.0)

    def longest_step_seconds(self) -> Seconds:
        """Of the last steps."""
        times = [at for at, _ in self._commits]
        return max((late - early for early, late in pairwise(times)), default=0.0)

    def seats(self) -> tuple[int, ...]:
        """How many seats serve each stage now."""
        return tuple(sum(held == stage for _, held in self._seats) for stage in range(self.stages))

    def line(self) -> str:
        """The state in one line of plain text."""
        seats = "/".join(map(str, self.seats()))
        if self.step is None:
            return f"starting: {len(self.started)} peers up, seats per stage {seats}"
        parts = [f"step {self.step}/{self.steps}", *self._figures(), f"seats {seats}"]
        queue = sum(self._queues.values())
        return "  ".join([*parts, f"queued {queue}", f"busy answers {self.busy}"])

    def table(self) -> Table:
        """The state for a terminal, by stage."""
        title = self.line() if self.step is None else "  ".join(
            [f"step {self.step}/{self.steps}", *self._figures()]
        )  # fmt: skip
        table = Table(title=title, title_justify="left", title_style="bold")
        for column in ("stage", "seats", "queued"):
            table.add_column(column, justify="right")
        for stage, seats in enumerate(self.seats()):
            queue = sum(queue for (_, held), queue in self._queues.items() if held == stage)
            table.add_row(str(stage), str(seats), str(queue), style=None if seats else "red")
        trouble = f"busy answers {self.busy}, suspicions {self.suspected}"
        table.caption = "  ".join([trouble, *self.alarms[-1:]])
        return table

    def _commit(self, commit: ev.StepCommitted, now: Seconds) -> None:
        if self.step is not None and commit.step <= self.step:
            return  # another seat's commit of a step that we know
        self.step, self.moved_at = commit.step, now
        if commit.loss is not None:
            self.loss = commit.loss
        if commit.val_loss is not None:
            self.val_loss = commit.val_loss
        self._commits.append((now, commit.tokens))

    def _figures(self) -> Iterator[str]:
        for name, loss in (("loss", self.loss), ("val", self.val_loss)):
            if loss is not None:
                yield f"{name} {loss:.3f}"
        if (rate := self.tokens_per_second) is not None:
            yield f"{rate:,.0f} tokens/s"
