"""Who may speak to whom, and what the others are told."""

import msgspec
import pytest

from p2ptrain.units import RunId
from p2ptrain.wire.handshake import refusal
from p2ptrain.wire.messages import Hello

OURS = Hello(protocol=1, run=RunId("abc"), channel="control", incarnation=1, arithmetic="cpu/2.13")


@pytest.mark.parametrize(
    "same",
    [{}, {"channel": "data"}, {"incarnation": 9}],
)
def test_what_may_differ(same: dict[str, object]) -> None:
    assert refusal(OURS, msgspec.structs.replace(OURS, **same)) is None


@pytest.mark.parametrize(
    ("other", "advice"),
    [
        ({"protocol": 2}, "update the older"),
        ({"run": "def"}, "--initial-peers"),
        ({"arithmetic": "cuda/2.13"}, "canonical"),
        ({"arithmetic": ""}, "canonical"),
    ],
)
def test_what_must_not_differ_is_told_in_one_line(other: dict[str, object], advice: str) -> None:
    line = refusal(OURS, msgspec.structs.replace(OURS, **other))
    assert line is not None
    assert advice in line
    assert "\n" not in line


def test_a_run_that_takes_any_arithmetic() -> None:
    anything = msgspec.structs.replace(OURS, arithmetic="")
    assert refusal(anything, OURS) is None
