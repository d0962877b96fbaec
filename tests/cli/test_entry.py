"""The command: what it prints, and how it refuses: one line, and the right exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

from p2ptrain import cli
from p2ptrain.errors import BootstrapError, P2PTrainError, RefusedError, UnreachableError
from p2ptrain.run import digest, from_toml


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("P2PTRAIN_DEBUG", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """The one line with which the command refuses."""
    assert cli.run(args) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_help_needs_neither_torch_nor_hivemind() -> None:
    code = (
        "import sys; from p2ptrain import cli; assert cli.run(['--help']) == 0;"
        " assert cli.run(['config', 'show']) == 0;"
        " print(sorted({'torch', 'hivemind', 'numpy', 'grpc'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "without a coordinator" in output
    assert output.endswith("[]\n")


def test_init_writes_a_pinned_run_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init", "--preset", "small", "--set", "seed=7"]) == 0
    spec = from_toml(Path("run.toml").read_text())
    assert spec.seed == 7
    assert spec.model.d_model == 512
    assert spec.data.root
    assert digest(spec) in capsys.readouterr().out


def test_init_takes_a_text_and_never_replaces_a_file_unasked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_bytes(bytes(5000))
    command = ("init", "--data", str(text), "-o", "book.toml")
    assert cli.run(command) == 0
    assert from_toml(Path("book.toml").read_text()).data.source == "text"
    capsys.readouterr()
    assert "book.toml is there already" in refused(capsys, *command)
    assert cli.run([*command, "--force"]) == 0


def test_init_takes_jsonl_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 5000 + '"}\n')
    assert cli.run(["init", "--data", str(tmp_path)]) == 0
    assert from_toml(Path("run.toml").read_text()).data.source == "jsonl"


def test_config_show_is_toml_and_tells_the_expected_efficiency(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["config", "show", "--set", "batch.microbatches=32", "--replicas", "2"]) == 0
    output = capsys.readouterr().out
    assert from_toml(output).batch.microbatches == 32
    assert "80% of capacity expected (a simulated figure" in output


def test_config_show_says_where_each_value_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("run.toml").write_text("[optimizer]\nsteps = 5\nmomentum = 0.5\n")
    monkeypatch.setenv("P2PTRAIN_OPTIMIZER_STEPS", "6")
    assert cli.run(["config", "show", "--origin", "--run", "run.toml", "--set", "seed=1"]) == 0
    origins = {
        line.split()[0]: " ".join(line.split()[3:])
        for line in capsys.readouterr().out.splitlines()
        if " = " in line
    }
    assert origins["optimizer.steps"] == "environment P2PTRAIN_OPTIMIZER_STEPS"
    assert origins["optimizer.momentum"] == "run.toml"
    assert origins["seed"] == "flag"
    assert origins["optimizer.eps"] == "default"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["confg"], "no command 'confg'; did you mean 'config'?"),
        (["config", "show", "--origi"], "--origin"),
        (["config", "show", "--run", "none.toml"], "cannot be read; p2ptrain init writes one"),
        (["config", "show", "--run", "a", "--preset", "tiny"], "--run or --preset, not both"),
        (["config", "show", "--preset", "tinny"], "did you mean 'tiny'?"),
        (["config", "show", "--set", "seed"], "write it like model.d_model=256"),
        (["config", "show", "--set", "model.d_modl=1"], "did you mean model.d_model?"),
        (["config", "show", "--set", "model.d_model=130"], "must be a multiple of n_heads"),
        (["config", "show", "--set", "model.d_model=wide"], "model.d_model: expected int, got str"),
        (["config", "show", "--replicas", "0"], "--replicas"),
        (["init", "--data", "nowhere.txt"], "nowhere.txt: no such file or folder"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], reason: str
) -> None:
    assert reason in refused(capsys, *args)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BootstrapError("nobody"), 3),
        (RefusedError("another run"), 4),
        (UnreachableError("closed"), 5),
        (P2PTrainError("else"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("oops"), 1),
    ],
)
def test_errors_become_their_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "resolve", fail)
    assert cli.run(["config", "show"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_debugging_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PTRAIN_DEBUG", "1")
    monkeypatch.setattr(cli, "resolve", None)
    with pytest.raises(TypeError):
        cli.run(["config", "show"])


def test_dashes_and_underscores_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["config", "show", "--help"]) == 0
    capsys.readouterr()
    assert "--initial_peers" not in refused(capsys, "init", "--no_such-flag")
