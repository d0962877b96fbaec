"""Loans: nothing to do where no deposits are made; what was computed for one that is gone, goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.engine.items import sourced
from p2ptrain.engine.loans import Loans, let_go
from p2ptrain.units import Microbatch, PeerId, Slot, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

BELOW = PeerId("below")
WORK = Microbatch(Step(0), Slot(3))


@pytest.mark.asyncio
async def test_by_itself_it_wants_nothing() -> None:
    loans = Loans()
    assert loans.chore() is None
    await loans.give_back(0b1)
    assert loans.taking_out == 0


def test_what_is_let_go_is_not_here_and_its_sender_knows(bench: Callable[..., Any]) -> None:
    seat = bench()
    item = sourced(WORK, b"tokens", replay=True)
    item.sender, item.state = BELOW, "counted"
    seat.pipeline.shelf.put(item)
    let_go(seat.pipeline, item)
    assert seat.pipeline.shelf.get(WORK) is None
    assert seat.post.last(m.Whereabouts).state == "none"
