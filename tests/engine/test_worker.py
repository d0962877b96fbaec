"""The worker: oldest first over all seats, and the books right after every job."""

# ruff: noqa: ARG002 - stand-ins take what the real ones take

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from p2ptrain.core.agreement import Tallies
from p2ptrain.engine.worker import Worker, perform, subtract
from p2ptrain.ports import Backward, Loss
from p2ptrain.units import Microbatch, PeerId, Slot, Stage
from p2ptrain.wire import messages as m

BELOW, ABOVE, OTHER = PeerId("below"), PeerId("above"), PeerId("other")
MakeBench = Callable[..., Any]


class Compute:
    """Remembers calls; ``gate`` holds every call back while it is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.gate: asyncio.Event | None = None

    async def called(self, name: str, work: Microbatch, sign: int = 1) -> None:
        self.calls.append((name, work.slot, sign))
        if self.gate is not None:
            await self.gate.wait()

    async def forward(self, work: Microbatch, tokens: Any, given: Any) -> bytes:
        await self.called("forward", work)
        return b"output"

    async def backward(
        self, work: Microbatch, tokens: Any, given: Any, gradient: Any, *, sign: int = 1
    ) -> Backward:
        await self.called("backward", work, sign)
        return Backward(gradient=b"down", poisoned=True)

    async def loss(self, work: Microbatch, tokens: Any, given: Any, *, sign: int = 1) -> Loss:
        await self.called("loss", work, sign)
        return Loss(loss=7, tokens=4, gradient=b"down", poisoned=False)


def arrive(seat: Any, slot: int, *, replay: bool = False, spare: bool = False) -> None:
    frame = m.Forward(
        at=seat.at,
        slot=Slot(slot),
        stage=seat.stage,
        attempt=0,
        replay=replay,
        path=(BELOW,) * seat.stage,
        spare=spare,
    )
    seat.pipeline.forward(BELOW, frame, memoryview(b"tokeninput"), 0.0)


def returned(seat: Any, slot: int, peer: PeerId = ABOVE) -> None:
    gradient = m.Gradient(at=seat.at, slot=Slot(slot), stage=seat.stage)
    seat.pipeline.gradient(peer, gradient, memoryview(b"g"), 0.0)


async def work_off(seat: Any, compute: Compute) -> None:
    while (item := seat.pipeline.next_job()) is not None:
        await perform(seat.pipeline, compute, item)  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_a_microbatch_goes_forward_and_back(bench: MakeBench) -> None:
    seat, compute = bench(), Compute()
    arrive(seat, 0)
    await work_off(seat, compute)
    assert seat.post.last(m.Computed).slot == 0
    assert seat.pipeline.book.parked == 1
    returned(seat, 0)
    await work_off(seat, compute)
    assert compute.calls == [("forward", 0, 1), ("backward", 0, 1)]
    assert seat.pipeline.counted == 0b1
    assert seat.pipeline.tallies.poisoned == 1
    assert (seat.pipeline.book.parked, seat.pipeline.quiet) == (0, True)
    assert (seat.post.sent[-1].peer, seat.post.sent[-1].payload) == (BELOW, (b"down",))


@pytest.mark.asyncio
async def test_the_last_stage_counts_at_once_and_parks_nothing(bench: MakeBench) -> None:
    seat, compute = bench(stage=2), Compute()
    arrive(seat, 3)
    await work_off(seat, compute)
    assert seat.pipeline.counted == 0b1000
    assert seat.pipeline.tallies == Tallies(loss=7, tokens=4)
    assert seat.pipeline.book.parked == 0
    assert seat.post.sent[-1].peer == BELOW


@pytest.mark.asyncio
async def test_subtracting_undoes_counting_and_nothing_else(bench: MakeBench) -> None:
    seat, compute = bench(stage=2), Compute()
    for slot in range(3):
        arrive(seat, slot)
    await work_off(seat, compute)
    await subtract(seat.pipeline, compute, 0b1101)  # type: ignore[arg-type]
    assert compute.calls[3:] == [("loss", 0, -1), ("loss", 2, -1)]
    assert seat.pipeline.counted == 0b010
    assert seat.pipeline.tallies == Tallies(loss=7, tokens=4)


@pytest.mark.asyncio
async def test_a_gradient_goes_to_who_replays_even_if_told_while_computing(
    bench: MakeBench,
) -> None:
    seat, compute = bench(), Compute()
    arrive(seat, 0)
    await work_off(seat, compute)
    returned(seat, 0)
    compute.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(work_off(seat, compute))
        await asyncio.sleep(0)
        seat.pipeline.repath(OTHER, m.Repath(at=seat.at, slot=Slot(0), stage=Stage(0)), 0.0)
        compute.gate.set()
    assert seat.post.sent[-1].peer == OTHER


@pytest.mark.asyncio
async def test_an_early_gradient_is_computed_right_after_its_forward(bench: MakeBench) -> None:
    seat, compute = bench(), Compute()
    arrive(seat, 0, replay=True)
    compute.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(work_off(seat, compute))
        await asyncio.sleep(0)
        returned(seat, 0)
        compute.gate.set()
    assert seat.pipeline.counted == 0b1


@pytest.mark.asyncio
async def test_what_nobody_waits_for_takes_no_parked_place_and_is_counted_like_any(
    bench: MakeBench,
) -> None:
    seat, compute = bench(parked=1), Compute()
    arrive(seat, 0)
    await work_off(seat, compute)
    arrive(seat, 1, replay=True, spare=True)
    await work_off(seat, compute)
    spare = Microbatch(seat.at.step, Slot(1))
    assert (seat.pipeline.shelf.state(spare), seat.pipeline.book.parked) == ("parked", 1)
    returned(seat, 1)
    await work_off(seat, compute)
    assert seat.pipeline.counted == 0b10


@pytest.mark.asyncio
async def test_a_cancelled_job_leaves_the_seat_quiet_and_the_count_unchanged(
    bench: MakeBench,
) -> None:
    seat, compute = bench(stage=2), Compute()
    arrive(seat, 0)
    compute.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        job = group.create_task(work_off(seat, compute))
        await asyncio.sleep(0)
        assert not seat.pipeline.quiet
        job.cancel()
    assert seat.pipeline.quiet
    assert seat.pipeline.counted == 0


@pytest.mark.asyncio
async def test_one_worker_serves_all_seats_replays_first(bench: MakeBench) -> None:
    low, high, compute = bench(stage=1), bench(stage=2), Compute()
    arrive(low, 1)
    arrive(high, 0)
    arrive(high, 5, replay=True)
    worker = Worker(lambda: [(low.pipeline, compute), (high.pipeline, compute)])  # type: ignore[list-item]
    async with asyncio.TaskGroup() as group:
        running = group.create_task(worker.run())
        for _ in range(20):
            await asyncio.sleep(0)
        arrive(low, 2)
        worker.wake()
        for _ in range(20):
            await asyncio.sleep(0)
        running.cancel()
    assert [(name, slot) for name, slot, _ in compute.calls] == [
        ("loss", 5),
        ("loss", 0),
        ("forward", 1),
        ("forward", 2),
    ]


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", [1, 2])
async def test_a_stage_that_has_its_sum_computes_for_its_neighbours_and_adds_nothing(
    bench: MakeBench, stage: int
) -> None:
    seat, compute = bench(stage), Compute()
    seat.pipeline.frozen = True
    arrive(seat, 0)
    assert seat.pipeline.next_job() is None
    seat.pipeline.passing = True
    await work_off(seat, compute)
    returned(seat, 0)
    await work_off(seat, compute)
    assert {sign for name, _, sign in compute.calls if name != "forward"} == {0}
    assert (seat.pipeline.counted, seat.pipeline.tallies) == (0, Tallies())
    await asyncio.sleep(0)
    assert [type(sent.message) for sent in seat.post.sent if sent.peer == BELOW] == [m.Gradient]
    seat.pipeline.where(BELOW, m.Where(at=seat.at, slot=Slot(0), stage=seat.stage))
    assert seat.post.last(m.Whereabouts).state == "counted"


@pytest.mark.asyncio
async def test_stage_0_gives_outputs_again_once_it_has_its_sum(bench: MakeBench) -> None:
    seat, compute = bench(0), Compute()
    seat.pipeline.frozen = seat.pipeline.passing = True
    assert seat.pipeline.source(Microbatch(seat.at.step, Slot(3)), replay=True)
    await work_off(seat, compute)
    assert [name for name, *_ in compute.calls] == ["forward"]
    assert (seat.pipeline.counted, seat.pipeline.book.parked) == (0, 0)


# --- what is counted for a mate that is gone (core/deposits) --------------------------------


@pytest.mark.asyncio
async def test_what_is_borrowed_is_computed_without_being_added(bench: MakeBench) -> None:
    seat, compute = bench(), Compute()
    seat.pipeline.shelf.borrow(0b1)
    seat.pipeline.counted = 0b1
    arrive(seat, 0)
    await work_off(seat, compute)
    returned(seat, 0)
    await work_off(seat, compute)
    assert compute.calls == [("forward", 0, 1), ("backward", 0, 0)]
    assert seat.pipeline.tallies.poisoned == 0
    assert seat.pipeline.shelf.state(Microbatch(seat.at.step, Slot(0))) == "counted"
    assert seat.post.sent[-1].payload == (b"down",)


@pytest.mark.asyncio
async def test_what_is_given_back_while_it_computes_is_not_here_afterwards(
    bench: MakeBench,
) -> None:
    seat, compute = bench(2), Compute()
    seat.pipeline.shelf.borrow(0b1)
    arrive(seat, 0)
    compute.gate = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(perform(seat.pipeline, compute, seat.pipeline.next_job()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        seat.pipeline.shelf.borrowed = 0
        compute.gate.set()
    assert compute.calls == [("loss", 0, 0)]
    assert seat.pipeline.shelf.get(Microbatch(seat.at.step, Slot(0))) is None
    assert seat.post.last(m.Whereabouts).state == "none"


@pytest.mark.asyncio
async def test_a_subtraction_gives_back_what_is_borrowed_first(bench: MakeBench) -> None:
    seat, compute, given = bench(), Compute(), []

    async def give_back(slots: int) -> None:
        assert seat.pipeline.loans.taking_out == 1
        given.append(slots)

    seat.pipeline.loans.give_back = give_back
    seat.pipeline.shelf.borrow(0b10)
    await subtract(seat.pipeline, compute, 0b11)  # type: ignore[arg-type]
    await subtract(seat.pipeline, compute, 0b01)  # type: ignore[arg-type]
    assert (given, seat.pipeline.loans.taking_out) == ([0b11], 0)


@pytest.mark.asyncio
async def test_between_two_jobs_a_seat_does_its_chores(bench: MakeBench) -> None:
    seat, compute, done = bench(), Compute(), []

    async def chore() -> None:
        done.append(list(compute.calls))

    seat.pipeline.loans.chore = lambda: chore() if len(done) < 2 else None
    arrive(seat, 0)
    worker = Worker(lambda: [(seat.pipeline, compute)])  # type: ignore[list-item]
    running = asyncio.get_running_loop().create_task(worker.run())
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()
    assert compute.calls
    assert done == [[], []]
