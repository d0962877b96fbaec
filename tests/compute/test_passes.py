import pytest
import torch

from p2ptrain.compute.initial import initial_weights
from p2ptrain.compute.model import stage_slice
from p2ptrain.compute.passes import Passes
from p2ptrain.core.sizes import boundary_bytes, microbatch_token_bytes
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.run import Arithmetic, Batch, Codec, Cut, Model, RunSpec
from p2ptrain.units import Microbatch, Slot, Stage, Step

MODEL = Model(vocab_size=300, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=4)
SPEC = RunSpec(model=MODEL, cut=Cut(stages=2), batch=Batch(sequences=2), codec=Codec(name="fp32"))
WORK, NEXT = Microbatch(Step(0), Slot(0)), Microbatch(Step(0), Slot(1))
TOKENS = bytes(microbatch_token_bytes(SPEC))


def passes(stage: int, spec: RunSpec = SPEC) -> Passes:
    part = stage_slice(spec, Stage(stage))
    weights = initial_weights(0, spec.model, part)
    for weight in weights.values():
        weight.requires_grad_()
    return Passes(spec, Stage(stage), part, weights, torch.device("cpu"))


def test_a_cut_pass_has_the_gradients_of_the_whole() -> None:
    whole_spec = RunSpec(model=MODEL, cut=Cut(stages=1), batch=SPEC.batch)
    whole = passes(0, whole_spec)
    graph = whole.run(WORK, TOKENS, None)
    expected, below = whole.gradients(graph, whole.mean_loss(graph.output, TOKENS), None)
    assert below is None

    first, last = passes(0), passes(1)
    low = first.run(WORK, TOKENS, None)
    high = last.run(WORK, TOKENS, first.encode_output(low.output, WORK))
    high_gradients, below = last.gradients(high, last.mean_loss(high.output, TOKENS), None)
    blob = last.encode_gradient(below, WORK)
    assert blob is not None
    low_gradients, _ = first.gradients(low, low.output, first.decode_gradient(blob, WORK))

    # Names of the whole in order: head, embedding, layers 0 and 1, final norm.
    head, embedding, *layers, norm = expected
    found = [*low_gradients[1:], *high_gradients[1:-1]]
    assert torch.equal(low_gradients[0], embedding)
    assert torch.equal(high_gradients[0], head)
    assert torch.equal(high_gradients[-1], norm)
    assert all(torch.equal(*pair) for pair in zip(found, layers, strict=True))


def test_nothing_is_a_gradient_of_zeros_of_the_right_size() -> None:
    assert passes(0).encode_nothing(WORK) is None
    assert passes(1).encode_nothing(WORK) == bytes(boundary_bytes(SPEC, 0, "backward", 0))


@pytest.mark.parametrize("extra", [-1, 1])
def test_token_ids_of_another_size_are_refused(extra: int) -> None:
    with pytest.raises(MisbehaviourError, match="size"):
        passes(0).run(WORK, bytes(len(TOKENS) + extra), None)


def test_a_token_id_outside_the_vocabulary_is_refused_before_it_indexes() -> None:
    tokens = (300).to_bytes(2, "little") + TOKENS[2:]
    with pytest.raises(MisbehaviourError, match="300"):
        passes(0).run(WORK, tokens, None)
    last = passes(1)
    graph = last.run(WORK, TOKENS, bytes(boundary_bytes(SPEC, 0, "forward", 0)))
    with pytest.raises(MisbehaviourError, match="300"):
        last.mean_loss(graph.output, TOKENS[:-2] + tokens[:2])


def test_activations_of_another_size_are_refused() -> None:
    with pytest.raises(MisbehaviourError, match="bytes"):
        passes(1).run(WORK, TOKENS, bytes(boundary_bytes(SPEC, 0, "forward", 0) - 4))


def test_a_missing_input_is_our_own_fault() -> None:
    with pytest.raises(InternalError):
        passes(1).run(WORK, TOKENS, None)


def test_what_comes_in_is_decoded_into_one_tensor_unless_its_graph_is_kept() -> None:
    first, last, works = passes(0), passes(1), (WORK, NEXT)
    texts = TOKENS, b"\1\0" * (len(TOKENS) // 2)
    sent = [
        first.encode_output(first.run(work, text, None).output, work)
        for work, text in zip(works, texts, strict=True)
    ]
    assert sent[0] != sent[1]
    inputs = [last.run(work, TOKENS, given).given for work, given in zip(works, sent, strict=True)]
    assert inputs[0].data_ptr() == inputs[1].data_ptr()
    kept = last.run(WORK, TOKENS, sent[0], keep=True)
    before = kept.given.detach().clone()
    assert kept.given.data_ptr() != inputs[0].data_ptr()
    last.run(NEXT, TOKENS, sent[1])
    assert torch.equal(kept.given, before)
    assert kept.given.is_leaf

    gradients = [first.decode_gradient(given, WORK) for given in sent]
    assert gradients[0] is gradients[1]


def test_bfloat16_keeps_the_residual_stream_in_float32() -> None:
    spec = RunSpec(
        model=MODEL,
        cut=SPEC.cut,
        batch=SPEC.batch,
        codec=SPEC.codec,
        arithmetic=Arithmetic(dtype="bfloat16"),
    )
    half, full = (
        passes(0, spec).run(WORK, TOKENS, None).output,
        passes(0).run(WORK, TOKENS, None).output,
    )
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.1, atol=0.05)
    last = passes(1, spec)
    graph = last.run(WORK, TOKENS, passes(0, spec).encode_output(half, WORK))
    gradients, below = last.gradients(graph, last.mean_loss(graph.output, TOKENS), None)
    assert below is not None
    assert {gradient.dtype for gradient in (*gradients, below)} == {torch.float32}
