import asyncio
import gc
import threading

import msgspec
import pytest

from p2ptrain.compute.executor import TorchCompute
from p2ptrain.compute.stage import StageState
from p2ptrain.core.bottleneck import stage_elements
from p2ptrain.core.sizes import microbatch_token_bytes, nominal_tokens
from p2ptrain.errors import UserError
from p2ptrain.run import Batch, Codec, Composition, Cut, Model, RunSpec
from p2ptrain.sim import loop as virtual
from p2ptrain.units import Microbatch, Slot, Stage, Step

SPEC = RunSpec(
    model=Model(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=8),
    cut=Cut(stages=2),
    batch=Batch(sequences=2),
)
FIRST = Stage(0)
WORK = Microbatch(Step(0), Slot(0))
TOKENS = bytes(microbatch_token_bytes(SPEC))


@pytest.mark.asyncio
async def test_inline_and_threaded_give_the_same_bits() -> None:
    outputs = []
    for inline in (True, False):
        compute = TorchCompute(SPEC, device="cpu", inline=inline)
        seat = await compute.open(FIRST)
        outputs.append(await seat.forward(WORK, TOKENS, None))
        compute.close()
    assert outputs[0] == outputs[1]


@pytest.mark.asyncio
async def test_the_loop_runs_on_while_the_thread_computes() -> None:
    compute = TorchCompute(SPEC, device="cpu")
    seat = await compute.open(FIRST)
    ticks = 0
    async with asyncio.TaskGroup() as group:
        call = group.create_task(seat.forward(WORK, TOKENS, None))
        while not call.done():
            ticks += 1
            await asyncio.sleep(0)
    assert ticks > 1
    compute.close()


@pytest.mark.asyncio
async def test_the_thread_ends_with_close() -> None:
    compute = TorchCompute(SPEC, device="cpu")
    await compute.open(FIRST)
    alive = [t for t in threading.enumerate() if t.name.startswith("compute")]
    assert len(alive) == 1
    compute.close()
    alive[0].join(timeout=10)
    assert not alive[0].is_alive()


@pytest.mark.asyncio
async def test_closing_waits_for_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = threading.Event(), threading.Event()

    def endless(*_: object) -> bytes:
        begun.set()
        assert gate.wait(timeout=10)
        return b""

    monkeypatch.setattr(StageState, "forward", endless)
    compute = TorchCompute(SPEC, device="cpu")
    seat = await compute.open(FIRST)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(seat.forward(WORK, TOKENS, None))
        await asyncio.to_thread(begun.wait, 10)
        compute.close()
        assert not gate.is_set()
        gate.set()
    assert call.result() == b""


def test_memory_is_counted_with_the_graphs_that_are_kept() -> None:
    with_graphs, without = (
        TorchCompute(SPEC, device="cpu", inline=True, kept_graph_bytes=size)
        for size in (1 << 30, 0)
    )
    assert with_graphs.seat_bytes(FIRST) > without.seat_bytes(FIRST) > 0
    last = Stage(1)
    assert with_graphs.seat_bytes(last) == without.seat_bytes(last)


def test_memory_is_counted_with_what_crosses_both_ends() -> None:
    model, middle = msgspec.structs.replace(SPEC.model, n_layers=3), Stage(1)
    sizes, elements = [], []
    for width in (4, 12):
        held = Composition(name="held", width=width)
        spec = msgspec.structs.replace(
            SPEC,
            model=model,
            cut=Cut(stages=3),
            codec=Codec(name="held", compositions=(held,)),
        )
        sizes.append(TorchCompute(spec, device="cpu", inline=True).seat_bytes(middle))
        elements.append(stage_elements(spec)[middle])
    parameters = (elements[1] - elements[0]) * (6 * 4 + 2 * 8)
    assert sizes[1] - sizes[0] == parameters + 2 * nominal_tokens(SPEC) * (12 - 4) * 4


def test_memory_is_counted_with_what_adopting_differences_takes() -> None:
    sync = msgspec.structs.replace(SPEC.sync, agreement="canonical", adoption="int8")
    lossy = msgspec.structs.replace(SPEC, sync=sync)
    exact = msgspec.structs.replace(lossy, sync=msgspec.structs.replace(sync, adoption="exact"))
    more, less = (
        TorchCompute(spec, device="cpu", inline=True).seat_bytes(FIRST) for spec in (lossy, exact)
    )
    assert more - less == stage_elements(SPEC)[FIRST] * (8 + 48)  # kept, and for a moment


@pytest.mark.asyncio
async def test_a_dropped_seat_gives_its_memory_back() -> None:
    needed = TorchCompute(SPEC, device="cpu", inline=True).seat_bytes(FIRST)
    compute = TorchCompute(SPEC, device="cpu", inline=True, memory_bytes=needed)
    seat = await compute.open(FIRST)
    with pytest.raises(UserError, match="beside"):
        await compute.open(FIRST)
    del seat
    gc.collect()
    await compute.open(FIRST)


def test_a_cost_model_takes_virtual_time_one_call_after_another() -> None:
    def cost(stage: Stage, kind: str) -> float:
        return {"forward": 10.0, "open": 0.0}.get(kind, 1.0) * (stage + 1)

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        compute = TorchCompute(SPEC, device="cpu", inline=True, cost=cost)
        seat = await compute.open(FIRST)
        begun, ends = loop.time(), []

        async def call(slot: int) -> None:
            await seat.forward(Microbatch(Step(0), Slot(slot)), TOKENS, None)
            ends.append(loop.time() - begun)

        async with asyncio.TaskGroup() as group:
            for slot in range(3):
                group.create_task(call(slot))
        return ends

    assert virtual.run(scenario()) == [10.0, 20.0, 30.0]
