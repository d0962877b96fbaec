"""A seat, assembled: it begins, asks whom it should, shows its fill, and is given up whole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import genesis_chain
from p2ptrain.engine.distrust import Distrust
from p2ptrain.engine.roster import Roster
from p2ptrain.engine.seat import SeatRuntime
from p2ptrain.engine.surroundings import Surroundings, genesis
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.compute import ToyCompute
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import ToyCorpus, toy_spec
from p2ptrain.units import Microbatch, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import messages as m
from p2ptrain.wire.limits import FrameLimits

ME, MATE, ABOVE, OTHER = PeerId("me"), PeerId("mate"), PeerId("above"), PeerId("other")
RUN = RunId("0" * 32)
SPEC = toy_spec(stages=2, microbatches=8, steps=3)
NOBODY: tuple[tuple[PeerId, ...], ...] = ((), ())

Scene = Callable[[SeatRuntime, Roster, list[ev.AnyEvent]], Coroutine[None, None, None]]


def status(stage: int, state: str = "serving", version: int = 0) -> m.SeatStatus:
    return m.SeatStatus(
        stage=Stage(stage),
        state=state,  # type: ignore[arg-type]
        version=Step(version),
        rate=1.0,
        queue=0,
        parked=0,
    )


@pytest.fixture
def play(post: Any) -> Callable[[Scene], None]:
    """Run a scene with a seat of stage 0 beside MATE, below ABOVE."""

    def run(scene: Scene) -> None:
        async def main() -> None:
            events: list[ev.AnyEvent] = []
            roster = Roster(ME)
            roster.hear(ME, [status(0)])
            roster.hear(MATE, [status(0)])
            roster.hear(ABOVE, [status(1)])
            post.serving = {0: (MATE, ME), 1: (ABOVE,)}
            async with asyncio.TaskGroup() as group:
                around = Surroundings(
                    run=RUN,
                    spec=SPEC,
                    incarnation=1,
                    signer=SimSigner(ME),
                    limits=FrameLimits(SPEC),
                    post=post,
                    roster=roster,
                    emit=events.append,
                    rng=random.Random(0),
                    wake=lambda: None,
                    spawn=group.create_task,
                    backlog=lambda: 0.0,
                    committed=lambda _stage, _done: None,
                    next_seq=iter(range(1, 1000)).__next__,
                    distrust=Distrust(events.append),
                )
                compute = await ToyCompute(SPEC, ME).open(Stage(0))
                seat = SeatRuntime(around, compute)
                seat.pipeline.corpus = ToyCorpus(SPEC)
                await scene(seat, roster, events)
                seat.close()

        loop.run(main())

    return run


def begun(seat: SeatRuntime) -> SeatRuntime:
    seat.begin(genesis(genesis_chain(RUN)), NOBODY)
    return seat


def test_before_the_first_step_it_waits_to_be_told(play: Any) -> None:
    async def scene(seat: SeatRuntime, _: Roster, events: list[ev.AnyEvent]) -> None:
        assert (seat.state, seat.position) == ("joining", None)
        begun(seat)
        assert seat.state == "serving"
        assert not [event for event in events if isinstance(event, ev.Sourced)]
        seat.start_sourcing()
        assert [event for event in events if isinstance(event, ev.Sourced)]

    play(scene)


def test_the_parked_bound_is_the_share_of_an_average_seat(play: Any) -> None:
    async def scene(seat: SeatRuntime, _: Roster, __: list[ev.AnyEvent]) -> None:
        begun(seat)
        assert seat.pipeline.book.parked_bound == 8  # 4 per stage above and this, at most G

    play(scene)


def test_a_draining_seat_is_asked_only_where_nobody_else_is_left(play: Any) -> None:
    async def scene(seat: SeatRuntime, roster: Roster, _: list[ev.AnyEvent]) -> None:
        begun(seat)
        roster.hear(OTHER, [status(1)])
        roster.hear(ABOVE, [status(1, "draining")])
        seat.refresh_router()
        choice = seat.router.choose(now=0.0)
        assert choice is not None
        assert (choice.first, choice.alternative) == (OTHER, None)
        roster.lost(OTHER)
        seat.refresh_router()
        choice = seat.router.choose(now=0.0)
        assert choice is not None
        assert choice.first == ABOVE

    play(scene)


def test_it_takes_over_what_a_dead_mate_was_to_source(play: Any) -> None:
    async def scene(seat: SeatRuntime, roster: Roster, events: list[ev.AnyEvent]) -> None:
        begun(seat).start_sourcing()
        before = {event.slot for event in events if isinstance(event, ev.Sourced)}
        roster.lost(MATE)
        seat.lost(MATE, 0.0)
        after = {event.slot for event in events if isinstance(event, ev.Sourced)}
        assert before < after

    play(scene)


@pytest.mark.parametrize("recorded", [(MATE,), (MATE, ME)])
def test_nobody_waits_for_the_share_of_a_mate_that_has_parted(
    play: Any, recorded: tuple[PeerId, ...]
) -> None:
    """A seat that opens beside it, or was there before, takes all at once, and leads the round."""

    async def scene(seat: SeatRuntime, roster: Roster, events: list[ev.AnyEvent]) -> None:
        def sourced() -> set[int]:
            return {event.slot for event in events if isinstance(event, ev.Sourced)}

        roster.hear(ME, [status(0, version=1)])
        roster.hear(MATE, [status(0, "draining", version=1)])
        at = Position(epoch=0, step=Step(1), chain=genesis_chain(RUN))
        seat.begin(at, (recorded, (ABOVE,)))
        assert len(sourced()) < 8  # it drains, and counts until the step ends
        roster.hear(MATE, [status(0, "parted", version=1)])
        seat.roster_changed(0.0)
        assert len(sourced()) == 8
        assert seat.stepper.machine is not None
        assert seat.stepper.machine.leader == ME

    play(scene)


def test_a_mate_that_has_parted_and_come_past_the_step_counts_in_it(play: Any) -> None:
    """It has gone on meanwhile, and parted again: of that only its version tells."""

    async def scene(seat: SeatRuntime, roster: Roster, _events: list[ev.AnyEvent]) -> None:
        roster.hear(ME, [status(0, version=1)])
        roster.hear(MATE, [status(0, "parted", version=1)])
        at = Position(epoch=0, step=Step(1), chain=genesis_chain(RUN))
        seat.begin(at, ((MATE, ME), (ABOVE,)))
        assert MATE not in seat.stepper.live
        assert roster.hear(MATE, [status(0, "parted", version=2)]) == "versions"
        seat.advanced(MATE, [Stage(0)], 0.0)
        assert MATE in seat.stepper.live

    play(scene)


def test_its_fill_is_shown_at_every_new_maximum(play: Any) -> None:
    async def scene(seat: SeatRuntime, _: Roster, events: list[ev.AnyEvent]) -> None:
        begun(seat).start_sourcing()
        seat.pipeline.custodian.open_forward(
            next(iter_works(seat)), (ME,), replay=False, returns=True, now=0.0
        )
        seat.pipeline.custodian.forward_ready(next(iter_works(seat)), (b"x" * 10,), 0.0)
        seat.pipeline.on_change()
        seat.pipeline.on_change()
        bounds = [event for event in events if isinstance(event, ev.Bounds)]
        assert [event.retained_bytes for event in bounds] == [10]
        assert bounds[0].retained_bound == SPEC.limits.retained_bytes

    play(scene)


def iter_works(seat: SeatRuntime) -> Any:
    assert seat.position is not None
    return (Microbatch(seat.position.step, Slot(slot)) for slot in range(8))


def test_given_up_it_is_silent_and_due_for_nothing(play: Any, post: Any) -> None:
    async def scene(seat: SeatRuntime, _: Roster, __: list[ev.AnyEvent]) -> None:
        begun(seat).start_sourcing()
        assert seat.due_at is not None
        seat.close()
        said = len(post.told)
        assert seat.due_at is None
        seat.tick(100.0)
        seat.lost(MATE, 100.0)
        seat.found(MATE, 101.0)
        seat.pipeline.on_count()
        assert len(post.told) == said

    play(scene)


def test_what_it_says_of_itself(play: Any) -> None:
    async def scene(seat: SeatRuntime, _: Roster, __: list[ev.AnyEvent]) -> None:
        begun(seat)
        told = seat.status()
        assert (told.stage, told.state, told.version, told.rate) == (0, "serving", 0, 0.0)
        seat.part()
        assert (seat.state, seat.status().state) == ("draining", "parted")
        begun(seat)
        assert seat.status().state == "serving"

    play(scene)
