"""The timer ticks at the earliest deadline, however deadlines move, and tells how late it was."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.engine.timer import Timer
from p2ptrain.sim import loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HEARTBEAT_SECONDS = 1.0


class Machine:
    """Has deadlines; a tick drops those that have passed."""

    def __init__(self, *deadlines: float) -> None:
        self.deadlines = sorted(deadlines)
        self.ticks: list[float] = []
        self.lags: list[float] = []
        self.asked = 0
        self.timer = Timer(
            due_at=self.due_at,
            tick=self.tick,
            own_lag=self.lags.append,
            heartbeat_seconds=HEARTBEAT_SECONDS,
        )

    def due_at(self) -> float | None:
        self.asked += 1
        return self.deadlines[0] if self.deadlines else None

    def tick(self, now: float) -> None:
        self.ticks.append(now)
        self.deadlines = [deadline for deadline in self.deadlines if deadline > now]


def now() -> float:
    return asyncio.get_running_loop().time()


def play(machine: Machine, scene: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a scene beside the machine's timer, in virtual time."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(machine.timer.run())
            await scene()
            task.cancel()

    loop.run(main(), ceiling_seconds=1000.0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40), max_size=6, unique=True),
    st.lists(st.integers(1, 40), max_size=6, unique=True),
)
def test_every_deadline_is_met_whether_known_at_first_or_brought_by_an_event(
    known: list[int], brought: list[int]
) -> None:
    machine = Machine(*map(float, known))

    async def scene() -> None:
        for deadline in brought:
            await asyncio.sleep(0.5)
            machine.deadlines = sorted([*machine.deadlines, max(deadline, now() + 0.25)])
            expected.add(max(deadline, now() + 0.25))
            machine.timer.rearm()
        await asyncio.sleep(50.0)

    expected = set(map(float, known))
    play(machine, scene)
    assert expected <= set(machine.ticks)
    assert machine.deadlines == []


def test_a_deadline_that_moved_back_costs_a_tick_and_nothing_else() -> None:
    machine = Machine(5.0)

    async def scene() -> None:
        await asyncio.sleep(1.0)
        machine.deadlines = [9.0]
        machine.timer.rearm()
        await asyncio.sleep(10.0)

    play(machine, scene)
    assert machine.ticks == [0.0, 5.0, 9.0]


def test_many_events_of_one_moment_are_one_look() -> None:
    machine = Machine(5.0)

    async def scene() -> None:
        await asyncio.sleep(1.0)
        before = machine.asked
        machine.deadlines = [2.0]
        for _ in range(100):
            machine.timer.rearm()
        assert machine.asked == before + 1
        await asyncio.sleep(2.0)

    play(machine, scene)
    assert machine.ticks == [0.0, 1.0, 2.0]


def test_a_later_deadline_alone_wakes_nobody() -> None:
    machine = Machine(5.0)

    async def scene() -> None:
        await asyncio.sleep(1.0)
        for deadline in (None, 5.0, 6.0):
            machine.timer.wake_by(deadline)
        await asyncio.sleep(1.0)
        assert machine.ticks == [0.0]
        machine.timer.wake_by(3.0)
        await asyncio.sleep(0.5)

    play(machine, scene)
    assert machine.ticks == [0.0, 2.0]


def test_a_lag_is_told_before_the_tick_that_could_judge_by_it_and_the_worst_once_a_heartbeat() -> (
    None
):
    machine = Machine(1.0, 10.0)
    excuses: list[tuple[float, int]] = []  # when a tick began, and how many lags it knew

    def tick(now: float) -> None:
        excuses.append((now, len(machine.lags)))
        Machine.tick(machine, now)

    machine.timer = Timer(
        due_at=machine.due_at,
        tick=tick,
        own_lag=machine.lags.append,
        heartbeat_seconds=HEARTBEAT_SECONDS,
    )

    async def main() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, loop.VirtualTimeLoop)
        context = contextvars.copy_context()
        context.run(loop.owner.set, "sleeper")
        async with asyncio.TaskGroup() as group:
            task = group.create_task(machine.timer.run(), context=context)
            await asyncio.sleep(0.5)
            clock.freeze("sleeper")
            await asyncio.sleep(3.5)
            clock.thaw("sleeper")
            await asyncio.sleep(0.1)
            assert (machine.lags, machine.timer.lag_seconds) == ([3.0], 3.0)
            assert machine.timer.tell_lag(now()) == 3.0
            assert machine.timer.tell_lag(now()) == 0.0  # within the same heartbeat
            assert (machine.lags, machine.timer.lag_seconds) == ([3.0, 3.0], 0.0)
            task.cancel()

    loop.run(main(), ceiling_seconds=100.0)
    assert excuses == [(0.0, 0), (4.0, 1)]
