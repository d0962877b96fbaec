"""What is bare: asked for below while the stage above lacks it, and not before, nor for ever."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.deposits import GRACE_SECONDS
from p2ptrain.engine.wanting import Wanting
from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId, Slot, Stage
from p2ptrain.wire import messages as m

BELOW, OTHER = PeerId("below"), PeerId("other")
ALL, TAKEN = 0b11111111, 0b1100
MakeBench = Callable[..., Any]


def wanting(seat: Any) -> Wanting:
    stepper = SimpleNamespace(machine=SimpleNamespace(ledger=SimpleNamespace(expected=ALL)))
    made = Wanting(seat.pipeline, stepper, seat.post)  # type: ignore[arg-type]
    seat.pipeline.shelf.borrow(TAKEN)
    made.borrowed(0.0)
    return made


def wanted(seat: Any) -> list[tuple[PeerId, int]]:
    messages = seat.post.told
    return [(peer, one.slot) for peer, one in messages if getattr(one, "state", "") == "wanted"]


def look(made: Wanting, times: int = 2) -> None:
    for _ in range(times):
        assert made.due_at is not None
        made.tick(made.due_at)


def test_what_the_stage_above_lacks_is_asked_of_all_below_after_a_while_and_again(
    bench: MakeBench,
) -> None:
    seat = bench(stage=1)
    seat.post.serving[0] = (BELOW, OTHER)
    made = wanting(seat)
    made.tick(0.0)
    look(made, 1)
    assert wanted(seat) == []  # it may be taken up there
    look(made, 1)
    assert wanted(seat) == [(BELOW, 2), (OTHER, 2), (BELOW, 3), (OTHER, 3)]
    look(made, 1)
    assert len(wanted(seat)) == 8
    assert made.due_at == 4 * GRACE_SECONDS


def test_what_is_counted_above_is_not(bench: MakeBench) -> None:
    seat = bench(stage=1)
    made = wanting(seat)
    seat.custodian.tallied("forward", 0b0100, 0.0)
    look(made)
    assert wanted(seat) == [(BELOW, 3)]


@pytest.mark.parametrize("stage", [1, 2])
def test_nothing_is_where_nothing_is_borrowed_or_above_the_last_stage(
    bench: MakeBench, stage: int
) -> None:
    seat = bench(stage=stage)
    made = wanting(seat)
    if stage == 1:
        look(made, 1)
        seat.pipeline.shelf.borrowed = 0
        look(made, 1)
        assert made.due_at is None
    else:
        look(made)
    assert wanted(seat) == []


def test_the_first_stage_takes_it_from_the_data(bench: MakeBench) -> None:
    seat = bench(stage=0)
    look(wanting(seat))
    assert [one.slot for one in seat.events if isinstance(one, ev.Sourced)] == [2, 3]


def test_who_is_asked_for_what_is_bare_here_too_asks_on(bench: MakeBench) -> None:
    seat = bench(stage=1)
    made = wanting(seat)
    for slot in (0, 2):
        made.asked(m.Whereabouts(at=seat.at, slot=Slot(slot), stage=Stage(2), state="wanted"))
    assert wanted(seat) == [(BELOW, 2)]


def test_a_new_step_wants_nothing_of_the_last(bench: MakeBench) -> None:
    seat = bench(stage=1)
    made = wanting(seat)
    look(made, 1)
    made.begin()
    look(made, 1)
    assert wanted(seat) == []
