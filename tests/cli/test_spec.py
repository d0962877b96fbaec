"""init and config show: a RunSpec from layers, written and shown."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from p2ptrain import cli
from p2ptrain.run import digest, from_toml

Refused = Callable[..., str]


def test_init_writes_a_pinned_run_that_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init", "--preset", "small", "--set", "seed=7"]) == 0
    spec = from_toml(Path("run.toml").read_text())
    assert spec.seed == 7
    assert spec.model.d_model == 512
    assert spec.data.root
    assert digest(spec) in capsys.readouterr().out


def test_init_takes_a_text_and_never_replaces_a_file_unasked(
    capsys: pytest.CaptureFixture[str], refused: Refused, tmp_path: Path
) -> None:
    text = tmp_path / "book.txt"
    text.write_bytes(bytes(5000))
    command = ("init", "--data", str(text), "-o", "book.toml")
    assert cli.run(command) == 0
    assert from_toml(Path("book.toml").read_text()).data.source == "text"
    capsys.readouterr()
    assert "book.toml is there already" in refused(*command)
    assert cli.run([*command, "--force"]) == 0


def test_a_disk_that_refuses_costs_nothing_that_was_there(refused: Refused) -> None:
    assert cli.run(["init"]) == 0
    before = Path("run.toml").read_text()
    Path("run.toml.new").mkdir()  # as good as a full disk
    assert "run.toml: cannot be written" in refused("init", "--set", "seed=1", "--force")
    assert Path("run.toml").read_text() == before


def test_a_device_is_never_replaced_by_a_file(refused: Refused, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "no ordinary file" in refused("init", "-o", str(pipe), "--force")
    assert pipe.is_fifo()


def test_an_interrupted_init_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    assert cli.run(["init"]) == 130
    assert list(Path.cwd().glob("run.toml*")) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "no text in it"),
        ("short.txt", b"too short", "the corpus has 9 bytes: 257 are the least"),
        ("none.jsonl", b"\n\n", "no text in it"),
        ("other.jsonl", b'{"body": "x"}\n', 'no string "text"; set data.jsonl_field'),
        ("number.jsonl", b'{"text": 3}\n', 'no string "text"'),
        ("bad.jsonl", b'{"text": "a"}\nno json\n', "bad.jsonl:2: no JSON object"),
        ("deep.jsonl", b'{"text":' + b"[" * 9999, "deep.jsonl:1: no JSON object"),
    ],
)
def test_data_that_cannot_train_are_refused_before_a_run_is_written(
    refused: Refused, name: str, content: bytes, reason: str
) -> None:
    Path(name).write_bytes(content)
    assert reason in refused("init", "--data", name)
    assert not Path("run.toml").exists()


def test_a_folder_without_data_is_refused(refused: Refused) -> None:
    Path("empty").mkdir()
    assert "no file * in this folder" in refused("init", "--data", "empty")


def test_init_can_write_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init", "-o", "-"]) == 0
    assert from_toml(capsys.readouterr().out).data.root


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
    assert "changes when the data are pinned" in output


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
        (["config", "show", "--run", "none.toml"], "cannot be read; p2ptrain init writes one"),
        (["config", "show", "--run", "a", "--preset", "tiny"], "--run or --preset, not both"),
        (["config", "show", "--preset", "tinny"], "did you mean 'tiny'?"),
        (["config", "show", "--set", "seed"], "write it like model.d_model=256"),
        (["config", "show", "--set", "model.d_modl=1"], "did you mean model.d_model?"),
        (["config", "show", "--set", "model.d_model=130"], "must be a multiple of n_heads"),
        (["config", "show", "--set", "model.d_model=wide"], "model.d_model: expected int, got str"),
        (["config", "show", "--replicas", "0"], "--replicas"),
        (["init", "--data", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["init", "-o", "no/such/folder.toml"], "cannot be written"),
        (["init", "-o", "."], "give another -o"),
        (["init", "-o", "/dev/null", "--force"], "no ordinary file; give another -o, or -"),
        (["init", "-o", ""], "the path is empty"),
        (["init", "--data", ""], "the path is empty"),
        (["config", "show", "--run", ""], "the path is empty"),
        (["config", "show", "--run", "."], "cannot be read (Is a directory)"),
        (["config", "show", "--run", "/proc/self/exe"], "cannot be read (it is no text)"),
        (["config", "show", "--set", "seed=99999999999999999999"], "seed = 9999"),
        (["config", "show", "--set", f"seed={'[' * 9999}"], "seed: expected int, got str"),
    ],
)
def test_bad_input_is_answered_in_one_line(refused: Refused, args: list[str], reason: str) -> None:
    assert reason in refused(*args)
