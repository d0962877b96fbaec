"""What every ``ports.Compute`` promises, whatever it computes with.

Add an implementation by one line in FACTORIES. The suite knows nothing of the arithmetic:
it compares seats with each other and sums with sums.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import msgspec
import pytest
import pytest_asyncio

from p2ptrain.compute.executor import TorchCompute
from p2ptrain.core.adoption import GENESIS
from p2ptrain.core.bottleneck import stage_elements
from p2ptrain.core.partition import cut_layers, stage_parameters
from p2ptrain.core.sizes import (
    boundary_bytes,
    integer_bytes,
    microbatch_token_bytes,
    nominal_tokens,
)
from p2ptrain.errors import InternalError, MisbehaviourError, UserError
from p2ptrain.ports import Compute, StageCompute, Update
from p2ptrain.run import Batch, Codec, Composition, Cut, Evaluation, Model, RunSpec, Sync
from p2ptrain.sim.compute import CostModel, ToyCompute
from p2ptrain.units import Digest, Microbatch, PeerId, Slot, Stage, Step

SPEC = RunSpec(
    model=Model(d_model=16, n_layers=3, n_heads=2, n_kv_heads=1, d_ff=24, context=8),
    cut=Cut(stages=3),
    batch=Batch(sequences=2, microbatches=4),
    evaluation=Evaluation(every_steps=1, microbatches=1),
)
STAGES = tuple(Stage(stage) for stage in range(3))
FIRST, MIDDLE, LAST = STAGES
TRAIN = tuple(Slot(slot) for slot in range(4))
EVALUATE = Slot(4)


@contextmanager
def torch_on_a_thread(spec: RunSpec, memory_bytes: int | None = None) -> Iterator[Compute]:
    compute = TorchCompute(spec, device="cpu", memory_bytes=memory_bytes)
    yield compute
    compute.close()


@contextmanager
def torch_inline(spec: RunSpec, memory_bytes: int | None = None) -> Iterator[Compute]:
    compute = TorchCompute(spec, device="cpu", inline=True, memory_bytes=memory_bytes)
    yield compute
    compute.close()


@contextmanager
def toy(spec: RunSpec, memory_bytes: int | None = None) -> Iterator[Compute]:
    free = CostModel(forward_seconds=0.0, backward_seconds=0.0, step_seconds=0.0)
    yield ToyCompute(spec, PeerId("toy"), cost=free, memory_bytes=memory_bytes)


FACTORIES = {"torch on a thread": torch_on_a_thread, "torch inline": torch_inline, "toy": toy}


@pytest.fixture(params=FACTORIES.values(), ids=FACTORIES.keys())
def factory(request: pytest.FixtureRequest) -> Callable[..., "contextmanager[Compute]"]:
    return request.param


@pytest_asyncio.fixture
async def compute(factory: Callable) -> AsyncIterator[Compute]:
    with factory(SPEC) as compute:
        yield compute


@dataclass(frozen=True)
class Frame:
    """All that crosses the wire for one microbatch; index: stage."""

    work: Microbatch
    tokens: bytes
    given: tuple[bytes | None, ...]
    gradient: tuple[bytes | None, ...]


def text(work: Microbatch) -> bytes:
    size = microbatch_token_bytes(SPEC)
    stream = (blake2b(f"{work}/{part}".encode()).digest() for part in itertools.count())
    return b"".join(itertools.islice(stream, size // 64 + 1))[:size]


async def frame(seats: list[StageCompute], work: Microbatch) -> Frame:
    """Run one microbatch up and down; its gradients stay in the accumulators of ``seats``."""
    tokens = text(work)
    given: list[bytes | None] = [None]
    for seat in seats[:-1]:
        given.append(await seat.forward(work, tokens, given[-1]))
    loss = await seats[-1].loss(work, tokens, given[-1])
    gradients: list[bytes | None] = [None, loss.gradient]
    for stage in (MIDDLE, FIRST):
        gradient = gradients[-1]
        assert gradient is not None
        result = await seats[stage].backward(work, tokens, given[stage], gradient)
        assert not result.poisoned
        gradients.append(result.gradient)
    # gradient[s] is that of the output of stage s: none at the top, and the last of the
    # list would be that of the tokens.
    assert gradients.pop() is None
    return Frame(work, tokens, tuple(given), tuple(reversed(gradients)))


async def count(seat: StageCompute, frame: Frame, sign: int = 1) -> None:
    given, gradient = frame.given[seat.stage], frame.gradient[seat.stage]
    if seat.stage == LAST:
        await seat.loss(frame.work, frame.tokens, given, sign=sign)
    else:
        assert gradient is not None
        await seat.backward(frame.work, frame.tokens, given, gradient, sign=sign)


async def down(seat: StageCompute, frame: Frame, sign: int) -> bytes | None:
    """The gradient for the stage below."""
    given, gradient = frame.given[seat.stage], frame.gradient[seat.stage]
    if seat.stage == LAST:
        return (await seat.loss(frame.work, frame.tokens, given, sign=sign)).gradient
    assert gradient is not None
    back = await seat.backward(frame.work, frame.tokens, given, gradient, sign=sign)
    return back.gradient


async def frames(compute: Compute) -> list[Frame]:
    seats = [await compute.open(stage) for stage in STAGES]
    return [await frame(seats, Microbatch(Step(0), slot)) for slot in TRAIN]


async def own(seat: StageCompute) -> bytes:
    return await seat.read_own(0, seat.elements)


async def stepped(
    compute: Compute, stage: Stage, *, skip: bool = False, keep: bool = False
) -> StageCompute:
    """A seat of ``stage`` after step 0."""
    seats = [await compute.open(other) for other in STAGES]
    for slot in TRAIN:
        await frame(seats, Microbatch(Step(0), slot))
    wholes = [await seat.finish([(0, await own(seat))]) for seat in seats]
    tokens = len(TRAIN) * nominal_tokens(SPEC)
    norms = tuple(norm for whole in wholes for norm in whole.norms)
    update = Update(step=Step(0), tokens=tokens, norms=norms, skip=skip)
    await seats[stage].step(update, keep=keep)
    return seats[stage]


@pytest.mark.asyncio
async def test_what_crosses_a_boundary_has_the_size_that_the_spec_says(compute: Compute) -> None:
    for frame_ in await frames(compute):
        assert [len(given or b"") for given in frame_.given] == [
            0,
            boundary_bytes(SPEC, 0, "forward", 0),
            boundary_bytes(SPEC, 1, "forward", 0),
        ]
        assert [len(gradient or b"") for gradient in frame_.gradient] == [
            boundary_bytes(SPEC, 0, "backward", 0),
            boundary_bytes(SPEC, 1, "backward", 0),
            0,
        ]


@pytest.mark.asyncio
async def test_the_accumulator_has_one_integer_per_parameter(compute: Compute) -> None:
    seats = [await compute.open(stage) for stage in STAGES]
    assert [seat.stage for seat in seats] == list(STAGES)
    parts = cut_layers(SPEC.model, SPEC.cut.stages, SPEC.cut.layers)
    assert tuple(seat.elements for seat in seats) == stage_parameters(SPEC.model, parts)
    for seat in seats:
        assert await own(seat) == bytes(seat.elements * integer_bytes(SPEC))


@pytest.mark.asyncio
async def test_bottlenecks_have_integers_too(factory: Callable) -> None:
    narrow = Composition(name="narrow", width=4, anchor_order=2, anchor_rank=3)
    codec = Codec(boundaries=("bf16", "narrow"), compositions=(narrow,))
    spec = msgspec.structs.replace(SPEC, codec=codec)
    with factory(spec) as compute:
        seats = [await compute.open(stage) for stage in STAGES]
        found = tuple(seat.elements for seat in seats)
    d, k, v, rank = SPEC.model.d_model, 4, SPEC.model.vocab_size, 3
    plain = stage_parameters(SPEC.model, cut_layers(SPEC.model, SPEC.cut.stages, ()))
    assert found == (plain[0], plain[1] + k * d + d, plain[2] + d * k + 2 * (v * rank + d * rank))
    assert found == stage_elements(spec)


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_sums_do_not_depend_on_order_or_on_who_counted(
    compute: Compute, stage: Stage
) -> None:
    a, b, c, d = await frames(compute)
    alone, left, right = [await compute.open(stage) for _ in range(3)]
    for seat, counted in ((alone, (a, b, c, d)), (left, (d, a)), (right, (c, b))):
        for frame_ in counted:
            await count(seat, frame_)
    whole = await own(alone)
    assert any(whole)
    assert await alone.sum_parts([await own(right), await own(left)]) == whole


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_subtracting_undoes_adding(compute: Compute, stage: Stage) -> None:
    a, b, *_ = await frames(compute)
    seat, other = await compute.open(stage), await compute.open(stage)
    for frame_, sign in ((a, 1), (b, 1), (a, -1)):
        await count(seat, frame_, sign)
    await count(other, b)
    assert await own(seat) == await own(other)


@pytest.mark.asyncio
async def test_a_replayed_backward_gives_the_same_as_one_after_its_forward(
    compute: Compute,
) -> None:
    for frame_ in await frames(compute):
        seat = await compute.open(MIDDLE)
        gradient = frame_.gradient[MIDDLE]
        assert gradient is not None
        result = await seat.backward(frame_.work, frame_.tokens, frame_.given[MIDDLE], gradient)
        assert result.gradient == frame_.gradient[FIRST]


@pytest.mark.asyncio
async def test_clear_forgets_what_was_counted(compute: Compute) -> None:
    a, *_ = await frames(compute)
    seat = await compute.open(LAST)
    await count(seat, a)
    await seat.clear()
    assert await own(seat) == bytes(seat.elements * integer_bytes(SPEC))


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_integers_of_another_seat_count_as_if_counted_here_and_go_out_again(
    compute: Compute, stage: Stage
) -> None:
    a, b, c, *_ = await frames(compute)
    giver, taker, alone = [await compute.open(stage) for _ in range(3)]
    for frame_ in (a, b):
        await count(giver, frame_)
    await count(taker, c)
    before = await own(taker)
    given = await giver.copy_own()
    middle = giver.elements // 2
    pieces = [
        (start, await given.read(start, stop))
        for start, stop in ((0, middle), (middle, giver.elements))
    ]
    await taker.add(pieces, 1)
    for frame_ in (a, b, c):
        await count(alone, frame_)
    assert await own(taker) == await own(alone)
    await taker.add(pieces, -1)
    assert await own(taker) == before


@pytest.mark.asyncio
async def test_a_copy_stays_what_it_was(compute: Compute) -> None:
    a, b, *_ = await frames(compute)
    seat = await compute.open(MIDDLE)
    await count(seat, a)
    before, copied = await own(seat), await seat.copy_own()
    await count(seat, b)
    assert await copied.read(0, seat.elements) == before


@pytest.mark.asyncio
async def test_integers_that_do_not_fit_are_refused_whole(compute: Compute) -> None:
    a, *_ = await frames(compute)
    seat = await compute.open(MIDDLE)
    await count(seat, a)
    before, width = await own(seat), integer_bytes(SPEC)
    for beyond in ((seat.elements, bytes(width)), (0, bytes(width + 1))):
        with pytest.raises(MisbehaviourError):
            await seat.add([(0, before), beyond], 1)
        assert await own(seat) == before


@pytest.mark.asyncio
async def test_a_slice_of_the_accumulator_is_that_slice(compute: Compute) -> None:
    a, *_ = await frames(compute)
    seat = await compute.open(MIDDLE)
    await count(seat, a)
    width, whole = integer_bytes(SPEC), await own(seat)
    assert await seat.read_own(3, 11) == whole[3 * width : 11 * width]


@pytest.mark.asyncio
async def test_a_loss_counts_nominal_tokens_and_evaluating_leaves_no_trace(
    compute: Compute,
) -> None:
    seats = [await compute.open(stage) for stage in STAGES]
    work = Microbatch(Step(0), EVALUATE)
    tokens = text(work)
    given = None
    for seat in seats[:-1]:
        given = await seat.forward(work, tokens, given)
    loss = await seats[-1].evaluate(work, tokens, given)
    assert loss.tokens == nominal_tokens(SPEC)
    assert loss.loss > 0
    assert loss.gradient is None
    assert not loss.poisoned
    assert await seats[-1].evaluate(work, tokens, given) == loss
    for seat in seats:
        assert not any(await own(seat))


@pytest.mark.asyncio
async def test_a_whole_sum_is_the_same_in_any_pieces(compute: Compute) -> None:
    a, *_ = await frames(compute)
    seat, other = await compute.open(MIDDLE), await compute.open(MIDDLE)
    await count(seat, a)
    width, whole = integer_bytes(SPEC), await own(seat)
    pieces = [(5, whole[5 * width :]), (0, whole[: 5 * width])]
    finished = await seat.finish([(0, whole)])
    assert await other.finish(pieces) == finished
    assert finished.finite
    assert sum(finished.norms) > 0
    assert await other.read_sum(0, other.elements) == whole
    assert await other.read_sum(2, 4) == whole[2 * width : 4 * width]


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_replicas_step_to_equal_states(compute: Compute, stage: Stage) -> None:
    fresh = await compute.open(stage)
    one, other = await stepped(compute, stage), await stepped(compute, stage)
    assert await one.save() == await other.save()
    assert await one.weights() == await other.weights()
    assert await one.weights() != await fresh.weights()
    assert not any(await own(one)), "a step clears the accumulator"


@pytest.mark.asyncio
async def test_a_sum_can_be_read_after_its_step(compute: Compute) -> None:
    seat = await stepped(compute, MIDDLE)
    assert any(await seat.read_sum(0, seat.elements))


@pytest.mark.asyncio
async def test_a_skipped_step_advances_and_keeps_the_weights(compute: Compute) -> None:
    fresh, seat = await compute.open(MIDDLE), await stepped(compute, MIDDLE, skip=True)
    assert await seat.weights() == await fresh.weights()
    assert not any(await own(seat))
    await seat.step(Update(step=Step(1), tokens=0, norms=(), skip=True))


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_a_loaded_seat_is_a_replica(compute: Compute, stage: Stage) -> None:
    seat, joiner = await stepped(compute, stage), await compute.open(stage)
    blob = await seat.save()
    await joiner.load(bytearray(blob))
    assert await joiner.save() == blob
    assert await joiner.tensor_digests() == await seat.tensor_digests()
    update = Update(step=Step(1), tokens=0, norms=(), skip=True)
    await joiner.step(update)
    await seat.step(update)
    assert await joiner.save() == await seat.save()


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_replicas_with_one_base_come_to_one_state_by_a_difference(
    factory: Callable, stage: Stage
) -> None:
    sync = Sync(agreement="canonical", adoption="int8")
    with factory(msgspec.structs.replace(SPEC, sync=sync)) as compute:
        seat, mate = await stepped(compute, stage), await stepped(compute, stage)
        one, other = seat.difference, mate.difference
        assert one is not None
        assert other is not None
        assert one.base == other.base == GENESIS
        blob, before = await one.make(), await mate.save()
        assert blob is not None
        assert len(blob) == one.size_bytes == other.size_bytes < len(before)
        with pytest.raises(MisbehaviourError):
            await other.adopt(blob + b"x")
        assert await mate.save() == before
        await other.adopt(bytearray(blob))
        assert await mate.save() == await seat.save() != before
        with pytest.raises(InternalError):
            await mate.read_sum(0, 1)
        assert one.base is other.base is None
        await one.mark(Digest(b"root".ljust(32)))
        assert one.base == b"root".ljust(32)
        await seat.load(before)
        assert one.base is None
        assert await one.make() is None


@pytest.mark.asyncio
async def test_where_whole_states_are_adopted_there_is_no_difference(compute: Compute) -> None:
    assert (await compute.open(FIRST)).difference is None


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", STAGES)
async def test_a_probe_leaves_no_trace(compute: Compute, stage: Stage) -> None:
    seat = await stepped(compute, stage)
    before = await seat.save()
    await seat.probe()
    assert await seat.save() == before
    assert not any(await own(seat))


@pytest.mark.asyncio
async def test_a_foreign_blob_is_refused_and_changes_nothing(compute: Compute) -> None:
    seat, foreign = await compute.open(MIDDLE), await compute.open(LAST)
    before = await seat.save()
    blobs = [await foreign.save(), b"", before[:-1], before + b"\0", b"\xff" * 64]
    for blob in blobs:
        with pytest.raises(MisbehaviourError):
            await seat.load(blob)
    assert await seat.save() == before


@pytest.mark.asyncio
async def test_weights_and_digests_have_the_same_names_in_all_stages_once(
    compute: Compute,
) -> None:
    names: list[str] = []
    for stage in STAGES:
        seat = await compute.open(stage)
        weights = await seat.weights()
        assert weights.keys() == (await seat.tensor_digests()).keys()
        names += weights
    assert len(names) == len(set(names))


@pytest.mark.asyncio
async def test_after_a_cancelled_call_clear_makes_the_seat_trustworthy(compute: Compute) -> None:
    a, b, *_ = await frames(compute)
    seat, other = await compute.open(MIDDLE), await compute.open(MIDDLE)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(count(seat, a))
        await asyncio.sleep(0)
        task.cancel()
    await seat.clear()
    await count(seat, b)
    await count(other, b)
    assert await own(seat) == await own(other)


@pytest.mark.asyncio
async def test_calls_take_effect_in_the_order_in_which_they_were_made(compute: Compute) -> None:
    a, b, *_ = await frames(compute)
    seat, other = await compute.open(FIRST), await compute.open(FIRST)
    async with asyncio.TaskGroup() as group:
        for call in (count(seat, a), seat.clear(), count(seat, b)):
            group.create_task(call)
        read = group.create_task(own(seat))
    await count(other, b)
    assert read.result() == await own(other)


@pytest.mark.asyncio
async def test_a_seat_beyond_the_memory_bound_is_refused_with_advice(factory: Callable) -> None:
    with factory(SPEC) as compute:
        needed = compute.seat_bytes(MIDDLE)
        assert compute.memory_bytes > 0
    with (
        factory(SPEC, memory_bytes=needed - 1) as compute,
        pytest.raises(UserError, match="--max-memory"),
    ):
        await compute.open(MIDDLE)
    with factory(SPEC, memory_bytes=needed) as compute:
        await compute.open(MIDDLE)


@pytest.mark.asyncio
async def test_the_arithmetic_class_is_one_line(compute: Compute) -> None:
    assert compute.arithmetic
    assert len(compute.arithmetic.splitlines()) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", [MIDDLE, LAST])
async def test_without_a_sign_the_gradient_is_the_same_and_nothing_is_added(
    compute: Compute, stage: Stage
) -> None:
    (some, *_), seat = await frames(compute), await compute.open(stage)
    before = await own(seat)
    assert await down(seat, some, 0) == some.gradient[stage - 1]
    assert await own(seat) == before


# --- the step before ------------------------------------------------------------------------


async def up(seat: StageCompute, frame: Frame) -> bytes:
    return await seat.forward(frame.work, frame.tokens, frame.given[seat.stage])


@pytest.mark.asyncio
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("stage", STAGES)
async def test_what_is_computed_again_after_its_step_is_the_same_and_adds_nothing(
    compute: Compute,
    stage: Stage,
    skip: bool,  # noqa: FBT001 - drawn by pytest
) -> None:
    some, *_ = await frames(compute)
    seat = await stepped(compute, stage, skip=skip, keep=True)
    after = await seat.save()
    if stage != LAST:
        assert await up(seat, some) == some.given[stage + 1]
    assert await down(seat, some, 0) == (some.gradient[stage - 1] if stage else None)
    assert not any(await own(seat))
    assert await seat.save() == after


@pytest.mark.asyncio
async def test_a_held_out_microbatch_of_the_step_before_has_its_loss_again(
    compute: Compute,
) -> None:
    fresh, seat = await compute.open(LAST), await stepped(compute, LAST, keep=True)
    work, given = Microbatch(Step(0), EVALUATE), bytes(boundary_bytes(SPEC, MIDDLE, "forward", 0))
    assert await seat.evaluate(work, text(work), given) == await fresh.evaluate(
        work, text(work), given
    )


@pytest.mark.asyncio
async def test_kept_weights_change_nothing_that_follows(compute: Compute) -> None:
    some, *_ = await frames(compute)
    seat, other = await stepped(compute, MIDDLE, keep=True), await stepped(compute, MIDDLE)
    await up(seat, some)
    later = Frame(Microbatch(Step(1), Slot(0)), some.tokens, some.given, some.gradient)
    for each in (seat, other):
        await count(each, later)
    assert await own(seat) == await own(other)
    assert await seat.save() == await other.save()


@pytest.mark.asyncio
async def test_weights_are_kept_until_they_are_released_and_only_if_they_are_named(
    compute: Compute,
) -> None:
    some, *_ = await frames(compute)
    seat = await stepped(compute, MIDDLE, keep=True)
    await seat.release(Step(1))  # of another step: too early, or long gone
    await up(seat, some)
    await seat.release(Step(0))
    with pytest.raises(InternalError):
        await up(seat, some)


@pytest.mark.asyncio
@pytest.mark.parametrize("keep", [False, True])
async def test_a_step_keeps_at_most_the_weights_that_it_began_with(
    compute: Compute,
    keep: bool,  # noqa: FBT001 - drawn by pytest
) -> None:
    some, *_ = await frames(compute)
    seat = await stepped(compute, MIDDLE, keep=True)
    await seat.step(Update(step=Step(1), tokens=0, norms=(), skip=True), keep=keep)
    with pytest.raises(InternalError):
        await up(seat, some)


@pytest.mark.asyncio
async def test_who_takes_over_a_state_of_its_own_version_may_keep_the_step_before(
    compute: Compute,
) -> None:
    some, *_ = await frames(compute)
    seat = await stepped(compute, MIDDLE, keep=True)
    before = await up(seat, some)
    await seat.load(await seat.save(), keep=True)
    assert await up(seat, some) == before


@pytest.mark.asyncio
async def test_who_takes_a_state_over_holds_nothing_of_the_step_before(compute: Compute) -> None:
    some, *_ = await frames(compute)
    seat = await stepped(compute, MIDDLE, keep=True)
    await seat.load(await seat.save())
    with pytest.raises(InternalError):
        await up(seat, some)


@pytest.mark.asyncio
async def test_the_step_before_is_over_nothing_of_it_is_counted(compute: Compute) -> None:
    some, *_ = await frames(compute)
    for stage in STAGES:
        seat = await stepped(compute, stage, keep=True)
        with pytest.raises(InternalError):
            await count(seat, some)
