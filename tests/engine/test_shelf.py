"""What lies at a seat lies there once, leaves no place behind, and fits in what is retained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.offers import OfferBook
from p2ptrain.engine.items import Item, Place
from p2ptrain.engine.shelf import Shelf
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Microbatch, PeerId, Slot, Stage, Step

LIMITS = toy_spec(stages=2, microbatches=8, steps=1).limits
EACH_BYTES, ROOM = 100, 3


def work(slot: int) -> Microbatch:
    return Microbatch(Step(0), Slot(slot))


def item(slot: int, state: Any = "queued", gradient: bytes | None = None) -> Item:
    return Item(
        work=work(slot),
        state=state,
        sender=None,
        path=(),
        tokens=b"",
        given=None,
        replay=False,
        gradient=gradient,
    )


class Bench:
    """A shelf with room for three microbatches' frames."""

    def __init__(self, *, parked: int = 8) -> None:
        place = Place(
            me=PeerId("me"),
            stage=Stage(0),
            is_last=False,
            token_bytes=0,
            retained_bytes_each=EACH_BYTES,
            retained_bound=ROOM * EACH_BYTES,
        )
        self.custodian: Any = SimpleNamespace(retained_bytes=0)
        self.book = OfferBook(LIMITS, parked_bound=parked)
        self.shelf = Shelf(place, self.book, lambda: self.custodian.retained_bytes)

    def put(self, slot: int, state: Any = "queued", gradient: bytes | None = None) -> Item:
        """An item that came the usual way, with its place in the book."""
        self.book.source(work(slot))
        if state != "queued":
            self.book.started(work(slot))
        if state in ("parked", "counted"):
            self.book.computed(work(slot))
        if state == "counted":
            self.book.returned(work(slot))
        put = item(slot, state, gradient)
        self.shelf.put(put)
        return put


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_microbatch_lies_here_once(bench: Bench) -> None:
    first = bench.put(0)
    with pytest.raises(AssertionError):
        bench.shelf.put(item(0))
    assert bench.shelf.get(work(0)) is first
    assert bench.shelf.get(work(1)) is None


def test_there_is_room_for_what_can_leave_its_frames(bench: Bench) -> None:
    for slot in range(ROOM):
        assert bench.shelf.has_room()
        bench.put(slot)
    assert not bench.shelf.has_room()
    bench.shelf.drop(work(0))
    assert bench.shelf.has_room()


def test_frames_that_lie_and_offers_that_stand_take_room_and_counted_items_do_not(
    bench: Bench,
) -> None:
    for slot in range(ROOM):
        bench.put(slot, "counted")
    assert bench.shelf.has_room()
    bench.custodian.retained_bytes = (ROOM - 1) * EACH_BYTES
    assert bench.shelf.has_room()
    bench.book.ask(work(7), replay=False, now=0.0, service_seconds=1.0)
    assert not bench.shelf.has_room()


def test_what_is_dropped_leaves_no_place_behind(bench: Bench) -> None:
    bench.put(0, "parked")
    assert bench.book.parked == 1
    bench.shelf.drop(work(0))
    assert bench.book.parked == 0
    assert bench.shelf.state(work(0)) == "none"


def test_only_what_waits_is_dropped(bench: Bench) -> None:
    kept = {1: "computing", 2: "counted"}
    for slot, state in {0: "queued", **kept, 3: "parked"}.items():
        bench.put(slot, state)
    bench.put(4, "parked", b"g")
    bench.put(5)
    bench.shelf.drop_waiting(0b11111)
    assert [one.work.slot for one in bench.shelf.of(0b111111)] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("state", "gradient", "said"),
    [
        ("queued", None, "queued"),
        ("computing", None, "computing"),
        ("computing", b"g", "computing"),
        ("parked", None, "parked"),
        ("parked", b"g", "computing"),
        ("counted", b"g", "counted"),
    ],
)
def test_what_others_are_told(bench: Bench, state: str, gradient: bytes | None, said: str) -> None:
    bench.put(0, state, gradient)
    assert bench.shelf.state(work(0)) == said


def test_full_parking_stops_forwards_but_neither_backwards_nor_what_only_passes() -> None:
    bench = Bench(parked=1)
    parked = bench.put(0, "parked")
    bench.put(1)
    passing = bench.put(6)
    assert bench.shelf.oldest(lambda _work: False) is None
    assert bench.shelf.oldest(lambda one: one.slot == 6) is passing
    parked.gradient = b"g"
    assert bench.shelf.oldest(lambda _work: False) is parked


def test_what_nobody_waits_for_fits_only_where_nothing_else_could_be_computed() -> None:
    bench = Bench(parked=2)
    assert bench.shelf.has_room(spare=True)
    waiting = bench.put(0)
    assert bench.shelf.has_room()
    assert not bench.shelf.has_room(spare=True)
    waiting.state = "computing"
    assert bench.shelf.has_room(spare=True)
    bench.book.ask(work(1), replay=False, now=0.0)
    assert not bench.shelf.has_room(spare=True)  # that is on its way
    bench.book.decline(work(1))
    waiting.state, waiting.gradient = "parked", b"g"
    assert not bench.shelf.has_room(spare=True)


def test_little_that_nobody_waits_for_has_begun_at_a_time() -> None:
    bench = Bench()
    for slot in range(LIMITS.replay_slots):
        assert bench.shelf.has_room(spare=True)
        begun = item(slot, "parked")
        begun.spare = True
        bench.shelf.put(begun)
    assert not bench.shelf.has_room(spare=True)
    begun.state = "counted"
    assert bench.shelf.has_room(spare=True)


def test_more_that_is_called_spare_is_like_any(bench: Bench) -> None:
    """Its sender may call all that it sends so; the bound of parked ones holds."""
    for slot in range(LIMITS.replay_slots + 1):
        called = item(slot)
        called.spare = True
        bench.shelf.put(called)
    assert not called.spare


def test_full_parking_does_not_stop_what_will_not_park() -> None:
    bench = Bench(parked=1)
    bench.put(0, "parked")
    bench.put(1)
    assert bench.shelf.has_room(spare=True)  # what waits here cannot begin
    spare = item(2)
    spare.spare = True
    bench.shelf.put(spare)
    assert bench.shelf.oldest(lambda _work: False) is spare


def test_what_waits_is_counted_in_services(bench: Bench) -> None:
    assert bench.shelf.services_waiting() == 0
    for slot, state in enumerate(("queued", "queued", "computing", "counted", "parked")):
        bench.put(slot, state)
    bench.put(5, "parked", b"g")
    assert bench.shelf.services_waiting() == pytest.approx(2 + 2 / 3)


def test_it_is_drained_when_all_is_counted_or_gone(bench: Bench) -> None:
    assert bench.shelf.drained
    one = bench.put(0, "parked")
    assert not bench.shelf.drained
    one.state = "counted"
    assert bench.shelf.drained
    bench.shelf.take(work(0))
    bench.put(1)
    bench.shelf.clear()
    assert bench.shelf.drained


def test_what_is_counted_keeps_its_place_and_not_its_frames(bench: Bench) -> None:
    counted, waiting = bench.put(0, "counted", b"g"), bench.put(1, "parked", b"g")
    bench.shelf.lighten()
    assert (counted.tokens, counted.given, counted.gradient) == (b"", None, None)
    assert bench.shelf.state(work(0)) == "counted"
    assert waiting.gradient == b"g"


def test_what_waits_for_its_gradient_is_a_set_of_slots(bench: Bench) -> None:
    for slot, state, gradient in ((0, "queued", None), (1, "parked", None), (2, "parked", b"g")):
        bench.put(slot, state, gradient)
    bench.put(4, "parked")
    bench.put(3, "counted")
    assert bench.shelf.parked() == 0b10010


def test_what_is_owed_ends_with_the_count_and_holds_what_is_parked(bench: Bench) -> None:
    assert bench.shelf.services_owed() == 0
    bench.put(0, "queued")
    bench.put(1, "computing")
    assert bench.shelf.services_owed() == pytest.approx(2)
    bench.put(2, "computing", b"g")
    bench.put(3, "parked")
    bench.put(4, "parked", b"g")
    assert bench.shelf.services_owed() == pytest.approx(4)
    bench.put(5, "counted", b"g")
    assert bench.shelf.services_owed() == pytest.approx(4)


def test_what_others_sent_and_has_not_begun_is_found_oldest_first(bench: Bench) -> None:
    sent = [bench.put(slot) for slot in (3, 1)]
    for item in sent:
        item.sender = PeerId("below")
    bench.put(0).sender = None  # taken from the data
    bench.put(2, "parked").sender = PeerId("below")
    assert bench.shelf.given_waiting() == sent[::-1]


def test_what_is_borrowed_is_bare_until_something_of_it_lies_here() -> None:
    bench = Bench()
    bench.shelf.borrow(0b110)
    assert (bench.shelf.bare, bench.shelf.get_borrowed()) == (0b110, 0b110)
    assert bench.shelf.state(work(1)) == "bare"
    assert bench.shelf.state(work(0)) == "none"
    bench.put(1)
    assert (bench.shelf.bare, bench.shelf.state(work(1))) == (0b100, "queued")
    bench.shelf.clear()
    assert bench.shelf.borrowed == 0


def test_what_only_the_end_of_the_step_waits_for_goes_when_it_is_borrowed() -> None:
    bench = Bench()
    bench.put(1).spare = True
    bench.put(2)
    bench.shelf.borrow(0b110)
    assert bench.shelf.get(work(1)) is None
    assert bench.shelf.get(work(2)) is not None
