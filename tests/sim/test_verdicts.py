"""A verdict keeps the first problems and says how many there were."""

from p2ptrain.sim.verdicts import SHOWN_PROBLEMS, verdict


def test_without_problems_it_holds() -> None:
    assert verdict("I1", 3, []).holds
    assert verdict("I1", 3, []).facts == 3


def test_the_first_problems_are_shown_and_the_others_counted() -> None:
    found = verdict("I2", 1, [f"problem {number}" for number in range(SHOWN_PROBLEMS + 5)])
    assert not found.holds
    assert len(found.problems) == SHOWN_PROBLEMS + 1
    assert found.problems[-1] == "and 5 more"
