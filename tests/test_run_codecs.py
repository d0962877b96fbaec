"""Codecs in a RunSpec: promises are sized, kept, and refused with what would do."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from p2ptrain.errors import RunSpecError
from p2ptrain.run import (
    PRESETS,
    Batch,
    Codec,
    Composition,
    Cut,
    Limits,
    Model,
    RunSpec,
    encode,
    from_toml,
    layered,
    preset,
    resolved,
    to_toml,
    validate,
)
from p2ptrain.run.codecs import BUILT_IN, INT8_WIDTH, LEAST_WIDTH, RATIOS, sized
from p2ptrain.run.frames import (
    DIRECTIONS,
    bf16_bytes,
    bits_at,
    encoded_bytes,
    most_frame_bytes,
)
from p2ptrain.run.spec import MAX_SPEC_BYTES, Levels


def spec_of(width: int, tokens: int, *, stages: int = 4, vocab: int = 256) -> RunSpec:
    return RunSpec(
        model=Model(d_model=width, n_heads=2, context=tokens, n_layers=stages, vocab_size=vocab),
        cut=Cut(stages=stages),
        batch=Batch(sequences=1),
        limits=Limits(retained_bytes=1 << 44),
    )


def named(name: str, **values: Any) -> RunSpec:
    return RunSpec(codec=Codec(name=name, compositions=(Composition(name=name, **values),)))


# --- sizes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("composition", "bits", "size"),
    [
        (BUILT_IN["none"], 32, 4 * 650),
        (BUILT_IN["bf16"], 16, 2 * 650),
        (BUILT_IN["int8"], 8, 2 + 11 * (2 + 64)),  # 650 values are 11 blocks, the last not full
        (BUILT_IN["int4"], 4, 2 + 11 * (2 + 32)),
        (Composition(name="x"), 3, 2 + 10 + 244),  # 1950 bits
        (Composition(name="x", mean=True), 2, 2 + 130 + 10 + 163),
    ],
)
def test_payloads_are_counted_by_hand(composition: Composition, bits: Any, size: int) -> None:
    assert encoded_bytes(composition, bits, 10, 65) == size


@pytest.mark.parametrize(("step", "bits"), [(0, 8), (9, 8), (10, 4), (19, 4), (20, 3), (99, 3)])
def test_the_level_of_a_step_is_the_last_that_has_begun(step: int, bits: int) -> None:
    levels: Levels = ((0, 8), (10, 4), (20, 3))
    assert bits_at(levels, step) == bits


# --- presets ----------------------------------------------------------------------------


@given(
    name=st.sampled_from(list(RATIOS)),
    width=st.integers(1, 128).map(lambda part: 64 * part),
    tokens=st.integers(1, 16).map(lambda part: 512 * part),
    stages=st.integers(1, 40),
    vocab=st.sampled_from([256, 50_000, 200_000]),
)
def test_a_sized_codec_keeps_its_promise_and_one_value_more_would_break_it(
    name: str, width: int, tokens: int, stages: int, vocab: int
) -> None:
    spec = spec_of(width, tokens, stages=stages, vocab=vocab)
    try:
        found = sized(name, spec)
    except RunSpecError:
        reject()  # too narrow: the next tests judge what is said then
    bits = found.forward[0][1]
    assert found.width >= {8: INT8_WIDTH, 4: LEAST_WIDTH}[bits]

    def least(composition: Composition) -> float:
        return min(
            bf16_bytes(spec) / most_frame_bytes(spec, composition, max(stages - 2, 0), direction)
            for direction in DIRECTIONS
        )

    assert least(found) >= RATIOS[name]
    assert least(msgspec.structs.replace(found, width=found.width + 1)) < RATIOS[name]


def test_a_model_too_narrow_is_told_the_width_and_the_microbatch_that_would_do() -> None:
    spec = spec_of(128, 512)
    with pytest.raises(RunSpecError) as caught:
        sized("b128x", spec)
    said = str(caught.value)
    offers = re.findall(r"d_model >= (\d+) with microbatches of (\d+) tokens", said)
    assert offers
    for width, tokens in offers:
        assert sized("b128x", spec_of(int(width), int(tokens)))
        with pytest.raises(RunSpecError):
            sized("b128x", spec_of(int(width) - 64, int(tokens)))
    assert "b32x fits as it is" in said
    assert sized("b32x", spec)


def test_a_microbatch_too_small_is_told_the_one_that_would_do() -> None:
    spec = spec_of(512, 128)
    with pytest.raises(RunSpecError) as caught:
        sized("b128x", spec)
    found = re.search(r"at this width microbatches of (\d+) tokens do", str(caught.value))
    assert found
    tokens = int(found[1])
    assert sized("b128x", spec_of(512, tokens))
    with pytest.raises(RunSpecError):
        sized("b128x", spec_of(512, tokens - 128))


@pytest.mark.parametrize("context", [1, 16, 2048])
def test_a_refusal_is_found_at_once_and_offers_nothing_that_is_refused(
    context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = 0

    def counted(*given: Any) -> int:
        nonlocal sizes
        sizes += 1
        return most_frame_bytes(*given)

    monkeypatch.setattr("p2ptrain.run.codecs.most_frame_bytes", counted)
    spec = spec_of(192, context)
    with pytest.raises(RunSpecError) as caught:
        sized("b128x", spec)
    assert sizes < 5000
    for width, tokens in re.findall(r"d_model >= (\d+) with \D+ (\d+) tokens", str(caught.value)):
        batch = Batch(sequences=int(tokens) // context)
        model = msgspec.structs.replace(spec.model, d_model=int(width))
        offered = msgspec.structs.replace(spec, model=model, batch=batch)
        assert validate(resolved(msgspec.structs.replace(offered, codec=Codec(name="b128x"))))


def test_microbatches_of_more_sequences_than_a_run_may_have_are_not_offered() -> None:
    with pytest.raises(RunSpecError) as caught:
        sized("b32x", spec_of(128, 1, stages=400))
    assert "at this width" not in str(caught.value)


def test_wide_models_take_int8_and_large_vocabularies_factorised_anchors() -> None:
    small, large = sized("b128x", preset("small")), sized("b128x", preset("8b"))
    assert (small.forward[0][1], large.forward[0][1]) == (4, 8)
    assert small.anchor_rank == 0
    assert sized("b128x", spec_of(4096, 2048, vocab=50_000)).anchor_rank > 0
    assert sized("b32x", spec_of(128, 4096, vocab=50_000)).anchor_rank == 0  # smaller whole


def test_resolving_fills_in_what_is_sized_and_drops_what_no_boundary_uses() -> None:
    unused, mine = Composition(name="unused"), Composition(name="mine")
    codec = Codec(boundaries=("b64x", "mine", "bf16"), compositions=(unused, mine))
    spec = resolved(msgspec.structs.replace(preset("small"), codec=codec))
    assert [entry.name for entry in spec.codec.compositions] == ["b64x", "mine"]
    assert resolved(spec) == spec


def test_a_resolved_spec_survives_toml_and_fits_a_record() -> None:
    for name in PRESETS:
        base = msgspec.structs.replace(preset(name), codec=Codec(name="b32x"))
        spec = resolved(base)
        assert len(encode(spec)) < MAX_SPEC_BYTES
        text = to_toml(spec)
        assert "[{name = " in text
        assert msgspec.toml.decode(text, type=RunSpec) == spec


def test_a_composition_of_ones_own_is_read_from_toml() -> None:
    text = """
    [codec]
    name = "warming"
    [[codec.compositions]]
    name = "warming"
    forward = [[0, 32], [50, 16]]
    """
    spec = from_toml(text)
    assert spec.codec.compositions == (Composition(name="warming", forward=((0, 32), (50, 16))),)
    assert from_toml(to_toml(spec)) == spec


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("forward = [[0, 5]]", r"\[0\]\.forward\[0\]\[1\]: .* 5; there are: 32, 16, 8, 4, 3, 2$"),
        ('scale = "row"', r"\[0\]\.scale: .* 'row'; there are: token, block$"),
        ('width = "x"', r"\[0\]\.width: expected int, got str$"),
    ],
)
def test_a_wrong_value_in_a_composition_is_told_with_its_file_and_the_choice(
    values: str, said: str
) -> None:
    text = f'[codec]\nname = "x"\n[[codec.compositions]]\nname = "x"\n{values}\n'
    with pytest.raises(RunSpecError, match=r"^run\.toml: codec\.compositions" + said):
        layered(text=text, source="run.toml")


def test_a_latent_so_wide_that_a_peer_would_make_first_weights_for_hours_is_refused() -> None:
    model = Model(d_model=65_536, n_layers=4, n_heads=2)
    held = Composition(name="x", width=4097)
    spec = RunSpec(model=model, codec=Codec(name="x", compositions=(held,)))
    spec = msgspec.structs.replace(spec, limits=Limits(retained_bytes=1 << 44))
    with pytest.raises(RunSpecError, match="width = 4097: 4096 at most"):
        validate(spec)
    widest = sized("b32x", spec_of(65_536, 1 << 18, stages=2)).width
    assert 4000 < widest <= 4096


def test_anchors_stand_without_a_bottleneck_too_and_cost_the_wire_nothing() -> None:
    spec = validate(named("x", anchor_order=3))
    assert from_toml(to_toml(spec)) == spec
    found = spec.codec.compositions[0]
    assert most_frame_bytes(spec, found, 2, "forward") == most_frame_bytes(
        spec, BUILT_IN["bf16"], 2, "forward"
    )


@pytest.mark.parametrize("letter", ["\u00e9", "\U0001d400", "\u4e2d"])
def test_a_name_in_any_script_is_read_back_from_toml(letter: str) -> None:
    spec = validate(named(f"a{letter}.1"))
    text = to_toml(spec)
    assert text.isascii()  # whatever the locale writes files in
    assert from_toml(text) == spec


# --- rules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (RunSpec(codec=Codec(name="zip9")), r"codec.name = 'zip9': there is no such codec, but"),
        (RunSpec(codec=Codec(boundaries=("zip9",) * 3)), "codec.boundaries: 'zip9': there is no"),
        (RunSpec(codec=Codec(name="b32x")), "lacks b32x"),
        (named("a b"), "a b: a name has"),
        (named("int8"), "int8: built in"),
        (RunSpec(codec=Codec(compositions=(Composition(name="x"),))), "x: stands at no boundary"),
        (RunSpec(codec=Codec(name="x", compositions=(Composition(name="x"),) * 2)), "2 times"),
        (named("x", width=128), "width = 128: 0, or less than d_model = 128"),
        (named("x", width=-1), "width = -1"),
        (named("x", anchor_rank=1), "anchor_rank = 1"),
        (named("x", width=3, anchor_order=1, anchor_rank=-1), "anchor_rank = -1"),
        (named("x", width=3, hadamard=True), "power of two of values under one scale, not 3"),
        (named("x", forward=()), "forward = .*: steps that rise from 0"),
        (named("x", forward=((1, 16),)), "steps that rise from 0"),
        (named("x", backward=((0, 16), (0, 32))), "backward = .*: steps that rise"),
        (named("x", backward=((0, 16), (301, 32))), "optimizer.steps at most"),
        (named("x", forward=tuple((step, 16) for step in range(17))), "17 levels"),
        (named("b32x", width=99, mean=True), r"b32x: gives 1\.3x here, not 32x"),
    ],
)
def test_what_no_run_can_do_is_refused_by_name(spec: RunSpec, reason: str) -> None:
    with pytest.raises(RunSpecError, match=reason):
        validate(spec)


def test_bits_that_no_codec_has_are_refused_where_they_stand() -> None:
    flags = {"codec.name": "x", "codec.compositions": '[{name = "x", forward = [[0, 5]]}]'}
    with pytest.raises(RunSpecError, match=r"codec.compositions\[0\].forward.*enum value 5"):
        layered(flags=flags)


def test_sizing_leaves_numbers_out_of_range_to_those_who_judge_them() -> None:
    with pytest.raises(RunSpecError, match=r"batch.sequences = 0"):
        layered(flags={"codec.name": "b128x", "batch.sequences": 0})
