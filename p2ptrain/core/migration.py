"""When a peer that serves looks for a stage that needs it more, and when it goes.

    resting --every LOOK_SECONDS, at a random phase--> look: nothing to gain -> resting
        a move would lift the weakest stage -> waiting, the longer the higher its rank
    waiting --> look again: the same answer -> moving (the caller claims, loads, hands over)
                            another, or none -> waiting for that, or resting
    moving  --ended--> resting, long after a move, ever longer after failures
    resting --somebody is gone who did not say so--> look at once, and often for a while

Intuition: what to do is ``assignment.migrate``; this is only about not doing it twice. All
peers see an imbalance at the same time, and if all mend it there is a worse one. Whoever is
first in rank claims first, and the others, looking again, see the claim. After a loss the whole
swarm waits for the stage that had it, and one move may not be enough: hence the alert.

Invariants:
    * nobody moves on one look, nor within REST_SECONDS of its last move;
    * a failed move is tried again after a pause that doubles up to PAUSE_MOST_SECONDS.

Refused: asking who may move. Somebody would have to answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from p2ptrain.core.assignment import migrate, migration_wait

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from p2ptrain.core.assignment import Migration, SeatView
    from p2ptrain.units import PeerId, Seconds

LOOK_SECONDS: Final = 30.0
"""Rates are known after a few microbatches; a step is rarely shorter than a few seconds."""

REST_SECONDS: Final = 120.0
"""After a move: for its effect on everybody's rates to be seen before the next."""

ALERT_SECONDS: Final = 60.0
"""After a loss: so long a first mover's claim and those that its move calls for take to be made."""

ALERT_LOOK_SECONDS: Final = 10.0
"""Between looks then: a rank's wait; what was claimed meanwhile is known."""

PAUSE_MOST_SECONDS: Final = 600.0
"""A donor that cannot give state today may tomorrow, and asking costs little."""

SPREAD: Final = 0.2
"""Part of every pause that is drawn, so that phases stay apart."""


class Mover:
    """One peer's looks. Call :meth:`look` at ``due_at``, and :meth:`ended` after a move."""

    def __init__(self, me: PeerId, *, stages: int, rng: random.Random, now: Seconds) -> None:
        self.due_at: Seconds = now + rng.random() * LOOK_SECONDS
        self._me, self._stages, self._rng = me, stages, rng
        self._waiting: Migration | None = None
        self._failures = 0
        self._serving: frozenset[PeerId] = frozenset()  # at the last call, and not leaving
        self._alert_until: Seconds = -math.inf
        self._rests_until: Seconds = -math.inf  # after a move, or one that failed

    def look(self, view: Sequence[SeatView], *, now: Seconds) -> Migration | None:
        """A move to be made now, or None. Before ``due_at`` it only sees whether anybody is gone.

        Call it with every view: about once a second.
        """
        self._watch(view, now)
        if now < self.due_at:
            return None
        before, self._waiting = self._waiting, None
        found = migrate(view, self._me, stages=self._stages)
        if found is None:
            self._rest(ALERT_LOOK_SECONDS if now < self._alert_until else LOOK_SECONDS, now)
        elif before is None or (before.source, before.target) != (found.source, found.target):
            self._waiting = found
            self.due_at = now + migration_wait(found.rank, rng=self._rng)
        else:
            self.due_at = math.inf  # until it has ended
            return found
        return None

    def ended(self, *, moved: bool, now: Seconds) -> None:
        """The move that :meth:`look` returned is over, one way or the other."""
        self._failures = 0 if moved else self._failures + 1
        pause = REST_SECONDS if moved else LOOK_SECONDS * 2.0**self._failures
        self._rest(min(pause, PAUSE_MOST_SECONDS), now)
        self._rests_until = self.due_at

    def _watch(self, view: Sequence[SeatView], now: Seconds) -> None:
        """Be alert if somebody is gone who has not said so; who leaves drains before."""
        gone = self._serving.difference({seat.peer for seat in view})
        self._serving = frozenset({seat.peer for seat in view if seat.state != "draining"})
        if gone:
            self._alert_until = now + ALERT_SECONDS
        if gone and self._waiting is None and self.due_at < math.inf:
            soon = now + self._rng.random() * ALERT_LOOK_SECONDS
            self.due_at = min(self.due_at, max(soon, self._rests_until))

    def _rest(self, seconds: Seconds, now: Seconds) -> None:
        self.due_at = now + seconds * (1.0 + SPREAD * (self._rng.random() - 0.5))
