"""What only a step's end waits for is computed again in spare time; who asks for that, and when.

    counted above, gradient back --who counted it dies--> spare --turn--> asked --BUSY--> turn ...
                                                             ^              `--offer--> sent
                                                             `--- not its turn: comes again

Intuition: with a seat its stage loses all that it had counted in the step. What the stages
below still wait for goes before everything else. Of the rest they have the gradients, so
the one stage lacks it, and not before the step ends. Computed at once it would hold up what
*all* stages wait for, and the deaths of a swarm would cost it their times one after another;
computed where a seat would do nothing, those of different stages cost theirs side by side.
16 stages x 8, a death every 14 s: of 2048 microbatches stage 0 had counted 547 after 240 s and
781 after 360 s, with this 638 and 1123 (benchmarks/capacity: "step, dying"; by hand).

Invariants: a spare frame is offered a place only by a peer with nothing else to compute
(engine/shelf), so it delays others by the one that it has begun at most (where the stage above
has lost the same one, it asks that like any replay); a BUSY on it, and that it waits where it
lies, say nothing of the seat to other frames.

Bounds: a seat has ASKS_MOST such questions out at a time, and none for as long as a refusal
said, PAUSE_SECONDS at most. Those that wait stand in a line: at once told of a loss, all would
come at once again and again. Refused: to let the idle ask for work. They cannot tell who has any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.units import Microbatch, Seconds

ASKS_MOST = 2
"""One is under way while the last is computed; more would only be refused."""

PAUSE_SECONDS = 1.0
"""Most after a refusal, which names a service of whoever refused. Idle for longer, a seat
would lose most of one to it; a question costs two messages."""

TURN_SECONDS = 0.05
"""Between the turns of two frames of a seat: a line of a hundred is through in five seconds; each
turn costs the loop a look, and a seat keeps hundreds."""

LINE_SECONDS = 5.0
"""The longest line: who would stand further back looks then whether it is its turn."""

ANSWER_SECONDS = 3.0
"""A question that has had no answer for so long is out no more: as CustodyLimits."""


class Spare:
    """The turns of one seat's spare frames. ``over``: the step is, and others wait for them all."""

    def __init__(self) -> None:
        self.over = False
        self._out: dict[Microbatch, Seconds] = {}  # until when an answer may come
        self._not_before: Seconds = 0.0
        self._line: Seconds = 0.0  # the last turn that was given

    def may_ask(self, work: Microbatch, *, now: Seconds) -> bool:
        """Whether a seat may be asked for ``work`` now; if so, the question is out."""
        self._out = {other: at for other, at in self._out.items() if at > now and other != work}
        if now < self._not_before or len(self._out) >= ASKS_MOST:
            return False
        self._out[work] = now + ANSWER_SECONDS
        return True

    def turn(self, *, now: Seconds) -> Seconds:
        """When a frame that waits may ask: behind all that wait already."""
        line = min(self._line, now + LINE_SECONDS)  # many have left it, perhaps
        self._line = max(line, now, self._not_before) + TURN_SECONDS
        return self._line

    def answered(self, work: Microbatch, *, pause_seconds: Seconds, now: Seconds) -> None:
        """All asked for ``work`` have answered. 0: one has time; else one may, after so long."""
        self._out.pop(work, None)
        if pause_seconds > 0.0:
            self._not_before = now + min(max(pause_seconds, TURN_SECONDS), PAUSE_SECONDS)
