"""Calls run one after another, in the order in which they were made, beside the loop or on it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
import torch

from p2ptrain.compute.turns import Inline, Threaded
from p2ptrain.sim.loop import run
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.compute.turns import Turns

CPU, STAGE = torch.device("cpu"), Stage(0)


@pytest.mark.parametrize("make", [lambda: Threaded(CPU, 1), lambda: Inline(CPU, 1, None)])
@pytest.mark.asyncio
async def test_calls_take_effect_in_their_order(make: type[Turns]) -> None:
    turns, seen = make(), []  # type: ignore[var-annotated]
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(turns.run(STAGE, "step", lambda number=number: seen.append(number)))
    turns.close()
    assert seen == list(range(20))


@pytest.mark.asyncio
async def test_a_thread_of_its_own_computes_beside_the_loop() -> None:
    turns = Threaded(CPU, 1)
    assert await turns.run(STAGE, "step", threading.get_ident) != threading.get_ident()
    turns.close()


def test_inline_a_call_takes_the_virtual_time_that_its_kind_costs() -> None:
    async def main() -> None:
        turns = Inline(CPU, 1, lambda _stage, kind: 3.0 if kind == "step" else 0.5)
        loop = asyncio.get_running_loop()
        assert await turns.run(STAGE, "step", threading.get_ident) == threading.get_ident()
        assert loop.time() == 3.0
        await turns.run(STAGE, "sum", list)
        assert loop.time() == 3.5

    run(main())


def test_inline_a_call_that_is_cancelled_before_its_turn_never_happens() -> None:
    async def main() -> None:
        turns, seen = Inline(CPU, 1, lambda _stage, _kind: 1.0), []  # type: ignore[var-annotated]
        async with asyncio.TaskGroup() as group:
            group.create_task(turns.run(STAGE, "step", lambda: seen.append("first")))
            second = group.create_task(turns.run(STAGE, "step", lambda: seen.append("second")))
            await asyncio.sleep(0.5)
            second.cancel()
        assert seen == ["first"]

    run(main())
