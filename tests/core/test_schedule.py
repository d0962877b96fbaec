"""Slots, samples, owners and leaders are pure functions of the RunSpec."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2ptrain.core.schedule import (
    is_evaluation,
    keeper,
    last_step,
    leaders,
    microbatch_samples,
    owners,
    sample_index,
    step_slots,
)
from p2ptrain.run import Batch, Evaluation, Optimizer, RunSpec
from p2ptrain.units import Microbatch, PeerId, RunId, Slot, Stage, Step

RUN = RunId("run")
PINNED = [135, 851, 516, 258, 102]


def spec(*, steps: int = 10, every: int = 4, evaluate: int = 2) -> RunSpec:
    return RunSpec(
        batch=Batch(sequences=3, microbatches=5),
        optimizer=Optimizer(steps=steps),
        evaluation=Evaluation(every_steps=every, microbatches=evaluate),
    )


def test_a_plain_step_has_training_slots_only() -> None:
    slots = step_slots(spec(), Step(3))
    assert (slots.train, slots.evaluate, slots.width) == (5, 0, 5)
    assert slots.mask == slots.train_mask == 0b11111


def test_an_evaluation_step_adds_slots_above_the_training_slots() -> None:
    slots = step_slots(spec(), Step(4))
    assert slots.mask == 0b1111111
    assert slots.train_mask == 0b0011111
    assert list(slots) == [0, 1, 2, 3, 4, 5, 6]


def test_the_last_step_only_evaluates_and_keeps_slot_numbers() -> None:
    final = last_step(spec())
    slots = step_slots(spec(), final)
    assert final == 10
    assert (slots.train_mask, slots.mask, slots.width) == (0, 0b1100000, 7)
    assert list(slots) == [5, 6]
    assert all(is_evaluation(spec(), Microbatch(final, Slot(slot))) for slot in slots)


def test_evaluation_only_at_the_end() -> None:
    run = spec(every=0)
    assert [step for step in range(11) if step_slots(run, Step(step)).evaluate] == [10]


def test_without_evaluation_the_last_step_trains() -> None:
    run = spec(evaluate=0)
    assert last_step(run) == 9
    assert step_slots(run, Step(8)).evaluate == 0
    with pytest.raises(ValueError, match="outside this run"):
        step_slots(run, Step(10))


@given(st.integers(1, 300), st.integers(0, 2**64), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_epoch_visits_every_sample_once(count: int, seed: int, epoch: int) -> None:
    walk = [sample_index(seed, epoch * count + i, count) for i in range(count)]
    assert sorted(walk) == list(range(count))


def test_epochs_and_seeds_shuffle_differently() -> None:
    walks = {
        tuple(sample_index(seed, start + i, 50) for i in range(50))
        for seed in (0, 1)
        for start in (0, 50)
    }
    assert len(walks) == 4
    assert tuple(range(50)) not in walks


def test_permutation_is_pinned_for_ever() -> None:
    """A change here would silently change what every run trains on."""
    assert [sample_index(7, i, 1000) for i in range(5)] == PINNED


def test_a_sample_needs_a_corpus() -> None:
    with pytest.raises(ValueError, match="among 0"):
        sample_index(0, 0, 0)


def test_a_run_partitions_the_epoch_among_its_microbatches() -> None:
    run = spec()
    seen = [
        index
        for step in range(8)
        for slot in range(5)
        for index in microbatch_samples(run, Microbatch(Step(step), Slot(slot)), 120, 10)
    ]
    assert sorted(seen) == list(range(120))


def test_evaluation_takes_the_same_held_out_samples_each_time() -> None:
    run = spec()
    first, again = (
        [microbatch_samples(run, Microbatch(Step(step), Slot(slot)), 120, 10) for slot in (5, 6)]
        for step in (4, 8)
    )
    assert first == again
    assert len({index for indices in first for index in indices}) == 6
    assert all(0 <= index < 10 for indices in first for index in indices)


peers = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


@given(peers)
@settings(max_examples=40, deadline=None)
def test_rankings_ignore_the_order_of_members(names: list[str]) -> None:
    members = [PeerId(name) for name in names]
    work = Microbatch(Step(3), Slot(1))
    pairs = [(peer, float(len(peer))) for peer in members]
    assert owners(RUN, work, pairs) == owners(RUN, work, pairs[::-1])
    ranked = leaders(RUN, Step(3), Stage(1), 0, members)
    assert ranked == leaders(RUN, Step(3), Stage(1), 0, members[::-1])
    assert sorted(ranked) == sorted(members)


@given(peers)
@settings(max_examples=40, deadline=None)
def test_a_death_moves_only_the_dead_peers_share(names: list[str]) -> None:
    members = [(PeerId(name), 1.0) for name in names]
    work = Microbatch(Step(0), Slot(0))
    ranked = owners(RUN, work, members)
    rest = [pair for pair in members if pair[0] != ranked[0]]
    assert owners(RUN, work, rest) == ranked[1:]


def test_ownership_follows_weight_and_zero_weight_ranks_last() -> None:
    members = [(PeerId("fast"), 3.0), (PeerId("slow"), 1.0), (PeerId("idle"), 0.0)]
    ranks = [owners(RUN, Microbatch(Step(i), Slot(0)), members) for i in range(2000)]
    share = Counter(rank[0] for rank in ranks)
    assert 0.70 < share[PeerId("fast")] / 2000 < 0.80
    assert {rank[2] for rank in ranks} == {PeerId("idle")}


def test_leadership_rotates_with_the_round() -> None:
    members = [PeerId(name) for name in "abcd"]
    first = {leaders(RUN, Step(0), Stage(0), r, members)[0] for r in range(40)}
    assert first == set(members)


@given(peers)
@settings(max_examples=40, deadline=None)
def test_the_keeper_stays_while_it_holds(names: list[str]) -> None:
    holders = [PeerId(name) for name in names]
    work = Microbatch(Step(2), Slot(5))
    kept = keeper(RUN, Stage(0), work, holders)
    for other in holders:
        assert keeper(RUN, Stage(0), work, [other, kept]) == kept
