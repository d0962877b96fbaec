"""Towards the end of a step a slow seat refuses, and gives back, what its mates end sooner."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.ending import Ending
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.units import Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

ME, MATE, BELOW = PeerId("me"), PeerId("mate"), PeerId("below")
SLOW_SECONDS = 10.0


class Stage1:
    """A seat of ten seconds a microbatch beside a mate of one, of whom ``left`` slots are left."""

    def __init__(self, bench: Any) -> None:
        self.bench, self.pipeline, self.post = bench, bench.pipeline, bench.post
        self.left = 0xFF
        self.pipeline.pace.observe(SLOW_SECONDS)
        seats = [self._seat(ME, 1 / SLOW_SECONDS), self._seat(MATE, 1.0)]
        around: Any = SimpleNamespace(
            roster=SimpleNamespace(serving=lambda _stage: seats), signer=SimpleNamespace(peer=ME)
        )
        ledger = SimpleNamespace(missing=lambda: self.left)
        stepper: Any = SimpleNamespace(machine=SimpleNamespace(ledger=ledger, at=bench.at))
        self.ending = Ending(self.pipeline, stepper, around)

    @staticmethod
    def _seat(peer: PeerId, rate: float) -> SeatView:
        return SeatView(peer=peer, stage=Stage(1), state="serving", rate=rate, version=Step(0))

    def ask(self, slot: int) -> type:
        at = self.bench.at
        ask = m.Ask(at=at, slot=Slot(slot), stage=Stage(1), attempt=0, replay=False)
        self.pipeline.ask(BELOW, ask, 0.0)
        return type(self.post.told[-1][1])

    def arrive(self, slots: Iterable[int]) -> None:
        for slot in slots:
            frame = m.Forward(
                at=self.bench.at,
                slot=Slot(slot),
                stage=Stage(1),
                attempt=0,
                replay=False,
                path=(BELOW,),
            )
            self.pipeline.forward(BELOW, frame, memoryview(b"tokeninput"), 0.0)

    def park(self) -> None:
        item = self.pipeline.next_job()
        item.state = "computing"
        self.pipeline.book.started(item.work)
        self.pipeline.book.computed(item.work)
        item.state = "parked"

    def here(self) -> list[int]:
        works = [Microbatch(Step(0), Slot(slot)) for slot in range(8)]
        return [work.slot for work in works if self.pipeline.holds(work)]


Play = Callable[[Callable[[Stage1], None]], None]


@pytest.fixture
def play(bench: Callable[..., Any]) -> Play:
    def run(scene: Callable[[Stage1], None]) -> None:
        async def main() -> None:
            scene(Stage1(bench()))

        played: Coroutine[None, None, None] = main()
        loop.run(played)

    return run


def test_it_takes_what_it_ends_before_its_mates_are_through(play: Play) -> None:
    def scene(seat: Stage1) -> None:  # they need eight seconds and two
        seat.left = 0xFF
        assert seat.ask(0) is m.Offer
        seat.left = 0x7F
        assert seat.ask(1) is m.Busy

    play(scene)


def test_what_is_parked_here_counts(play: Play) -> None:
    def scene(seat: Stage1) -> None:
        seat.arrive([0])
        seat.park()
        assert seat.ask(1) is m.Busy  # sixteen seconds with it, and they need ten

    play(scene)


def test_what_waits_in_vain_goes_back_youngest_first(play: Play) -> None:
    def scene(seat: Stage1) -> None:
        seat.left = (1 << 40) - 1
        seat.arrive([0, 1, 2, 3])
        seat.ending.look()
        assert seat.here() == [0, 1, 2, 3]  # forty seconds of forty-two
        seat.left = (1 << 20) - 1
        seat.ending.look()
        assert seat.here() == [0, 1]
        given_back = [(x.slot, x.state) for x in seat.post.all(m.Whereabouts)]
        assert given_back == [(3, "none"), (2, "none")]
        assert seat.pipeline.book.queue == 2

    play(scene)


def test_what_has_begun_stays(play: Play) -> None:
    def scene(seat: Stage1) -> None:
        seat.arrive([0, 1])
        seat.park()
        seat.left = 1
        seat.ending.look()
        assert seat.here() == [0]

    play(scene)


def test_a_frozen_seat_keeps_what_it_has(play: Play) -> None:
    def scene(seat: Stage1) -> None:
        seat.arrive([0, 1])
        seat.left, seat.pipeline.frozen = 1, True
        seat.ending.look()
        assert seat.here() == [0, 1]

    play(scene)


def test_the_fastest_takes_all(play: Play) -> None:
    def scene(seat: Stage1) -> None:
        for _ in range(40):
            seat.pipeline.pace.observe(0.5)
        seat.left = 1
        seat.arrive([0, 1, 2])
        seat.ending.look()
        assert seat.here() == [0, 1, 2]
        assert seat.ask(3) is m.Offer
        assert not [event for event in seat.bench.events if isinstance(event, ev.BusySaid)]

    play(scene)
