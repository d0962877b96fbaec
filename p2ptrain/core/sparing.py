"""What only a step's end waits for is computed again in spare time; who asks for that, and when.

    counted above, gradient back --who counted it dies--> spare --turn--> asked --BUSY--> turn ...
                                                             ^              `--offer--> sent
                                                             `--- not its turn: comes again

Intuition: with a seat its stage loses all that it had counted in the step. What the stages
below still wait for goes before everything else. Of the rest they have the gradients, so
the one stage lacks it, and not before the step ends. Computed at once it would hold up what
*all* stages wait for, and the deaths of a swarm would cost it their times one after another;
computed where a seat would do nothing, those of different stages cost theirs side by side.
16 stages x 8, a death every 14 s: of 2048 microbatches stage 0 had counted 560 after 240 s and
781 after 360 s, with this 640 and 1100 (benchmarks/capacity: "step, dying").

Invariants: a spare frame is offered a place only by a seat with nothing else to compute
(engine/shelf), so it delays nothing; a BUSY on it says nothing of the seat to other frames.

Bounds: a seat has ASKS_MOST such questions out at a time, and none for PAUSE_SECONDS after
a refusal. Refused: to let the idle ask for work. They cannot tell who has any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.units import Microbatch, Seconds

ASKS_MOST = 2
"""Of eight senders, in the usual stage: each seat of the next is asked twice a second."""

PAUSE_SECONDS = 1.0
"""Idle for longer, a seat would lose most of a service to it; a question costs two messages."""

TURN_SECONDS = 2.0
"""How often a frame sees whether it is its turn; another of the same seat goes first till then."""

ANSWER_SECONDS = 3.0
"""A question that has had no answer for so long is out no more: as CustodyLimits."""


class Spare:
    """The turns of one seat's spare frames. ``over``: the step is, and others wait for them all."""

    def __init__(self) -> None:
        self.over = False
        self._out: dict[Microbatch, Seconds] = {}  # until when an answer may come
        self._not_before: Seconds = 0.0

    def may_ask(self, work: Microbatch, *, now: Seconds) -> bool:
        """Whether a seat may be asked for ``work`` now; if so, the question is out."""
        self._out = {other: at for other, at in self._out.items() if at > now and other != work}
        if now < self._not_before or len(self._out) >= ASKS_MOST:
            return False
        self._out[work] = now + ANSWER_SECONDS
        return True

    def answered(self, work: Microbatch, *, offered: bool, now: Seconds) -> None:
        """All that were asked for ``work`` have answered; ``offered``: one of them has time."""
        self._out.pop(work, None)
        if not offered:
            self._not_before = now + PAUSE_SECONDS
