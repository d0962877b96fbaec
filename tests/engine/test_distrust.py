"""A liar is named once, and stays one."""

from __future__ import annotations

from p2ptrain.engine.distrust import Distrust
from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId

LIAR, HONEST = PeerId("liar"), PeerId("honest")


def test_who_is_caught_is_named_once_and_no_longer_trusted() -> None:
    events: list[ev.AnyEvent] = []
    distrust = Distrust(events.append)
    assert LIAR not in distrust
    for _ in range(2):
        distrust.catch(LIAR, "has signed two SUMs")
    assert LIAR in distrust
    assert HONEST not in distrust
    assert [type(event) for event in events] == [ev.FrameRefused, ev.Alarm]
    assert "liar has signed two SUMs: it is not listened to any more" in str(events[1])
