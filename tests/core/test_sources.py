"""A chunk goes where it would be here first; whoever is silent is not waited for long."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.core.sources import (
    FIRST_SECONDS,
    IN_FLIGHT,
    LEAST_SECONDS,
    PATIENCE,
    WINDOW,
    Source,
    next_source,
)
from p2ptrain.units import PeerId

MB = 1_000_000


def proved(name: str, rate: float) -> Source:
    source = Source(PeerId(name))
    source.ask(-1, MB, now=0.0)
    source.came(-1, now=MB / rate)
    return source


def test_a_source_is_tried_with_one_chunk_then_given_a_window() -> None:
    source = Source(PeerId("a"))
    source.ask(0, MB, now=0.0)
    assert not source.has_room
    assert source.due_at == FIRST_SECONDS
    source.came(0, now=2.0)
    assert source.rate == MB / 2
    for index in range(WINDOW):
        assert source.has_room
        source.ask(index, MB, now=2.0)
    assert not source.has_room


def test_the_deadline_follows_the_measured_rate_within_bounds() -> None:
    slow, fast, lame = proved("slow", MB / 2), proved("fast", 100 * MB), proved("lame", MB / 25)
    for source in (slow, fast, lame):
        source.ask(0, MB, now=100.0)
    assert slow.due_at == 100.0 + PATIENCE * 2.0
    assert fast.due_at == 100.0 + LEAST_SECONDS
    assert lame.due_at == 100.0 + FIRST_SECONDS


def test_chunks_are_timed_one_after_another() -> None:
    source = proved("a", MB)
    for index in range(3):
        source.ask(index, MB, now=10.0)
    source.came(0, now=12.0)
    source.came(1, now=14.0)
    assert source.rate == 0.625 * MB  # half the way to 0.5 MB/s, twice
    assert source.on_order == (2,)


def test_an_unproved_source_comes_first_and_a_full_fast_one_is_waited_for() -> None:
    fast, slow, new = proved("fast", 10 * MB), proved("slow", MB), Source(PeerId("new"))
    assert next_source([fast, slow, new], MB) is new
    new.ask(0, MB, now=0.0)
    for index in range(1, WINDOW + 1):
        assert next_source([fast, slow, new], MB) is fast
        fast.ask(index, MB, now=0.0)
    assert next_source([fast, slow, new], MB) is None  # a fifth there is sooner than one of slow


def test_a_slow_one_helps_where_it_is_sooner() -> None:
    fast, half = proved("fast", 2 * MB), proved("half", MB)
    order = []
    for index in range(6):
        source = next_source([fast, half], MB)
        assert source is not None
        order.append(source.peer)
        source.ask(index, MB, now=0.0)
    assert order.count(PeerId("half")) == 2


def test_what_is_set_aside_comes_back_with_what_it_owed() -> None:
    source = proved("a", MB)
    source.ask(0, MB, now=5.0)
    assert source.set_aside() == (0,)
    assert source.due_at is None
    assert next_source([source], MB) is None
    assert source.owes(0)
    source.came(0, now=50.0)
    assert not source.owes(0)
    assert source.rate == MB  # nobody knows when it began
    assert next_source([source], MB) is source


@given(st.lists(st.sampled_from([0.0, 1.0, 5.0, 50.0]), min_size=1, max_size=6))
def test_what_is_on_order_is_bounded(rates: list[float]) -> None:
    sources = [
        proved(str(number), rate * MB) if rate else Source(PeerId(str(number)))
        for number, rate in enumerate(rates)
    ]
    for index in range(100):
        source = next_source(sources, MB)
        if source is None:
            break
        source.ask(index, MB, now=0.0)
    assert 0 < sum(len(source.on_order) for source in sources) <= IN_FLIGHT
    assert all(len(source.on_order) <= WINDOW for source in sources)
