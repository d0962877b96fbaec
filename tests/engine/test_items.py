"""What is computed first, and what a gradient that came early waits for."""

from __future__ import annotations

from typing import Any

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.engine.items import Item, arrived, sourced
from p2ptrain.units import Chain, Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire.messages import Forward


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


def test_what_nobody_waits_for_begins_last_in_its_step_and_then_is_like_any() -> None:
    waiting = item(0, 0, replay=True, spare=True)
    expected = [item(0, 9, replay=True), item(0, 8), waiting, item(1, 0, replay=True)]
    mixed = [expected[place] for place in (2, 3, 1, 0)]
    assert sorted(mixed, key=lambda one: one.age) == expected
    begun = item(0, 0, replay=True, spare=True, state="parked", gradient=b"g")
    assert item(0, 9, replay=True).age < begun.age < item(0, 1).age


def test_once_a_seat_below_replays_it_somebody_waits_for_it() -> None:
    waiting = item(replay=True, spare=True, path=(PeerId("dead"),))
    waiting.move(PeerId("new"))
    assert (waiting.sender, waiting.path, waiting.spare) == ("new", ("new",), False)
    begun = item(replay=True, spare=True, state="computing", path=(PeerId("dead"),))
    begun.move(PeerId("new"))
    assert begun.spare  # its place is not among the parked ones, and will not be


@pytest.mark.parametrize("state", ["queued", "computing", "parked", "counted"])
def test_a_gradient_is_back_only_for_what_is_parked(state: str) -> None:
    assert item(state=state, gradient=b"g").returned is (state == "parked")
    assert not item(state=state).returned


def test_a_frame_is_token_ids_then_the_input_and_says_where_it_comes_from() -> None:
    at = Position(epoch=0, step=Step(2), chain=Chain(bytes(32)))
    below = PeerId("below")
    frame = Forward(at=at, slot=Slot(3), stage=Stage(1), attempt=0, replay=True, path=(below,))
    one = arrived(below, frame, memoryview(b"tokeninput"), 5)
    assert (one.work, one.state, one.sender, one.path) == (
        Microbatch(Step(2), Slot(3)),
        "queued",
        below,
        (below,),
    )
    assert (bytes(one.tokens), bytes(one.given or b""), one.replay) == (b"token", b"input", True)


def test_what_comes_from_the_data_has_no_sender() -> None:
    one = sourced(Microbatch(Step(0), Slot(1)), b"token", replay=False)
    assert (one.sender, one.path, one.given, one.tokens) == (None, (), None, b"token")
