"""What is computed first, and what a gradient that came early waits for."""

from __future__ import annotations

from typing import Any

import pytest

from p2ptrain.engine.items import Item
from p2ptrain.units import Microbatch, Slot, Step


def item(step: int = 0, slot: int = 0, *, replay: bool = False, **changes: Any) -> Item:
    fields: dict[str, Any] = {"state": "queued", "sender": None, "path": ()}
    fields |= {"tokens": b"", "given": None, "replay": replay, **changes}
    return Item(work=Microbatch(Step(step), Slot(slot)), **fields)


def test_the_oldest_step_goes_first_then_replays_then_the_lowest_slot() -> None:
    expected = [
        item(0, 9, replay=True),
        item(0, 1),
        item(0, 2),
        item(1, 0, replay=True),
        item(1, 0),
    ]
    mixed = [expected[place] for place in (3, 1, 4, 0, 2)]
    assert sorted(mixed, key=lambda one: one.age) == expected


@pytest.mark.parametrize("state", ["queued", "computing", "parked", "counted"])
def test_a_gradient_is_back_only_for_what_is_parked(state: str) -> None:
    assert item(state=state, gradient=b"g").returned is (state == "parked")
    assert not item(state=state).returned
