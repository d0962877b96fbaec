"""Toy sums are exact and order-free; any wrong, missing or doubled microbatch shows."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.core.sizes import boundary_bytes
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.ports import Update
from p2ptrain.sim.arithmetic import ToyState
from p2ptrain.sim.toy import ToyCorpus, toy_spec
from p2ptrain.units import Microbatch, Slot, Stage, Step

SPEC = toy_spec(stages=3, microbatches=6, steps=2)
CORPUS = ToyCorpus(SPEC)
WORKS = [Microbatch(Step(0), Slot(slot)) for slot in range(6)]
GIVEN = bytes(boundary_bytes(SPEC, 0, "forward", 0))
UPDATE = Update(step=Step(0), tokens=24, norms=(1.0,), skip=False)


def middle() -> ToyState:
    return ToyState(SPEC, Stage(1))


def add(state: ToyState, work: Microbatch, sign: int = 1, gradient: bytes = GIVEN) -> None:
    inputs = (CORPUS.tokens(work), GIVEN)
    state.backward(work, inputs, gradient, 1 if sign == 1 else -1)


def total(state: ToyState) -> bytes:
    return state.read_own(0, state.elements)


@given(st.permutations(WORKS), st.integers(0, 6), st.data())
@settings(max_examples=30, deadline=None)
def test_a_sum_depends_on_the_set_alone(
    order: list[Microbatch], cut: int, data: st.DataObject
) -> None:
    whole = middle()
    for work in WORKS:
        add(whole, work)
    extra = data.draw(st.sampled_from(WORKS))
    parts = [middle(), middle()]
    for state, share in zip(parts, (order[:cut], order[cut:]), strict=True):
        add(state, extra)
        for work in share:
            add(state, work)
        add(state, extra, sign=-1)
    assert parts[0].sum_parts([total(state) for state in parts]) == total(whole)


def test_every_wrong_microbatch_changes_the_sum() -> None:
    def digest(*adds: tuple[Microbatch, bytes]) -> bytes:
        state = middle()
        for work, gradient in adds:
            add(state, work, gradient=gradient)
        return state.finish([(0, total(state))]).digest

    right = [(work, GIVEN) for work in WORKS]
    wrong = [
        right[1:],
        [*right, right[0]],
        [*right[1:], (WORKS[0], b"\1" + GIVEN[1:])],
        [*right[1:], (Microbatch(Step(0), Slot(6)), GIVEN)],
    ]
    digests = [digest(*adds) for adds in (right, *wrong)]
    assert len(set(digests)) == len(digests)
    assert digest(*reversed(right)) == digests[0]


def test_weights_and_inputs_enter_every_output() -> None:
    state, later = middle(), middle()
    later.finish([(0, total(later))])
    later.step(UPDATE)
    work = WORKS[0]
    outputs = {
        state.forward(work, b"tokens", GIVEN),
        state.forward(work, b"tokens", GIVEN[1:] + b"\1"),
        state.forward(work, b"others", GIVEN),
        later.forward(Microbatch(Step(1), work.slot), b"tokens", GIVEN),
        ToyState(SPEC, Stage(0)).forward(work, b"tokens", None),
    }
    assert len(outputs) == 5
    assert {len(output) for output in outputs} == {boundary_bytes(SPEC, 1, "forward", 0)}


def test_a_step_needs_its_own_sum_and_a_skipped_one_changes_no_weights() -> None:
    state = middle()
    before = state.weights()
    with pytest.raises(InternalError):
        state.step(UPDATE)
    state.finish([(0, total(state))])
    state.step(Update(step=Step(0), tokens=0, norms=(), skip=True))
    assert (state.weights(), state.step_index) == (before, 1)
    state.finish([(0, total(state))])
    with pytest.raises(InternalError):
        state.step(UPDATE)  # the same step twice
    with pytest.raises(InternalError):
        state.step(Update(step=Step(3), tokens=0, norms=(), skip=True))


def test_pieces_must_tile_the_sum() -> None:
    state = middle()
    whole = total(state)
    pieces = [(0, whole[:80]), (10, whole[80:])]
    assert state.finish(pieces).digest == state.finish([(0, whole)]).digest
    assert state.finish(pieces[::-1]).digest == state.finish([(0, whole)]).digest
    for wrong in ([], pieces[:1], pieces[1:], [pieces[0], pieces[0]], [*pieces, pieces[1]]):
        with pytest.raises(InternalError):
            state.finish(wrong)


def test_a_snapshot_is_taken_over_whole_or_not_at_all() -> None:
    donor, joiner = middle(), middle()
    add(donor, WORKS[0])
    donor.finish([(0, total(donor))])
    donor.step(UPDATE)
    blob = donor.save()
    rng = random.Random(0)
    for position in itertools.chain(range(48), (rng.randrange(len(blob)) for _ in range(20))):
        torn = bytearray(blob)
        torn[position] ^= 1
        if torn[16:20] != blob[16:20]:  # the step is not protected by the blob itself
            continue
        with pytest.raises(MisbehaviourError):
            joiner.load(torn)
        assert joiner.save() == middle().save()
    with pytest.raises(MisbehaviourError):
        ToyState(SPEC, Stage(2)).load(blob)
    joiner.load(memoryview(blob))
    assert (joiner.save(), joiner.tensor_digests()) == (blob, donor.tensor_digests())


def test_a_poisoned_microbatch_counts_as_zero() -> None:
    state = ToyState(SPEC, Stage(1), poisoned=[WORKS[2]])
    inputs = (CORPUS.tokens(WORKS[2]), GIVEN)
    assert state.backward(WORKS[2], inputs, GIVEN, 1).poisoned
    assert total(state) == total(middle())
