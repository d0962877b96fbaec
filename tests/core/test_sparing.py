"""Few questions at a time for what nobody waits for, and a pause where there is no time."""

import pytest

from p2ptrain.core.sparing import (
    ANSWER_SECONDS,
    ASKS_MOST,
    LINE_SECONDS,
    PAUSE_SECONDS,
    TURN_SECONDS,
    Spare,
)
from p2ptrain.units import Microbatch, Slot, Step


def work(slot: int) -> Microbatch:
    return Microbatch(Step(0), Slot(slot))


def full() -> Spare:
    spare = Spare()
    assert all(spare.may_ask(work(slot), now=0.0) for slot in range(ASKS_MOST))
    return spare


def test_only_so_many_questions_are_out_at_a_time() -> None:
    spare = full()
    assert not spare.may_ask(work(9), now=1.0)
    spare.answered(work(0), pause_seconds=0.0, now=1.0)
    assert spare.may_ask(work(9), now=1.0)


def test_a_refusal_is_a_pause_for_all_of_them() -> None:
    spare = Spare()
    assert spare.may_ask(work(0), now=0.0)
    spare.answered(work(0), pause_seconds=0.2, now=0.5)
    assert not spare.may_ask(work(1), now=0.6)
    assert spare.may_ask(work(1), now=0.7)
    spare.answered(work(1), pause_seconds=60.0, now=1.0)
    assert spare.may_ask(work(1), now=1.0 + PAUSE_SECONDS)


def test_who_waits_stands_in_a_line_and_the_line_is_short() -> None:
    spare = Spare()
    turns = [spare.turn(now=1.0) for _ in range(3)]
    assert turns == pytest.approx([1.0 + nth * TURN_SECONDS for nth in (1, 2, 3)])
    assert max(spare.turn(now=1.0) for _ in range(1000)) <= 1.0 + LINE_SECONDS + TURN_SECONDS
    assert spare.turn(now=50.0) == pytest.approx(50.0 + TURN_SECONDS)


def test_a_question_without_an_answer_makes_way() -> None:
    spare = full()
    assert not spare.may_ask(work(9), now=ANSWER_SECONDS / 2)
    assert spare.may_ask(work(9), now=ANSWER_SECONDS)


def test_the_same_frame_asks_again_in_its_own_place() -> None:
    spare = full()
    assert spare.may_ask(work(0), now=1.0)
