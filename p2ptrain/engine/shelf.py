"""The microbatches that lie at one seat, in every state, and whether one more fits.

Invariants:
    * a microbatch lies here at most once;
    * what leaves before it is counted leaves the offer book, too: no place is held for
      what is gone;
    * there is room only if everything that is here or offered can leave its frames in
      memory; from there they are spilled, and make room, while the disk takes them.

Bounded by the offer book (queue and parked) and by the slots of a step (counted ones stay,
so that they can be subtracted). Refused: a queue per state. An item moves five times, and
the oldest of all states is wanted next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.offers import OfferBook
    from p2ptrain.engine.items import Held, Item, Place
    from p2ptrain.units import Bytes, Microbatch


class Shelf:
    """One seat's items by microbatch. ``retained``: what is kept in memory now."""

    def __init__(self, place: Place, book: OfferBook, retained: Callable[[], Bytes]) -> None:
        self.on_short: Callable[[], None] = lambda: None
        self._place, self._book, self._retained = place, book, retained
        self._items: dict[Microbatch, Item] = {}
        self.get = self._items.get
        self.borrowed = 0  # slots that count here without ever having lain here (core/deposits)

    def put(self, item: Item) -> None:
        """The item lies here from now on; nothing of its microbatch may be here yet."""
        assert item.work not in self._items
        item.spare &= self._few_spare()  # its sender may say so of all that it sends
        self._items[item.work] = item

    def take(self, work: Microbatch) -> None:
        """A counted item was subtracted: it is no longer here."""
        del self._items[work]

    def drop(self, work: Microbatch) -> None:
        """An item that is not counted goes, and gives its place back."""
        self._book.forget(work)
        del self._items[work]

    def drop_waiting(self, slots: int) -> None:
        """Drop what of ``slots`` only waits; a gradient that is here is computed all the same."""
        for work, item in list(self._items.items()):
            waits = item.state in ("queued", "parked") and item.gradient is None
            if waits and slots >> work.slot & 1:
                self.drop(work)

    def borrow(self, slots: int) -> None:
        """These count here from now on: what of them only waits is of no use."""
        self.borrowed |= slots
        for work, item in list(self._items.items()):
            waits = item.state in ("queued", "parked") and item.gradient is None
            if waits and item.spare and slots >> work.slot & 1:
                self.drop(work)

    def lighten(self) -> None:
        """What is counted is not computed again: let go of its frames."""
        for item in self._items.values():
            if item.state == "counted":
                item.tokens, item.given, item.gradient = b"", None, None

    def clear(self) -> None:
        """The step is over."""
        self._items.clear()
        self.borrowed = 0

    # --- what is here, and what still fits --------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether all that is here is counted."""
        return all(item.state == "counted" for item in self._items.values())

    def has_room(self, *, spare: bool = False) -> bool:
        """Whether one more fits, when all that is here or is offered has left its frames.

        If not, ``on_short`` is told: somebody is refused. What nobody waits for (``spare``)
        is given a place only where nothing else could be computed.
        """
        if spare and not self._has_spare_time():
            return False
        fits = self._retained() + self.coming_bytes() <= self._place.retained_bound
        if not fits:
            self.on_short()
        return fits

    def _has_spare_time(self) -> bool:
        """Whether nothing waits for the compute here, and little of this kind has begun."""
        may_start = self._book.may_start()
        for item in self._items.values():
            if item.returned or (item.state == "queued" and (may_start or item.spare)):
                return False
        return not self._book.reserved and self._few_spare()

    def _few_spare(self) -> bool:
        """Whether one more may pass the bound of parked ones: it has one of its own."""
        begun = sum(item.spare and item.state != "counted" for item in self._items.values())
        return begun < self._book.limits.replay_slots

    def coming_bytes(self) -> Bytes:
        """What all that is here or is offered, and one more, will leave in memory at most."""
        open_items = sum(item.state != "counted" for item in self._items.values())
        return (open_items + self._book.reserved + 1) * self._place.retained_bytes_each

    def state(self, work: Microbatch) -> Held:
        """What is here; a parked one whose gradient has come counts as being computed."""
        item = self._items.get(work)
        if item is None:
            return "bare" if self.borrowed >> work.slot & 1 else "none"
        returned = item.gradient is not None and item.state != "counted"
        return "computing" if returned else item.state

    def get_borrowed(self) -> int:
        """The slots that are borrowed now."""
        return self.borrowed

    @property
    def bare(self) -> int:
        """The borrowed slots of which nothing lies here."""
        slots = self.borrowed
        for work in self._items if slots else ():
            slots &= ~(1 << work.slot)
        return slots

    def of(self, slots: int) -> list[Item]:
        """The items of these slots, oldest first."""
        return [self._items[work] for work in sorted(self._items) if slots >> work.slot & 1]

    def oldest(self, passes: Callable[[Microbatch], bool]) -> Item | None:
        """What may be computed first; see ``Item.age``. What ``passes`` parks nothing."""
        may_start = self._book.may_start()
        ready = (
            item
            for item in self._items.values()
            if item.returned
            or (item.state == "queued" and (may_start or item.spare or passes(item.work)))
        )
        return min(ready, key=lambda item: item.age, default=None)

    def sourced_waiting(self) -> int:
        """Slots that were taken from the data, and whose forward has not begun, as a set."""
        slots = 0
        for work, item in self._items.items():
            if item.state == "queued" and item.sender is None:
                slots |= 1 << work.slot
        return slots

    def parked(self) -> int:
        """Slots whose gradient has not come, as a set."""
        slots = 0
        for work, item in self._items.items():
            if item.state == "parked" and item.gradient is None:
                slots |= 1 << work.slot
        return slots

    def services_waiting(self) -> float:
        """How many services wait here: a backward, about two forwards, is two thirds of one."""
        items = self._items.values()
        forwards = sum(item.state == "queued" for item in items)
        backwards = sum(item.returned for item in items)
        return forwards + backwards * 2 / 3

    def services_owed(self) -> float:
        """How many services it takes to count all that is here, what is computing included."""
        return sum(item.services_owed for item in self._items.values())

    def given_waiting(self) -> list[Item]:
        """What others have sent and whose forward has not begun, oldest first."""
        given = (i for i in self._items.values() if i.state == "queued" and i.sender is not None)
        return sorted(given, key=lambda item: item.age)
