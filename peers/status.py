"""``p2ptrain status``: which runs an address leads to, and who serves what there.

It joins the directory for a moment as anybody may, reads, and leaves; it stores nothing
and opens no link to a peer. What it shows is what the peers announced last, up to a
minute old.

Refused: a registry to ask; there is none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import uvloop
from rich.table import Table

from p2ptrain.engine.discovery import fetch_spec, find_runs
from p2ptrain.errors import RefusedError, WireError
from p2ptrain.net.identity import Identity
from p2ptrain.net.node import Network, NetworkOptions
from p2ptrain.units import PeerId, RunId, Stage, Step
from p2ptrain.wire.records import CommitRecord, SeatRecord, commit_key, decode_record, stage_key

if TYPE_CHECKING:
    from p2ptrain.ports import Directory
    from p2ptrain.run import RunSpec

PATIENCE_SECONDS = 3.0
"""For a listed run's RunSpec: a listed run has been published for a while."""


SHOWN_LETTERS = 12
"""Of a peer id, from its end (all begin alike): a table must fit 80 columns."""


class SeatStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A seat as its owner announced it."""

    peer: PeerId
    state: str
    version: Step
    rate: float
    queue: int


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A run. ``step``: the newest commit that anybody announced, with its losses.

    Where none is listed, as after a resume, the last that the seats have taken.
    """

    run: RunId
    name: str
    steps: int
    step: Step | None
    loss: float | None
    val_loss: float | None
    stages: list[list[SeatStatus]]


def run(network: NetworkOptions, run_id: RunId | None) -> list[RunStatus]:
    """Ask the directory at ``network.initial_peers``; all runs, or the one named.

    Raises:
        BootstrapError: nobody answers there.
        RefusedError: there is no such run, or none at all.
        DirectoryError: it did not answer in time.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_ask(network, run_id))


async def _ask(options: NetworkOptions, run_id: RunId | None) -> list[RunStatus]:
    with Identity.temporary() as identity:
        async with Network.open(identity, options) as network:
            return await read_status(network.directory, run_id)


async def read_status(directory: Directory, run_id: RunId | None) -> list[RunStatus]:
    """What the directory knows, by run.

    Raises:
        RefusedError: there is no such run, or none at all.
        DirectoryError: it did not answer in time.
    """
    names = await find_runs(directory)
    if run_id is not None:
        names = {run_id: names.get(run_id, "")}
    if not names:
        raise RefusedError("nobody trains at this address yet")
    found = []
    for each, name in names.items():
        _, spec = await fetch_spec(directory, each, patience_seconds=PATIENCE_SECONDS)
        found.append(await _run_status(directory, each, name or spec.name, spec))
    return found


async def _run_status(directory: Directory, run_id: RunId, name: str, spec: RunSpec) -> RunStatus:
    stages = [Stage(stage) for stage in range(spec.cut.stages)]
    commits = [await _newest(directory, commit_key(run_id, stage)) for stage in stages]
    newest = max((each for each in commits if each), key=lambda each: each.step, default=None)
    seats = [await _seats(directory, stage_key(run_id, stage)) for stage in stages]
    version = max((seat.version for each in seats for seat in each), default=0)
    taken = Step(version - 1) if version else None
    return RunStatus(
        run=run_id,
        name=name,
        steps=spec.optimizer.steps,
        step=newest.step if newest else taken,
        loss=newest.loss if newest else None,
        val_loss=newest.val_loss if newest else None,
        stages=seats,
    )


async def _newest(directory: Directory, key: str) -> CommitRecord | None:
    commits = []
    for record in await directory.read(key):
        try:
            commits.append(decode_record(record.value, CommitRecord))
        except WireError:
            continue  # not in order: as if it were not there
    return max(commits, key=lambda each: each.step, default=None)


async def _seats(directory: Directory, key: str) -> list[SeatStatus]:
    seats = []
    for record in await directory.read(key):
        try:
            seat = decode_record(record.value, SeatRecord)
        except WireError:
            continue  # as above
        if seat.state != "gone":
            seats.append(
                SeatStatus(
                    peer=record.owner,
                    state=seat.state,
                    version=seat.version,
                    rate=seat.rate,
                    queue=seat.queue,
                )
            )
    return seats


def table(status: RunStatus) -> Table:
    """A run for a terminal: a row per seat, and a red one for a stage that nobody serves."""
    done = "not begun" if status.step is None else f"step {status.step}/{status.steps}"
    losses = [
        f"{name} {loss:.3f}"
        for name, loss in (("loss", status.loss), ("val", status.val_loss))
        if loss is not None
    ]
    title = "  ".join([f"run {status.run} ({status.name})", done, *losses])
    shown = Table(title=title, title_justify="left")
    for column in ("stage", "peer", "state", "version", "microbatches/s", "queue"):
        shown.add_column(column)
    for stage, seats in enumerate(status.stages):
        for seat in seats:
            numbers = (str(seat.version), f"{seat.rate:.2f}", str(seat.queue))
            shown.add_row(str(stage), f"...{seat.peer[-SHOWN_LETTERS:]}", seat.state, *numbers)
        if not seats:
            shown.add_row(str(stage), "nobody", "", "", "", "", style="red")
    return shown
