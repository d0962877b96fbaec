"""Calls and tasks, as the loop uses them."""

import asyncio
import contextvars

from p2ptrain.sim import calls, loop
from p2ptrain.sim.calls import Call, Tasks


def test_a_cancelled_call_is_off_once_and_lets_go_of_what_it_held() -> None:
    told: list[str] = []
    call = Call(print, ("never",), contextvars.copy_context(), 5.0, lambda: told.append("off"))
    assert (call.when(), call.cancelled()) == (5.0, False)
    call.cancel()
    call.cancel()
    assert (call.cancelled(), call.args, told) == (True, (), ["off"])
    call.callback()
    assert call.callback is not print


def test_ended_tasks_are_forgotten_and_the_others_kept_in_order() -> None:
    async def main() -> None:
        clock = asyncio.get_running_loop()
        tasks, for_ever = Tasks(), asyncio.Event()
        going = [clock.create_task(for_ever.wait()) for _ in range(3)]
        for task in going:
            tasks.add(task)  # type: ignore[arg-type]  # the loop's own kind
        for _ in range(5 * calls.SWEEP_TASKS):
            tasks.add(short := clock.create_task(asyncio.sleep(0)))  # type: ignore[arg-type]
            await short
        assert tasks.going() == going
        for_ever.set()

    loop.run(main())
