"""The open duties of one custodian, found by microbatch, by deadline and by slot.

Intuition: a seat keeps thousands of frames to the step's end, but at any moment only some
wait for a deadline, and a bitmap brings news of a few. Whoever asks gets those alone.

Invariants:
    * after every turn of a duty :meth:`note` is called, and nothing else changes it;
    * what is handed out is in order of microbatch, so that two runs do the same.

Refused: looking at all duties each time. In a stage of 8 with 2048 microbatches a step that
was most of the processor's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.core import duties as c

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.core.custody import Custody
    from p2ptrain.units import Microbatch, Seconds

Key: TypeAlias = "tuple[Microbatch, c.What]"
WAYS: tuple[c.What, c.What] = ("forward", "gradient")


class Docket:
    """See the module. ``due_at``: no deadline is nearer; it may be early, never late."""

    def __init__(self) -> None:
        self.due_at: Seconds | None = None
        self._duties: dict[Key, Custody] = {}
        self._deadlines: dict[Key, Seconds] = {}
        self._slots: dict[c.What, int] = dict.fromkeys(WAYS, 0)
        self._counted: dict[c.What, int] = dict.fromkeys(WAYS, 0)  # who know that they are
        self._unions: dict[c.What, int] = dict.fromkeys(WAYS, 0)  # as told last

    def __contains__(self, key: Key) -> bool:
        return key in self._duties

    def __iter__(self) -> Iterator[Key]:
        """Every duty there is now, in order."""
        return iter(sorted(self._duties))

    def get(self, key: Key) -> Custody | None:
        """The duty for a frame, if there is one."""
        return self._duties.get(key)

    def add(self, duty: Custody) -> None:
        """A new one; note it once it has begun."""
        self._duties[duty.work, duty.what] = duty
        self._slots[duty.what] |= 1 << duty.work.slot

    def note(self, duty: Custody) -> None:
        """It has had a turn: its state or its deadline may be another."""
        key, what, bit = (duty.work, duty.what), duty.what, 1 << duty.work.slot
        counted = self._counted[what]
        self._counted[what] = counted | bit if duty.state is c.State.COUNTED else counted & ~bit
        if duty.due_at is None:
            self._deadlines.pop(key, None)
            return
        self._deadlines[key] = duty.due_at
        if self.due_at is None or duty.due_at < self.due_at:
            self.due_at = duty.due_at

    def due(self, now: Seconds) -> list[Key]:
        """Whose deadline has passed."""
        return sorted(key for key, at in self._deadlines.items() if at <= now)

    def look_ahead(self) -> None:
        """All that was due has had its turn: find the next deadline."""
        self.due_at = min(self._deadlines.values(), default=None)

    def news(self, what: c.What, union: int) -> int:
        """Slots of which it is new to their duties whether they stand in ``union``."""
        self._unions[what] = union
        return self._slots[what] & (union ^ self._counted[what])

    def slots(self, what: c.What) -> int:
        """The slots of all duties of one direction."""
        return self._slots[what]

    def counted_there(self, what: c.What) -> int:
        """The slots that are counted where frames of this direction go, as far as was told."""
        return self._unions[what]

    def drop(self, what: c.What) -> list[Key]:
        """Forget all of one direction, and say which."""
        dropped = [key for key in self._duties if key[1] == what]
        for key in dropped:
            del self._duties[key]
            self._deadlines.pop(key, None)
        self._slots[what] = self._counted[what] = self._unions[what] = 0
        return dropped
