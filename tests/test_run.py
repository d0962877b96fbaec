"""The RunSpec: equal values, equal ids; every impossible run refused in one line."""

import math
import tomllib
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2ptrain.errors import RunSpecError
from p2ptrain.run import (
    PRESETS,
    Accumulator,
    Batch,
    Codec,
    Cut,
    Data,
    Evaluation,
    Limits,
    Model,
    Optimizer,
    RunSpec,
    Sync,
    decode,
    digest,
    encode,
    expected_efficiency,
    from_toml,
    layered,
    preset,
    to_toml,
    validate,
)
from p2ptrain.run.check import BOUNDS
from p2ptrain.run.presets import with_stages
from p2ptrain.run.spec import MAX_SPEC_BYTES
from p2ptrain.run.text import environment_name, flat

specs = st.builds(
    RunSpec,
    name=st.text("abc XYZ_-.09", min_size=1, max_size=20),
    seed=st.integers(0, 2**63 - 1),
    optimizer=st.builds(
        Optimizer,
        learning_rate=st.floats(1e-9, 10.0),
        steps=st.integers(1, 10**6),
        name=st.sampled_from(["muon", "adamw"]),
    ),
    cut=st.integers(1, 4).map(lambda stages: Cut(stages=stages)),
    data=st.sampled_from([Data(), Data(root="0f" * 32, total_bytes=9, file_count=1)]),
)


@given(specs)
def test_toml_and_the_encoding_give_the_same_value_back(spec: RunSpec) -> None:
    assert from_toml(to_toml(spec)) == spec
    assert from_toml(to_toml(spec, comments=False)) == spec
    assert decode(encode(spec)) == spec
    assert digest(decode(encode(spec))) == digest(spec)


@given(specs, specs)
def test_ids_are_equal_exactly_when_the_specs_are(one: RunSpec, other: RunSpec) -> None:
    assert (digest(one) == digest(other)) == (one == other)


def test_the_id_does_not_depend_on_how_a_number_was_written() -> None:
    written = from_toml("[optimizer]\nclip_norm = 1\n")
    assert digest(written) == digest(RunSpec(optimizer=Optimizer(clip_norm=1)))
    assert len(digest(written)) == 32


def test_a_run_that_does_without_what_was_added_keeps_its_id() -> None:
    """Of the release before ``sync.adoption``; each such field is encoded only where it counts."""
    assert digest(RunSpec()) == "eca029ed42fb15fce325218b76153198"
    lossy = RunSpec(sync=Sync(agreement="canonical", canonical_steps=25, adoption="int8"))
    assert decode(encode(lossy)) == lossy
    exact = msgspec.structs.replace(lossy, sync=msgspec.structs.replace(MIXED, adoption="exact"))
    assert digest(lossy) != digest(exact) == digest(RunSpec(sync=MIXED))


def test_presets_have_the_size_that_their_name_says_and_fit_a_directory_record() -> None:
    for name, spec in PRESETS.items():
        validate(spec)
        pinned = msgspec.structs.replace(
            spec, data=Data(root="a" * 64, total_bytes=2**40, file_count=999)
        )
        assert len(encode(pinned)) < MAX_SPEC_BYTES
        if name[-1] in "mb":
            nominal = float(name[:-1]) * (1e9 if name[-1] == "b" else 1e6)
            assert parameters(spec.model) == pytest.approx(nominal, rel=0.07)
    assert 0.4e6 < parameters(preset("tiny").model) < 0.8e6
    assert preset("small").model.d_model >= 512


def parameters(model: Model) -> int:
    """Counted by hand here, so that the presets are judged from outside."""
    width, kv_width = model.d_model, model.d_model // model.n_heads * model.n_kv_heads
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * model.d_ff + 2 * width
    return model.n_layers * layer + 2 * model.vocab_size * width + width


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(RunSpecError, match=r"no preset '126m'; did you mean '125m'\?"):
        preset("126m")
    with pytest.raises(RunSpecError, match="there are: tiny, small"):
        preset("enormous")


def numbers(part: msgspec.Struct, prefix: str = "") -> Iterator[str]:
    for field in part.__struct_fields__:
        value = getattr(part, field)
        if isinstance(value, msgspec.Struct):
            yield from numbers(value, f"{field}.")
        elif isinstance(value, int | float):
            yield prefix + field


def test_every_number_has_bounds_and_every_default_lies_within() -> None:
    assert set(numbers(RunSpec())) == set(BOUNDS)
    assert validate(RunSpec()) == RunSpec()


@pytest.mark.parametrize("name", BOUNDS)
def test_values_outside_their_bounds_are_refused_by_name(name: str) -> None:
    least, greatest = BOUNDS[name]
    for value in (least - 1, greatest * 2 + 1):
        kind = float if isinstance(flat(RunSpec())[name], float) else int
        with pytest.raises(RunSpecError, match=name):
            layered(flags={name: kind(value)})


def test_a_value_that_is_no_number_is_refused() -> None:
    with pytest.raises(RunSpecError, match="learning_rate = nan: must lie between"):
        from_toml("[optimizer]\nlearning_rate = nan\n")


MIXED = Sync(agreement="canonical", canonical_steps=25)

IMPOSSIBLE = [
    (RunSpec(model=Model(d_model=130)), "d_model = 130 must be a multiple of n_heads = 4"),
    (RunSpec(model=Model(d_model=20)), "must be even"),
    (RunSpec(model=Model(n_kv_heads=3)), "n_heads = 4 must be a multiple of n_kv_heads = 3"),
    (RunSpec(model=Model(vocab_size=200)), "the byte tokenizer needs 256"),
    (RunSpec(cut=Cut(stages=5)), r"at most one stage per layer \(n_layers = 4\)"),
    (RunSpec(cut=Cut(layers=(2, 2))), "names 2 stages, cut.stages = 4"),
    (RunSpec(cut=Cut(layers=(1, 1, 1, 2))), "sum to 5, model.n_layers = 4"),
    (RunSpec(cut=Cut(layers=(0, 1, 1, 2))), "every stage needs a layer"),
    (RunSpec(codec=Codec(boundaries=("bf16",))), "names 1 codecs, 4 stages have 3 boundaries"),
    (RunSpec(sync=Sync(mode="delayed")), '"delayed" is not built yet'),
    (RunSpec(sync=Sync(mode="local")), '"local" is not built yet'),
    (RunSpec(sync=Sync(agreement="canonical")), "must be a multiple of that, or 0"),
    (RunSpec(sync=Sync(adoption="int8")), 'loses bits, and replicas of a run with .* "canonical"'),
    (
        RunSpec(sync=MIXED, evaluation=Evaluation(microbatches=0)),
        "before the evaluation at the end",
    ),
    (RunSpec(sync=MIXED, accumulator=Accumulator(dtype="int32", fraction_bits=20)), "use .int64."),
    (RunSpec(data=Data(root="xyz", total_bytes=1, file_count=1)), "64 hexadecimal digits"),
    (RunSpec(data=Data(total_bytes=1)), "pinned together"),
    (RunSpec(data=Data(held_out=0.0)), "leaves nothing to evaluate on"),
    (RunSpec(name="a\nb"), "name: 1 to 64"),
    (RunSpec(limits=Limits(suspect_seconds=1.0)), "must be twice"),
    (RunSpec(limits=Limits(retained_bytes=1 << 18)), "hold the frames of 2 microbatches.*: 52"),
    (
        msgspec.structs.replace(
            RunSpec(batch=Batch(microbatches=4096)),
            accumulator=msgspec.structs.replace(RunSpec().accumulator, fraction_bits=46),
            limits=Limits(retained_bytes=1 << 40),
        ),
        "no room for 4096 microbatches: at most 45",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "reason"), IMPOSSIBLE)
def test_a_run_that_cannot_be_run_is_refused_in_one_line(spec: RunSpec, reason: str) -> None:
    with pytest.raises(RunSpecError, match=reason) as caught:
        validate(spec)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunSpecError):
        decode(encode(spec))


def test_a_run_of_mixed_devices_is_taken_if_its_checkpoints_meet_its_adoptions() -> None:
    assert validate(RunSpec(sync=MIXED)).sync.canonical_steps == RunSpec().checkpoint.every_steps


def test_a_value_that_no_text_can_hold_is_refused() -> None:
    with pytest.raises(RunSpecError, match="characters that are none"):
        layered(environ={"P2PTRAIN_ARITHMETIC_TORCH": "\udcff"})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(RunSpecError, match=r"d_model = 130.*; .*stages = 9"):
        validate(RunSpec(model=Model(d_model=130), cut=Cut(stages=9)))


def test_no_held_out_share_is_fine_without_evaluation() -> None:
    spec = RunSpec(data=Data(held_out=0.0), evaluation=Evaluation(microbatches=0))
    assert validate(spec) == spec


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[model\n", "file is not TOML"),
        ("[model]\nd_modl = 1\n", "unknown key model.d_modl; did you mean model.d_model?"),
        ("d_model = 1\n", "unknown key d_model; did you mean model.d_model?"),
        ("[zebra]\nquagga = 1\n", "p2ptrain init writes all"),
        ('[model]\nd_model = "wide"\n', "model.d_model: expected int, got str"),
        (
            '[optimizer]\nname = "sgd"\n',
            "file: optimizer.name: Invalid enum value 'sgd'; there are",
        ),
        ("model = 3\n", "unknown key model; did you mean"),
        ("seed = 99999999999999999999\n", "seed = 99999999999999999999: must lie between"),
        ("[cut]\nlayers = [99999999999999999999, 1, 1, 1]\n", "cut.layers sum to"),
        ("a = " + "[" * 9999, "file is no RunSpec: nested too deep"),
        ("a." * 9999 + "b = 1", "file is no RunSpec: nested too deep"),
    ],
)
def test_bad_text_is_refused_with_what_to_write_instead(text: str, reason: str) -> None:
    with pytest.raises(RunSpecError) as caught:
        from_toml(text)
    assert reason in str(caught.value)


@given(st.binary(max_size=200))
@example(b"\x80")  # all values left out
@example(b"\x81\xad\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80")  # a key that is no text
def test_arbitrary_bytes_never_decode_to_anything_but_an_error(blob: bytes) -> None:
    with pytest.raises(RunSpecError):
        decode(blob)


def test_an_oversized_blob_is_refused_before_it_is_read() -> None:
    with pytest.raises(RunSpecError, match="at most 4000"):
        decode(bytes(MAX_SPEC_BYTES + 1))


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_preset() -> None:
    found = layered(
        base=preset("small"),
        text="seed = 1\n[optimizer]\nsteps = 2\nmomentum = 0.5\n[batch]\nmicrobatches = 8\n",
        source="run.toml",
        environ={environment_name("optimizer.steps"): "3", "P2PTRAIN_SEED": "2", "HOME": "/"},
        flags={"seed": 3, "codec.boundaries": '["fp32", "bf16", "fp32"]'},
    )
    assert found.spec.seed == 3
    assert found.spec.optimizer.steps == 3
    assert found.spec.optimizer.momentum == 0.5
    assert found.spec.codec.boundaries == ("fp32", "bf16", "fp32")
    assert found.origins["seed"] == "flag"
    assert found.origins["optimizer.steps"] == "environment P2PTRAIN_OPTIMIZER_STEPS"
    assert found.origins["optimizer.momentum"] == "run.toml"
    assert found.origins["model.d_model"] == "preset small"


def test_strings_stay_strings_even_if_they_look_like_numbers() -> None:
    assert layered(flags={"name": "15"}).spec.name == "15"


def test_a_written_file_carries_the_choices_and_the_meaning() -> None:
    text = to_toml(RunSpec())
    assert "# A Llama-style decoder." in text
    assert 'mode = "exact"  # exact | delayed | local' in text
    assert tomllib.loads(text)["batch"] == {"sequences": 4, "microbatches": 16}


def test_more_ids_per_seat_mean_more_of_the_capacity() -> None:
    spec = RunSpec(batch=Batch(microbatches=32))
    figures = [expected_efficiency(spec, replicas) for replicas in (8, 4, 2, 1)]
    assert figures == [0.54, 0.69, 0.80, 0.85]
    assert expected_efficiency(spec, 32) == pytest.approx(0.54 / 4)
    assert expected_efficiency(RunSpec(batch=Batch(microbatches=1024)), 1) == 0.85
    assert 0.54 < expected_efficiency(spec, 6) < 0.69
    assert all(math.isfinite(expected_efficiency(spec, replicas)) for replicas in range(1, 99))


def test_more_stages_than_layers_can_be_had_by_adding_layers() -> None:
    assert with_stages(preset("tiny"), 6).model.n_layers == 6
    assert validate(with_stages(preset("tiny"), 2)).model.n_layers == 4
