"""A simulated device is one queue: calls take effect in order, at an instant set in advance."""

import asyncio
from typing import Literal

import pytest

from p2ptrain.core.sizes import boundary_bytes
from p2ptrain.errors import InternalError, MisbehaviourError, UserError
from p2ptrain.ports import StageCompute
from p2ptrain.sim import loop
from p2ptrain.sim.compute import CostModel, ToyCompute
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Microbatch, PeerId, Slot, Stage, Step

SPEC = toy_spec(stages=2, microbatches=4, steps=2)
WORK = Microbatch(Step(0), Slot(0))
GRADIENT = bytes(boundary_bytes(SPEC, 0, "backward", 0))
EVEN = CostModel(forward_seconds=1.0, backward_seconds=2.0, step_seconds=0.5, noise=0.0)
A = PeerId("a")


def now() -> float:
    return asyncio.get_running_loop().time()


def test_calls_of_all_seats_share_the_device_in_order() -> None:
    async def main() -> None:
        compute = ToyCompute(SPEC, A, cost=EVEN)
        first, last = await compute.open(Stage(0)), await compute.open(Stage(1))
        done: list[tuple[str, float]] = []

        async def forward() -> None:
            await first.forward(WORK, b"", None)
            done.append(("forward", now()))

        async def loss() -> None:
            await last.loss(WORK, b"", GRADIENT)
            done.append(("loss", now()))

        async def free() -> None:
            await first.read_own(0, 1)
            done.append(("read", now()))

        async with asyncio.TaskGroup() as tasks:
            for call in (forward, loss, free):
                tasks.create_task(call())
        assert done == [("forward", 1.0), ("loss", 4.0), ("read", 4.0)]
        await first.read_own(0, 1)
        assert now() == 4.0

    loop.run(main())


def test_a_slow_peer_takes_longer_from_the_next_call_on() -> None:
    async def main() -> None:
        compute = ToyCompute(SPEC, A, cost=EVEN, speed=2.0)
        seat = await compute.open(Stage(0))
        await seat.forward(WORK, b"", None)
        assert now() == 0.5
        compute.device.speed = 0.1
        await seat.forward(WORK, b"", None)
        assert now() == 10.5

    loop.run(main())


@pytest.mark.parametrize(("cancelled_at", "counted"), [(0.5, False), (1.5, True)])
def test_a_cancelled_call_takes_effect_if_it_had_begun(
    cancelled_at: float, *, counted: bool
) -> None:
    async def accumulator(seat: StageCompute) -> bytes:
        return await seat.read_own(0, seat.elements)

    async def main() -> None:
        compute = ToyCompute(SPEC, A, cost=EVEN)
        seat = await compute.open(Stage(0))
        blank = await accumulator(seat)

        async def work() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(seat.forward(WORK, b"", None))
                tasks.create_task(seat.backward(WORK, b"", None, GRADIENT))

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(cancelled_at):
                await work()
        assert (await accumulator(seat) != blank) == counted
        await seat.clear()
        assert await accumulator(seat) == blank

    loop.run(main())


def test_errors_reach_the_caller_through_the_queue() -> None:
    async def main() -> None:
        seat = await ToyCompute(SPEC, A, cost=EVEN).open(Stage(0))

        async def refused() -> None:
            with pytest.raises(MisbehaviourError):
                await seat.load(b"no snapshot")
            with pytest.raises(InternalError):
                await seat.read_sum(0, 1)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(seat.forward(WORK, b"", None))
            tasks.create_task(refused())

    loop.run(main())


def test_durations_come_from_the_seed_and_the_peer() -> None:
    def durations(seed: int, peer: PeerId) -> list[float]:
        async def main() -> list[float]:
            seat = await ToyCompute(SPEC, peer, cost=CostModel(seed=seed)).open(Stage(0))
            times = []
            for _ in range(5):
                await seat.forward(WORK, b"", None)
                times.append(now())
            return times

        return loop.run(main())

    assert durations(1, A) == durations(1, A)
    assert durations(1, A) != durations(2, A)
    assert durations(1, A) != durations(1, PeerId("b"))


def test_a_seat_that_does_not_fit_is_refused() -> None:
    async def main() -> None:
        compute = ToyCompute(SPEC, A, memory_bytes=1000)
        assert compute.seat_bytes(Stage(0)) > compute.memory_bytes
        with pytest.raises(UserError, match="max-memory"):
            await compute.open(Stage(0))

    loop.run(main())


def test_devices_that_round_in_their_own_way_agree_with_themselves_alone() -> None:
    async def state(rounding: str, signs: tuple[Literal[1, 0, -1], ...]) -> tuple[str, bytes]:
        compute = ToyCompute(SPEC, A, cost=EVEN, rounding=rounding)
        last = await compute.open(Stage(1))
        for sign in signs:
            await last.loss(WORK, b"", GRADIENT, sign=sign)
        return compute.arithmetic, await last.read_own(0, last.elements)

    async def main() -> None:
        assert await state("x", (1,)) == await state("x", (1,))
        assert (await state("x", (1,)))[1] != (await state("y", (1,)))[1]
        assert (await state("x", (1,)))[0] != (await state("", (1,)))[0] == "toy"
        assert (await state("x", (1, -1)))[1] == (await state("y", ()))[1]  # its own is taken out

    loop.run(main())
