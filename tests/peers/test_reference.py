import json
import subprocess
import sys
from pathlib import Path

import pytest

from p2ptrain.run import (
    Batch,
    Cut,
    Data,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
    digest,
    to_toml,
)
from peers import reference

SPEC = RunSpec(
    model=Model(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=8),
    cut=Cut(stages=2),
    batch=Batch(sequences=2, microbatches=2),
    optimizer=Optimizer(steps=3, warmup_steps=1),
    evaluation=Evaluation(every_steps=2, microbatches=1),
    data=Data(source="text"),
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    run, text = tmp_path / "run.toml", tmp_path / "text.txt"
    run.write_text(to_toml(SPEC))
    text.write_text("to be or not to be, that is the question\n" * 50)
    return ["--run", str(run), "--data", str(text)]


def test_it_prints_one_json_object_last(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main([*files, "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert found["run_id"] == digest(SPEC)
    assert len(found["weights_digest"]) == 64
    assert [step for step, _ in found["loss"]] == [0, 1, 2]
    assert [step for step, _ in found["val_losses"]] == [0, 2, 3]
    assert found["val_loss"] == found["val_losses"][-1][1]
    assert found["tokens"] == 3 * 2 * 2 * 8
    assert found["tokens_per_second"] > 0
    assert "val_loss" in printed.err


def test_fewer_steps_and_words(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([*files, "--device", "cpu", "--steps", "1", "--threads", "1"]) == 0
    assert "weights_digest" in capsys.readouterr().out


def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.main(["--run", str(tmp_path / "none.toml")]) == 2
    assert reference.main(["--stepps", "1"]) == 2
    assert reference.main([]) == 2
    errors = capsys.readouterr().err
    assert "none.toml" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_judge_shares_nothing_with_the_swarm_but_arithmetic() -> None:
    code = (
        "import sys, peers.reference;"
        "print([m for m in sys.modules if m.startswith(('hivemind', 'p2ptrain.engine',"
        " 'p2ptrain.net', 'p2ptrain.sim', 'p2ptrain.wire'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
