"""What a link brings: its sender is alive, then it is heard, then the timer looks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.engine.reception import Reception
from p2ptrain.sim import loop
from p2ptrain.units import Chain, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

PEER = PeerId("peer")
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))
MANIFEST = m.WantManifest(stage=Stage(1), version=Step(0))
NO_SUM = m.NoSuch(what="sum", stage=Stage(1), reason="")


class Desk:
    """A reception between parts that remember what they were called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.answers: dict[str, Any] = {"near.told": True}
        self.links = SimpleNamespace(incarnation=lambda _peer: 7)
        parts = {
            "dispatch": ("flow", "round", "frame"),
            "near": ("heard", "told", "left", "up", "down", "is_near"),
            "snapshots": ("handle", "lost"),
            "timer": ("rearm", "wake_by"),
        }
        made = [
            SimpleNamespace(due_at=9.0, **{name: self.part(f"{part}.{name}") for name in names})
            for part, names in parts.items()
        ]
        reception: Any = Reception
        reception(self.links, *made, self.part("give_state")).attend()

    def part(self, name: str) -> Callable[..., Any]:
        def called(*_: Any) -> Any:
            self.calls.append(name)
            return self.answers.get(name, False)

        return called

    def bring(self, kind: str, *what: Any) -> list[str]:
        """The parts that heard of it, in order."""

        async def main() -> None:
            getattr(self.links, f"on_{kind}")(PEER, *what)

        loop.run(main())
        return self.calls


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.mark.parametrize(
    ("message", "there"),
    [
        (m.Where(at=AT, slot=Slot(0), stage=Stage(1)), ["dispatch.flow"]),
        (m.PullSum(at=AT, stage=Stage(1)), ["dispatch.round"]),
        (m.Leaving(reason="done"), ["near.left"]),
        (m.Heartbeat(count=1, lag_seconds=0.0, seats=()), ["near.told"]),
        (MANIFEST, ["give_state", "snapshots.handle"]),
        (NO_SUM, ["snapshots.handle", "dispatch.round"]),
    ],
)
def test_the_sender_lives_then_it_is_heard_then_the_timer_looks(
    desk: Desk, message: m.Control, there: list[str]
) -> None:
    assert desk.bring("control", message) == ["near.heard", *there, "timer.rearm"]


def test_a_heartbeat_without_news_moves_one_deadline_at_most(desk: Desk) -> None:
    desk.answers["near.told"] = False
    beat = m.Heartbeat(count=1, lag_seconds=0.0, seats=())
    assert desk.bring("control", beat) == ["near.heard", "near.told", "timer.wake_by"]


def test_who_asks_a_seat_of_ours_for_state_is_answered_by_it_alone(desk: Desk) -> None:
    desk.answers["give_state"] = True
    assert desk.bring("control", MANIFEST) == ["near.heard", "give_state", "timer.rearm"]


def test_a_refusal_that_a_transfer_waits_for_goes_no_further(desk: Desk) -> None:
    desk.answers["snapshots.handle"] = True
    refused = msgspec.structs.replace(NO_SUM, what="snapshot")
    assert desk.bring("control", refused) == ["near.heard", "snapshots.handle", "timer.rearm"]


@pytest.mark.parametrize("pulled", [True, False])
def test_a_frame_belongs_to_a_transfer_or_to_a_seat(desk: Desk, *, pulled: bool) -> None:
    desk.answers["snapshots.handle"] = pulled
    frame = m.Gradient(at=AT, slot=Slot(0), stage=Stage(1))
    there = ["snapshots.handle"] if pulled else ["snapshots.handle", "dispatch.frame"]
    assert desk.bring("data", frame, memoryview(b"")) == ["near.heard", *there, "timer.rearm"]


def test_links_that_come_and_go_are_told_to_who_waits_for_them(desk: Desk) -> None:
    assert desk.bring("up") == ["near.up", "timer.rearm"]
    desk.calls.clear()
    assert desk.bring("down", "reset") == ["near.down", "snapshots.lost", "timer.rearm"]


def test_heartbeats_go_to_whoever_is_near(desk: Desk) -> None:
    desk.answers["near.is_near"] = True
    assert desk.links.beats_to(PEER)
