import math
from typing import Literal

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from p2ptrain.compute.snapshot import pack
from p2ptrain.compute.stage import LOSS_SCALE, StageState
from p2ptrain.core.digest import tensor_digest
from p2ptrain.core.health import trouble
from p2ptrain.core.sizes import boundary_bytes, microbatch_token_bytes, nominal_tokens
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.ports import Update
from p2ptrain.run import (
    Accumulator,
    Batch,
    Bits,
    Codec,
    Composition,
    Cut,
    Model,
    Optimizer,
    RunSpec,
)
from p2ptrain.units import Microbatch, Slot, Stage, Step

MODEL = Model(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=8)
SPEC = RunSpec(
    model=MODEL,
    cut=Cut(stages=2),
    batch=Batch(sequences=2, microbatches=4),
    optimizer=Optimizer(name="adamw", adamw_learning_rate=0.01, warmup_steps=0, clip_norm=0.05),
)
CPU = torch.device("cpu")
PLENTY = 1 << 30
WORK = Microbatch(Step(0), Slot(0))
TOKENS = bytes(range(100, 100 + microbatch_token_bytes(SPEC)))


def seat(stage: int, spec: RunSpec = SPEC, kept_graph_bytes: int = PLENTY) -> StageState:
    return StageState(spec, Stage(stage), CPU, kept_graph_bytes=kept_graph_bytes)


def given() -> bytes:
    return seat(0).forward(WORK, TOKENS, None)


def own(state: StageState) -> bytes:
    return state.read_own(0, state.elements)


def stepped(state: StageState, step: int = 0) -> None:
    """Step a lower stage by itself."""
    gradient = seat(1).loss(WORK, TOKENS, given()).gradient
    assert gradient is not None
    state.backward(Microbatch(Step(step), Slot(0)), TOKENS, None, gradient)
    whole = state.finish([(0, own(state))])
    tokens = nominal_tokens(SPEC)
    state.step(Update(step=Step(step), tokens=tokens, norms=whole.norms, skip=False))


def test_who_trains_alone_finishes_with_the_same_sum() -> None:
    one, other = seat(1), seat(1)
    for state in (one, other):
        state.loss(WORK, TOKENS, given())
    norms = one.finish([(0, own(one))]).norms
    assert other.finish_alone() == norms
    for state in (one, other):
        assert state.read_sum(0, state.elements) == own(state)
        state.step(Update(step=Step(0), tokens=nominal_tokens(SPEC), norms=norms, skip=False))
    assert one.weights() == other.weights()


@pytest.mark.parametrize("kept_graph_bytes", [0, PLENTY])
def test_a_kept_graph_and_a_recomputed_one_give_the_same_bits(kept_graph_bytes: int) -> None:
    gradient = seat(1).loss(WORK, TOKENS, given()).gradient
    assert gradient is not None
    fresh, state = seat(0), seat(0, kept_graph_bytes=kept_graph_bytes)
    fresh.backward(WORK, TOKENS, None, gradient)
    state.forward(WORK, TOKENS, None)
    state.backward(WORK, TOKENS, None, gradient)
    assert own(state) == own(fresh)


def test_the_sum_is_the_gradient_in_fixed_point() -> None:
    spec = msgspec.structs.replace(SPEC, cut=Cut(stages=1))
    state = seat(0, spec)
    loss = state.loss(WORK, TOKENS, None)
    # Two sided differences along the gradient itself, by a step of weights and back.
    integers = np.frombuffer(own(state), "<i8").astype(np.float64) * 2.0**-40
    whole = state.finish([(0, own(state))])
    assert math.fsum(whole.norms) == pytest.approx(float(np.sum(integers**2)))
    weights = torch.nn.utils.parameters_to_vector(_weights(state))
    length = 1e-3 / math.sqrt(math.fsum(whole.norms))
    losses = []
    for sign in (1, -1):
        moved = weights + sign * length * torch.from_numpy(integers).float()
        losses.append(_loss_at(spec, moved) / LOSS_SCALE)
    slope = (losses[0] - losses[1]) / (2 * length)
    assert slope == pytest.approx(math.fsum(whole.norms), rel=1e-2)
    assert loss.loss / LOSS_SCALE == pytest.approx(sum(losses) / 2, rel=1e-3)


def _weights(state: StageState) -> list[torch.Tensor]:
    return [
        torch.frombuffer(bytearray(raw), dtype=torch.float32) for raw in state.weights().values()
    ]


def _loss_at(spec: RunSpec, flat: torch.Tensor) -> int:
    """The loss of a seat whose weights, in name order, are ``flat``."""
    from safetensors.torch import load, save  # noqa: PLC0415

    state = seat(0, spec)
    tensors, position = load(state.save()), 0
    for name in state.weights():
        tensor = tensors[f"weights/{name}"]
        tensors[f"weights/{name}"] = flat[position : position + tensor.numel()].view_as(tensor)
        position += tensor.numel()
    state.load(save({name: tensor.clone() for name, tensor in tensors.items()}))
    return state.loss(WORK, TOKENS, None).loss


def test_an_id_whose_loss_is_not_finite_has_no_weight_anywhere() -> None:
    broken = np.full(boundary_bytes(SPEC, 0, "forward", 0) // 2, 0x7F80, dtype="<u2").tobytes()
    last, first = seat(1), seat(0)
    loss = last.loss(WORK, TOKENS, broken)
    assert (loss.loss, loss.tokens, loss.poisoned) == (0, 0, False)
    assert loss.gradient == bytes(boundary_bytes(SPEC, 0, "backward", 0))
    assert last.evaluate(WORK, TOKENS, broken).tokens == 0
    result = first.backward(WORK, TOKENS, None, loss.gradient)
    assert not result.poisoned
    assert not any(own(last) + own(first))


def test_a_gradient_that_is_not_finite_is_poisoned_and_counts_as_zero() -> None:
    spec = msgspec.structs.replace(SPEC, model=msgspec.structs.replace(MODEL, n_layers=3))
    spec = msgspec.structs.replace(spec, cut=Cut(stages=3))
    middle = StageState(spec, Stage(1), CPU, kept_graph_bytes=0)
    broken = np.full(boundary_bytes(spec, 1, "backward", 0) // 2, 0x7F80, dtype="<u2").tobytes()
    result = middle.backward(WORK, TOKENS, given(), broken)
    assert result.poisoned
    assert result.gradient == bytes(boundary_bytes(spec, 0, "backward", 0))
    assert not any(own(middle))


LATENT = Composition(
    name="latent", width=4, mean=True, anchor_order=1, forward=((0, 4),), backward=((0, 3),)
)


@pytest.mark.parametrize("bits", [32, 16, 4])
def test_a_kept_graph_does_not_see_what_comes_in_later(bits: Bits) -> None:
    """Inputs share one tensor, but for those of graphs that are kept: a decoder's are needed."""
    levels = ((0, bits),)
    latent = msgspec.structs.replace(LATENT, forward=levels, backward=levels)
    model = msgspec.structs.replace(MODEL, n_layers=3)
    three = msgspec.structs.replace(
        SPEC, model=model, cut=Cut(stages=3), codec=Codec(name="latent", compositions=(latent,))
    )
    lower, upper, state = seat(0, three), seat(2, three), seat(1, three)
    works = [Microbatch(Step(0), Slot(slot)) for slot in range(3)]
    texts = [TOKENS[slot:] + TOKENS[:slot] for slot in range(3)]
    frames = []
    for work, text in zip(works, texts, strict=True):
        below = lower.forward(work, text, None)
        gradient = upper.loss(work, text, state.forward(work, text, below)).gradient
        assert gradient is not None
        frames.append((work, text, below, gradient))
    fresh = seat(1, three, kept_graph_bytes=0)
    for work, text, below, gradient in frames:
        kept = state.backward(work, text, below, gradient)
        assert kept == fresh.backward(work, text, below, gradient)
    assert own(state) == own(fresh)


@pytest.mark.parametrize(
    "codec", [Codec(name="int8"), Codec(name="latent", compositions=(LATENT,))]
)
def test_integers_tell_the_stage_beside_them_what_is_not_finite(codec: Codec) -> None:
    spec = msgspec.structs.replace(SPEC, codec=codec)
    model = msgspec.structs.replace(MODEL, n_layers=3)
    three = msgspec.structs.replace(spec, model=model, cut=Cut(stages=3))
    spoilt = b"\xff\xff" + bytes(boundary_bytes(three, 1, "forward", 0) - 2)
    last, middle = seat(2, three), seat(1, three, kept_graph_bytes=0)
    loss = last.loss(WORK, TOKENS, spoilt)
    assert (loss.loss, loss.tokens, loss.poisoned) == (0, 0, False)
    assert loss.gradient is not None
    received = seat(0, three).forward(WORK, TOKENS, None)
    result = middle.backward(WORK, TOKENS, received, loss.gradient)
    assert not result.poisoned
    assert not any(own(last) + own(middle))
    spoilt = b"\xff\xff" + bytes(boundary_bytes(three, 1, "backward", 0) - 2)
    result = middle.backward(WORK, TOKENS, received, spoilt)
    assert result.poisoned
    assert not any(own(middle))
    assert result.gradient is not None
    assert not seat(0, three).backward(WORK, TOKENS, None, result.gradient).poisoned


@pytest.mark.parametrize(
    "codec", [Codec(name="int4"), Codec(name="latent", compositions=(LATENT,))]
)
def test_a_probe_goes_through_the_codec(codec: Codec) -> None:
    for stage in range(2):
        seat(stage, msgspec.structs.replace(SPEC, codec=codec)).probe()


def test_evaluation_slots_keep_no_graph_and_add_nothing() -> None:
    state, work = seat(0), Microbatch(Step(0), Slot(SPEC.batch.microbatches))
    assert state.forward(work, TOKENS, None) == given()
    assert not any(own(state))


def test_gradients_are_divided_by_the_tokens_and_clipped_by_the_norm_of_all_stages() -> None:
    # One step of AdamW from zero moments moves by the learning rate, whatever the scale;
    # momentum shows the scale: it is (1 - beta1) x the gradient.
    from safetensors.torch import load  # noqa: PLC0415

    state = seat(0)
    gradient = seat(1).loss(WORK, TOKENS, given()).gradient
    assert gradient is not None
    state.backward(WORK, TOKENS, None, gradient)
    whole = state.finish([(0, own(state))])
    others = 3 * math.fsum(whole.norms)
    update = Update(
        step=Step(0),
        tokens=2 * nominal_tokens(SPEC),
        norms=(*whole.norms, others),
        skip=False,
    )
    state.step(update)
    norm = math.sqrt(4 * math.fsum(whole.norms)) / 2
    assert norm > SPEC.optimizer.clip_norm
    tensors = load(state.save())
    means = [tensor for name, tensor in tensors.items() if "/mean/" in name]
    length = math.sqrt(sum(float(mean.square().sum()) for mean in means))
    # This stage has a quarter of the squared norm, so half of the clipped length.
    assert length == pytest.approx((1 - 0.9) * SPEC.optimizer.clip_norm / 2, rel=1e-4)


def test_steps_come_in_order_and_need_a_sum() -> None:
    state = seat(0)
    with pytest.raises(InternalError, match="version 0"):
        state.step(Update(step=Step(1), tokens=0, norms=(), skip=True))
    with pytest.raises(InternalError, match="without a finished sum"):
        state.step(Update(step=Step(0), tokens=16, norms=(), skip=False))
    with pytest.raises(InternalError, match="no sum"):
        state.read_sum(0, 1)
    stepped(state)
    with pytest.raises(InternalError, match="without a finished sum"):
        state.step(Update(step=Step(1), tokens=16, norms=(), skip=False))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_snapshot_carries_all_that_the_next_steps_depend_on(
    dtype: Literal["int64", "int32"],
) -> None:
    spec = msgspec.structs.replace(SPEC, accumulator=Accumulator(dtype=dtype))
    state, joiner = seat(0, spec), seat(0, spec)
    stepped(state)
    stepped(state, 1)
    joiner.load(state.save())
    assert joiner.version == 2
    stepped(state, 2)
    stepped(joiner, 2)
    assert joiner.save() == state.save()


def test_a_snapshot_that_contradicts_itself_is_refused() -> None:
    from safetensors.torch import load, save  # noqa: PLC0415

    state = seat(0)
    before = state.save()
    for change in (
        {"version": torch.tensor(-1)},
        {"optimizer/updates": torch.tensor(9)},
        {"exponents": load(before)["exponents"] + 1},
    ):
        with pytest.raises(MisbehaviourError, match="disagree"):
            state.load(save(load(before) | change))
    assert state.save() == before


def test_int32_skips_make_room() -> None:
    spec = msgspec.structs.replace(SPEC, accumulator=Accumulator(dtype="int32"))
    state, other = seat(0, spec), seat(0, spec)
    state.step(Update(step=Step(0), tokens=16, norms=(), skip=True))
    other.step(Update(step=Step(0), tokens=0, norms=(), skip=False))
    assert state.save() == other.save()
    gradient = seat(1).loss(WORK, TOKENS, given()).gradient
    assert gradient is not None
    state.backward(Microbatch(Step(1), Slot(0)), TOKENS, None, gradient)
    fresh = seat(0, spec)
    fresh.backward(WORK, TOKENS, None, gradient)
    coarse, fine = (np.abs(np.frombuffer(own(s), "<i4")).max() for s in (state, fresh))
    assert coarse * 16 == pytest.approx(fine, abs=16)


def test_what_did_not_fit_in_its_step_does_not_fit_when_it_is_computed_again() -> None:
    """The range is that of its step, whatever the skip has made of it."""
    spec = msgspec.structs.replace(SPEC, accumulator=Accumulator(dtype="int32"))
    state, later = seat(0, spec), Microbatch(Step(1), Slot(0))
    constants = (2.0**exponent for exponent in range(20))
    huge = next(
        gradient
        for gradient in map(_constant_gradient, constants)
        if seat(0, spec).backward(WORK, TOKENS, None, gradient).poisoned
    )
    state.step(Update(step=Step(0), tokens=0, norms=(), skip=True), keep=True)
    assert state.backward(WORK, TOKENS, None, huge, sign=0).poisoned
    assert not state.backward(later, TOKENS, None, huge).poisoned


def test_digests_are_those_of_the_weights() -> None:
    state = seat(1)
    digests, weights = state.tensor_digests(), state.weights()
    name = "lm_head.weight"
    assert digests[name] == tensor_digest(name, "F32", (256, 16), weights[name])


def test_without_compression_the_cut_changes_nothing() -> None:
    plain = msgspec.structs.replace(SPEC, codec=Codec(name="fp32"))
    cut = [seat(stage, plain) for stage in range(2)]
    whole = seat(0, msgspec.structs.replace(plain, cut=Cut(stages=1)))
    one = cut[1].loss(WORK, TOKENS, cut[0].forward(WORK, TOKENS, None))
    assert one.gradient is not None
    cut[0].backward(WORK, TOKENS, None, one.gradient)
    assert whole.loss(WORK, TOKENS, None).loss == one.loss
    wholes = [state.finish([(0, own(state))]) for state in cut]
    norms = tuple(norm for finished in wholes for norm in finished.norms)
    update = Update(step=Step(0), tokens=one.tokens, norms=norms, skip=False)
    for state in cut:
        state.step(update)
    finished = whole.finish([(0, own(whole))])
    whole.step(Update(step=Step(0), tokens=one.tokens, norms=finished.norms, skip=False))
    assert whole.tensor_digests() == {**cut[0].tensor_digests(), **cut[1].tensor_digests()}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_probe_finds_a_state_that_gives_nothing_finite(stage: int) -> None:
    state = seat(stage)
    state.probe()
    tensors = safetensors.torch.load(state.save())
    for name in [name for name in tensors if name.startswith("weights/") and ".mlp." in name]:
        tensors[name].fill_(3e38)  # finite, as every snapshot's, and too large to compute with
    state.load(pack(tensors))
    with pytest.raises(MisbehaviourError, match="no finite output"):
        state.probe()


NARROW = msgspec.structs.replace(
    SPEC,
    codec=Codec(name="narrow", compositions=(Composition(name="narrow", width=4, anchor_order=1),)),
)


@pytest.mark.parametrize(("encoder_scale", "word"), [(1.0, None), (0.0, "same for every token")])
def test_a_step_leaves_its_reading_and_an_encoder_that_died_is_told(
    encoder_scale: float, word: str | None
) -> None:
    lower, upper = seat(0, NARROW), seat(1, NARROW)
    tensors = safetensors.torch.load(lower.save())
    tensors["weights/bottleneck.0.encoder.weight"] *= encoder_scale
    lower.load(pack(tensors))
    assert lower.reading is None
    sent = lower.forward(WORK, TOKENS, None)
    assert len(sent) == boundary_bytes(NARROW, 0, "forward", 0)
    gradient = upper.loss(WORK, TOKENS, sent).gradient
    assert gradient is not None
    assert len(gradient) == boundary_bytes(NARROW, 0, "backward", 0)
    lower.backward(WORK, TOKENS, None, gradient)
    whole = lower.finish([(0, own(lower))])
    lower.step(Update(step=Step(0), tokens=nominal_tokens(NARROW), norms=whole.norms, skip=False))
    assert lower.reading is not None
    assert lower.reading.gradient_norm
    told = trouble(lower.reading)
    assert told is None if word is None else told is not None and word in told


def test_a_decoder_that_died_sends_no_gradient_back_and_is_told() -> None:
    lower, upper = seat(0, NARROW), seat(1, NARROW)
    tensors = safetensors.torch.load(upper.save())
    tensors["weights/bottleneck.0.decoder.weight"].zero_()
    upper.load(pack(tensors))
    gradient = upper.loss(WORK, TOKENS, lower.forward(WORK, TOKENS, None)).gradient
    assert gradient is not None
    lower.backward(WORK, TOKENS, None, gradient)
    lower.step(Update(step=Step(0), tokens=0, norms=(), skip=True))
    assert lower.reading is not None
    assert lower.reading.gradient_norm == 0.0
    told = trouble(lower.reading)
    assert told is not None
    assert "no gradient" in told


@pytest.mark.parametrize("ids", [[7], [7, 9], [7, 8, 9]])
def test_a_text_that_says_nothing_is_not_read_as_a_dead_boundary(ids: list[int]) -> None:
    lower = seat(0, NARROW)
    dull = bytes((ids * len(TOKENS))[: len(TOKENS)])
    lower.forward(WORK, dull, None)
    lower.step(Update(step=Step(0), tokens=0, norms=(), skip=True))
    assert lower.reading is None
    lower.forward(Microbatch(Step(1), Slot(0)), dull, None)
    lower.forward(Microbatch(Step(1), Slot(1)), TOKENS, None)
    lower.step(Update(step=Step(1), tokens=0, norms=(), skip=True))
    assert lower.reading is not None
    assert trouble(lower.reading) is None


@pytest.mark.parametrize("context", [1, 2])
def test_sequences_shorter_than_the_anchors_reach_train(context: int) -> None:
    held = Composition(name="far", width=4, anchor_order=3, anchor_rank=2)
    spec = msgspec.structs.replace(
        SPEC,
        model=msgspec.structs.replace(MODEL, context=context),
        codec=Codec(name="far", compositions=(held,)),
    )
    tokens = bytes(range(microbatch_token_bytes(spec)))
    found = seat(1, spec).loss(WORK, tokens, seat(0, spec).forward(WORK, tokens, None))
    assert found.tokens == nominal_tokens(spec)
    assert not found.poisoned


def test_a_bottleneck_travels_with_its_stages_state() -> None:
    names = {
        stage: {name for name in seat(stage, NARROW).weights() if name.startswith("bottleneck")}
        for stage in (0, 1)
    }
    assert names == {
        0: {"bottleneck.0.encoder.weight", "bottleneck.0.norm.weight"},
        1: {"bottleneck.0.anchor.0.weight", "bottleneck.0.decoder.weight"},
    }
    for stage, own_names in names.items():
        held = safetensors.torch.load(seat(stage, NARROW).save())
        assert {f"weights/{name}" for name in own_names} <= held.keys()


def _constant_gradient(value: float) -> bytes:
    """In bfloat16: the upper half of a float32."""
    high = np.array([value], dtype="<f4").tobytes()[2:]
    return high * (boundary_bytes(SPEC, 0, "backward", 0) // len(high))
