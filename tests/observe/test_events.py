"""Every event survives its line of JSON, and nothing else is taken for one."""

from typing import get_args

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId

KINDS = get_args(ev.AnyEvent)
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(int, st.integers(-(2**53), 2**53))


@settings(max_examples=150, deadline=None)
@given(st.one_of([st.from_type(kind) for kind in KINDS]), st.floats(0, 1e9))
def test_every_event_survives_its_line(event: ev.AnyEvent, at: float) -> None:
    entry = ev.Entry(at=at, peer=PeerId("ann"), event=event)
    line = msgspec.json.encode(entry)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=ev.Entry) == entry


def test_every_event_is_in_the_union() -> None:
    assert set(ev.Event.__subclasses__()) == set(KINDS)


@pytest.mark.parametrize(
    "event", [{"type": "Nonsense"}, {"type": "Alarm"}, {"type": "Alarm", "reason": "x", "more": 1}]
)
def test_what_is_no_event_is_refused(event: dict[str, object]) -> None:
    line = msgspec.json.encode({"at": 0.0, "peer": "ann", "event": event})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=ev.Entry)
