"""The toy run is small, valid and repeats; its reference sees every microbatch."""

import pytest

from p2ptrain.core.sizes import microbatch_token_bytes
from p2ptrain.run import Evaluation, corpus_root
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import Microbatch, Slot, Step


def test_the_reference_repeats_and_depends_on_the_seed() -> None:
    spec = toy_spec(stages=3, microbatches=4, steps=5)
    first, again = (reference(spec, ToyCorpus(spec)) for _ in range(2))
    assert first == again
    assert len(first.sums) == 15
    assert len(first.tensors) == 3
    other = toy_spec(stages=3, microbatches=4, steps=5, seed=1)
    assert reference(other, ToyCorpus(other)).weights_digest != first.weights_digest


def test_the_toy_loss_falls() -> None:
    spec = toy_spec(stages=2, microbatches=4, steps=40)
    losses = [loss for _, loss in reference(spec, ToyCorpus(spec)).losses]
    assert losses[0] > 5
    assert losses[-1] < 4


def test_evaluation_changes_no_weights() -> None:
    plain = toy_spec(stages=2, microbatches=4, steps=4)
    watched = toy_spec(
        stages=2,
        microbatches=4,
        steps=4,
        evaluation=Evaluation(every_steps=2, microbatches=3),
    )
    with_it, without = (reference(spec, ToyCorpus(spec)) for spec in (watched, plain))
    assert with_it.weights_digest == without.weights_digest
    assert [step for step, _ in with_it.val_losses] == [0, 2, 4]
    assert without.val_losses == []


def test_a_poisoned_microbatch_skips_its_step_only() -> None:
    spec = toy_spec(stages=2, microbatches=4, steps=1)
    bad = [Microbatch(Step(0), Slot(1))]
    skipped = reference(spec, ToyCorpus(spec), poisoned=bad)
    assert skipped.weights_digest != reference(spec, ToyCorpus(spec)).weights_digest


@pytest.mark.parametrize("slot", [0, 3])
def test_tokens_have_their_exact_size_and_differ(slot: int) -> None:
    spec = toy_spec(stages=2, microbatches=4, steps=1)
    corpus = ToyCorpus(spec)
    tokens = corpus.tokens(Microbatch(Step(0), Slot(slot)))
    assert len(tokens) == microbatch_token_bytes(spec)
    assert tokens != corpus.tokens(Microbatch(Step(1), Slot(slot)))


def test_the_corpus_is_the_one_that_the_spec_pins() -> None:
    spec = toy_spec(stages=2, microbatches=4, steps=1, seed=3)
    assert corpus_root(ToyCorpus(spec).read(0, spec.data.total_bytes)) == spec.data.root
