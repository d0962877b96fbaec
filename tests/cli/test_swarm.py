"""simulate: short flags become the RunSpec's values; what is not built is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2ptrain import cli
from p2ptrain.cli.swarm import SimulateFlags, simulated_spec, threads_in_turn
from p2ptrain.errors import RunSpecError, UserError
from p2ptrain.run import Codec, RunSpec, to_toml
from p2ptrain.run.codecs import composition_of
from peers import summary
from peers.simulation import SimulationOptions

Refused = Callable[..., str]


def flags(**values: Any) -> SimulateFlags:
    defaults: dict[str, Any] = dict.fromkeys(SimulateFlags.__slots__)
    return SimulateFlags(**(defaults | {"peers": 8, "sets": (), "chaos": ""} | values))


def test_short_flags_are_names_for_values_of_the_spec() -> None:
    spec = simulated_spec(flags(stages=2, steps=9, seed=4, codec="fp32", sets=("seed=5",)))
    assert (spec.cut.stages, spec.optimizer.steps, spec.codec.name) == (2, 9, "fp32")
    assert spec.seed == 5
    assert spec.sync.start_replicas == 4


def test_a_small_simulated_run_keeps_the_state_of_every_step() -> None:
    assert simulated_spec(flags()).checkpoint.every_steps == 1
    usual = RunSpec().checkpoint.every_steps
    assert simulated_spec(flags(link="200mbit")).checkpoint.every_steps == usual  # it costs there
    assert simulated_spec(flags(codec="b128x")).checkpoint.every_steps == usual
    assert simulated_spec(flags(sets=("checkpoint.every_steps=3",))).checkpoint.every_steps == 3


def test_more_stages_than_the_preset_has_layers_add_layers() -> None:
    assert simulated_spec(flags(stages=6)).model.n_layers == 6


def test_that_layers_are_added_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    args = "simulate --virtual --peers 6 --steps 1 --set batch.microbatches=4 --json --stages"
    said = []
    for stages, more in (("6", ()), ("2", ()), ("6", ("--set", "model.n_layers=6"))):
        assert cli.run([*args.split(), stages, *more]) == 0
        said.append(capsys.readouterr().err)
    line = "--stages 6: the preset tiny has 4 layers; this run has 6, one for each stage"
    assert [line in each for each in said] == [True, False, False]


def test_that_few_peers_take_long_to_serve_many_stages_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summary, "conduct", lambda _options, *, as_json: int(as_json))
    said = []
    for many in ("--peers 8 --stages 33", "--peers 8 --stages 32", "--peers 1"):
        assert cli.run(["simulate", *many.split()]) == 0
        said.append(capsys.readouterr().err)
    line = "8 peers take 33 stages one after another, 5 each; the first step may be minutes away"
    assert [line in each for each in said] == [True, False, False]


def test_a_sized_codec_takes_a_model_and_microbatches_that_are_wide_enough() -> None:
    spec = simulated_spec(flags(codec="b128x"))
    assert spec.model.d_model >= 512
    assert spec.batch.sequences * spec.model.context >= 2048
    (composition,) = spec.codec.compositions
    assert (composition.name, composition.width >= 8) == ("b128x", True)
    assert simulated_spec(flags(codec="int4")).model.d_model == RunSpec().model.d_model


def test_a_codec_named_by_the_flag_stands_at_every_boundary_of_a_file_that_names_others() -> None:
    codec = Codec(boundaries=("bf16", "int8", "int4"))
    Path("run.toml").write_text(to_toml(RunSpec(codec=codec)))
    spec = simulated_spec(flags(run_file=Path("run.toml"), codec="int4"))
    assert {composition_of(spec, boundary).name for boundary in range(3)} == {"int4"}
    assert simulated_spec(flags(run_file=Path("run.toml"))).codec == codec
    sets = ('codec.boundaries=["bf16","int8","int8"]',)
    given = simulated_spec(flags(run_file=Path("run.toml"), codec="int4", sets=sets))
    assert composition_of(given, 2).name == "int8"


def test_a_sized_codec_is_refused_for_a_named_model_that_is_too_narrow() -> None:
    with pytest.raises(RunSpecError, match=r"d_model = 128 .* 512 tokens: d_model >= 448"):
        simulated_spec(flags(codec="b128x", preset="tiny"))


def test_a_file_is_taken_as_it_is() -> None:
    Path("run.toml").write_text(to_toml(RunSpec(seed=2)))
    spec = simulated_spec(flags(run_file=Path("run.toml")))
    assert spec == RunSpec(seed=2)
    assert simulated_spec(flags(run_file=Path("run.toml"), steps=3)).optimizer.steps == 3


def test_the_flags_reach_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SimulationOptions] = []

    def conduct(options: SimulationOptions, *, as_json: bool) -> int:
        assert as_json
        seen.append(options)
        return 3

    monkeypatch.setattr(summary, "conduct", conduct)
    args = "simulate --peers 3 --stages 3 --link 1gbit,5ms --verify --report out --json"
    assert cli.run([*args.split(), "--max-memory", "1GB"]) == 3
    [options] = seen
    assert (options.swarm.peers, options.swarm.link, options.verify) == (3, "1gbit,5ms", True)
    assert options.swarm.memory_bytes == 10**9
    assert options.report == Path("out")
    assert options.swarm.spec.data.root


def test_a_virtual_swarm_runs_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    args = "simulate --virtual --peers 4 --stages 2 --steps 2 --set batch.microbatches=8"
    assert cli.run(args.split()) == 0
    assert "I1 holds" in capsys.readouterr().out
    assert cli.run([*args.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is True


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ("--peers 0", "--peers"),
        ("--steps abc", "'abc' is not a valid integer. "),
        ("--peers 300", "at most 256 real ones; try --virtual"),
        ("--chaos kill=30%", "write kill=30%/min"),
        ("--chaos kill=300%/min", "kill=300%/min: at most 100%/min, each peer once a minute"),
        ("--virtual --chaos kill=101%/min:min=2", "at most 100%/min"),
        ("--virtual --verify", "--verify is for real peers"),
        ("--virtual --chaos fire", "no fault 'fire'"),
        ("--link fast", "--link"),
        ("--codec zip9", "codec.name"),
        ("--run none.toml", "p2ptrain init writes one"),
        (f"--run {'0' * 32}", "the id of a run; give a file that p2ptrain init wrote"),
        ("--preset nano", "no preset 'nano'"),
        ("--stages 2000", "cut.stages"),
        ("--data nowhere", "no such file or folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(refused: Refused, args: str, reason: str) -> None:
    assert reason in refused("simulate", *args.split())


def test_peers_may_compute_with_different_threads() -> None:
    assert threads_in_turn("1,2") == (1, 2)
    assert threads_in_turn(None) == ()
    for wrong in ("", "0", "1,", "two", "1025"):
        with pytest.raises(UserError, match="give numbers from 1 to 1024"):
            threads_in_turn(wrong)
