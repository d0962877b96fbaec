"""One run in one process that may be interrupted: it goes on where its last save ended.

    state/KEY/STEP-STAGE.safetensors ..., then state/KEY/at.json, which names STEP

``at.json`` is renamed into place after the blobs are written, so an interrupted save leaves the
save before it. A run that has ended leaves its losses alone.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.compute.reference import Training
from p2ptrain.core.schedule import last_step
from p2ptrain.errors import UserError
from p2ptrain.run import digest
from p2ptrain.units import RunId

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from p2ptrain.ports import Corpus
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Seconds

SAVE_SECONDS = 60.0
"""What an interruption costs at most; a save of small stages takes a tenth of a second."""

SAVE_SHARE = 0.02
"""Of the time, for saving: large stages are saved more seldom."""


class Progress(msgspec.Struct, kw_only=True):
    """Where a run stands. Losses in nats per token; ``seconds``: computed, over all slices.

    ``run``: its id, so that a state of other settings is not taken for it.
    """

    run: RunId = RunId("")
    step: int = 0
    seconds: float = 0.0
    loss: list[tuple[int, float]] = []
    val_loss: float | None = None
    saturation: list[float] = []
    error: list[float] = []


def resume(  # noqa: PLR0913 -- what is trained, where it is kept, and when to stop
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    severed: bool,
    device: str,
    until: Seconds,
    tell: Callable[[Progress], None],
) -> Progress | None:
    """Train until the end, or until the performance counter says ``until``: then None.

    ``tell`` is called at every save.

    Raises:
        UserError: ``folder`` holds the state of a run with other settings.
    """
    training = Training(spec, corpus, device=device, severed=severed)
    folder.mkdir(parents=True, exist_ok=True)
    at = _load(training, folder, digest(spec))
    saved_at, every = perf_counter(), SAVE_SECONDS
    while at.step <= last_step(spec):
        began = perf_counter()
        if began >= until:
            _save(training, folder, at)
            return None
        if began - saved_at >= every:
            _save(training, folder, at)
            tell(at)
            saved_at = perf_counter()
            every = max(SAVE_SECONDS, (saved_at - began) / SAVE_SHARE)
            began = saved_at
        report = training.step()
        at.step += 1
        at.seconds += perf_counter() - began
        if report.loss is not None:
            at.loss.append((report.step, report.loss))
        at.val_loss = report.val_loss if report.val_loss is not None else at.val_loss
        readings = training.readings()
        if readings:
            at.saturation = [reading.saturation for reading in readings]
            at.error = [reading.error for reading in readings]
    _forget(folder)
    return at


def _save(training: Training, folder: Path, at: Progress) -> None:
    for stage, blob in enumerate(training.save()):
        _blob(folder, at.step, stage).write_bytes(blob)
    written = folder / "at.json.tmp"
    written.write_bytes(msgspec.json.encode(at))
    written.replace(folder / "at.json")
    for path in folder.glob("*.safetensors"):
        if not path.name.startswith(f"{at.step}-"):
            path.unlink()


def _load(training: Training, folder: Path, run: RunId) -> Progress:
    path = folder / "at.json"
    if not path.exists():
        return Progress(run=run)
    at = msgspec.json.decode(path.read_bytes(), type=Progress)
    if at.run != run:
        raise UserError(f"{folder} holds a run with other settings: give another --state")
    stages = len(list(folder.glob(f"{at.step}-*.safetensors")))
    training.load([_blob(folder, at.step, stage).read_bytes() for stage in range(stages)])
    return at


def _blob(folder: Path, step: int, stage: int) -> Path:
    return folder / f"{step}-{stage}.safetensors"


def _forget(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
