"""Duties are found by deadline and by slot exactly as if all were looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core import duties as c
from p2ptrain.core.custody import Custody
from p2ptrain.engine.docket import WAYS, Docket
from p2ptrain.units import Microbatch, PeerId, Slot, Step

if TYPE_CHECKING:
    from p2ptrain.units import Seconds

LIMITS = c.CustodyLimits()


def duty(slot: int, *, due_at: Seconds | None, counted: bool) -> Custody:
    made = Custody(Microbatch(Step(0), Slot(slot)), LIMITS, target=PeerId("there"))
    made.due_at = due_at
    made.state = c.State.COUNTED if counted else c.State.HELD
    return made


turns = st.lists(
    st.tuples(st.integers(0, 15), st.none() | st.floats(0.0, 10.0), st.booleans()), max_size=40
)


@given(turns, st.floats(0.0, 10.0), st.integers(0, 0xFFFF))
def test_what_is_found_is_what_looking_at_all_would_find(
    history: list[tuple[int, Seconds | None, bool]], now: Seconds, union: int
) -> None:
    docket, known = Docket(), dict[int, Custody]()
    for slot, due_at, counted in history:
        if slot not in known:
            known[slot] = duty(slot, due_at=due_at, counted=counted)
            docket.add(known[slot])
        known[slot].due_at = due_at
        known[slot].state = c.State.COUNTED if counted else c.State.HELD
        docket.note(known[slot])
        dues = [each.due_at for each in known.values() if each.due_at is not None]
        assert not dues or (docket.due_at is not None and docket.due_at <= min(dues))
    late = [s for s, each in known.items() if each.due_at is not None and each.due_at <= now]
    assert [work.slot for work, _ in docket.due(now)] == sorted(late)
    docket.look_ahead()
    dues = [each.due_at for each in known.values() if each.due_at is not None]
    assert docket.due_at == min(dues, default=None)
    news = sum(
        1 << slot
        for slot, each in known.items()
        if (each.state is c.State.COUNTED) != bool(union >> slot & 1)
    )
    assert docket.news("gradient", union) == news
    assert docket.news("forward", union) == 0
    assert [work.slot for work, _ in docket] == sorted(known)


def test_one_direction_is_dropped_and_the_other_stays() -> None:
    docket = Docket()
    gone = duty(3, due_at=1.0, counted=False)
    docket.add(gone)
    docket.note(gone)
    assert docket.drop("forward") == []
    assert (gone.work, "gradient") in docket
    assert docket.drop("gradient") == [(gone.work, "gradient")]
    assert docket.get((gone.work, "gradient")) is None
    assert docket.due(2.0) == []
    assert [docket.news(what, -1) for what in WAYS] == [0, 0]
