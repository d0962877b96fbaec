"""A liar is named once, and stays one."""

from __future__ import annotations

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.engine.distrust import OURS_STEPS, Distrust
from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

LIAR, HONEST = PeerId("liar"), PeerId("honest")


def whole(step: int, digest: bytes = b"first") -> Sum:
    """A stage's sum."""
    return Sum(
        at=Position(epoch=0, step=Step(step), chain=Chain(bytes(32))),
        stage=Stage(1),
        digest=Digest(digest),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=0,
        paces=(),
    )


def test_we_sign_one_sum_for_each_place_and_remember_the_last_steps() -> None:
    """Two under one signature are proof of a lie, to us as well."""
    distrust = Distrust([].append)
    assert distrust.once(whole(0), lambda: whole(0)).digest == b"first"
    again = distrust.once(whole(0, b"other"), lambda: whole(0, b"other"))
    assert again.digest == b"first"
    for step in range(1, OURS_STEPS + 1):
        distrust.once(whole(step), lambda: whole(1, b"other"))
    assert distrust.once(whole(0, b"other"), lambda: whole(0, b"other")).digest == b"other"


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
