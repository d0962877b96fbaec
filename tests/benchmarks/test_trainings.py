"""A run that is interrupted ends with the losses of one that is not."""

import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import trainings
from benchmarks.trainings import Progress, resume
from p2ptrain.data import load_corpus, pin
from p2ptrain.errors import UserError
from p2ptrain.run import Batch, Codec, Composition, Cut, Data, Evaluation, Model, Optimizer, RunSpec

HERE = Path(__file__).parent
SPEC = RunSpec(
    model=Model(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=16),
    cut=Cut(stages=2),
    batch=Batch(sequences=2, microbatches=1),
    optimizer=Optimizer(steps=5, warmup_steps=1),
    codec=Codec(name="narrow", compositions=(Composition(name="narrow", width=4, anchor_order=1),)),
    data=Data(source="text"),
    evaluation=Evaluation(every_steps=0, microbatches=2),
)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter of a second a look, so that a slice ends after so many steps."""
    now = iter(range(1000))
    monkeypatch.setattr(trainings, "perf_counter", lambda: float(next(now)))


def go_on(folder: Path, until: float = float("inf"), *, severed: bool = False) -> Progress | None:
    spec = pin(SPEC, HERE)
    told: list[Progress] = []
    return resume(
        spec,
        load_corpus(spec, HERE),
        folder,
        severed=severed,
        device="cpu",
        until=until,
        tell=told.append,
    )


@pytest.mark.parametrize("severed", [False, True])
@pytest.mark.usefixtures("ticks")
def test_slices_add_up_to_the_whole(tmp_path: Path, *, severed: bool) -> None:
    whole = go_on(tmp_path / "whole", severed=severed)
    assert whole is not None
    assert [step for step, _ in whole.loss] == [0, 1, 2, 3, 4]
    assert whole.val_loss is not None
    folder, slices, ended = tmp_path / "slices", 0, None
    while ended is None:
        slices += 1
        ended = go_on(folder, until=trainings.perf_counter() + 4.0, severed=severed)
    assert slices > 2
    assert (ended.loss, ended.val_loss) == (whole.loss, whole.val_loss)
    assert not folder.exists()


@pytest.mark.usefixtures("ticks")
def test_a_save_that_was_torn_leaves_the_save_before_it(tmp_path: Path) -> None:
    assert go_on(tmp_path, until=trainings.perf_counter() + 4.0) is None
    (tmp_path / "99-0.safetensors").write_bytes(b"torn")
    (tmp_path / "at.json.tmp").write_bytes(b"torn")
    ended = go_on(tmp_path)
    assert ended is not None
    assert [step for step, _ in ended.loss] == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("ticks")
def test_a_state_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go_on(tmp_path, until=trainings.perf_counter() + 4.0) is None
    monkeypatch.setattr(sys.modules[__name__], "SPEC", msgspec.structs.replace(SPEC, seed=1))
    with pytest.raises(UserError, match="other settings: give another --state"):
        go_on(tmp_path)
