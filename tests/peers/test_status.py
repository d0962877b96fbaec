"""Status: what a directory knows, read strictly and shown by stage."""

import io
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from rich.console import Console

from p2ptrain.errors import RefusedError
from p2ptrain.run import RunSpec, digest, encode
from p2ptrain.sim import loop
from p2ptrain.sim.directory import SimTable
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import Chain, PeerId, RunId, Stage, Step
from p2ptrain.wire.records import (
    RUNS_KEY,
    CommitRecord,
    RunEntry,
    RunsRecord,
    SeatRecord,
    commit_key,
    encode_record,
    spec_key,
    stage_key,
)
from peers.status import RunStatus, read_status, table

T = TypeVar("T")
SPEC = RunSpec(name="tea")
RUN = digest(SPEC)


def seat(state: str, version: int) -> bytes:
    return encode_record(
        SeatRecord(state=state, version=Step(version), rate=1.5, queue=2, incarnation=1)  # type: ignore[arg-type]
    )


def commit(step: int) -> bytes:
    return encode_record(
        CommitRecord(epoch=0, step=Step(step), chain=Chain(bytes(32)), loss=2.0 + step)
    )


async def statuses(run: RunId | None, *, listed: bool = True) -> list[RunStatus]:
    world = SimTable(seed=1)
    one, other = (world.directory(SimSigner(PeerId(name), seed=1)) for name in ("peer-a", "peer-b"))
    if listed:
        runs = RunsRecord(runs=(RunEntry(run=RUN, name="tea"),))
        await one.store(RUNS_KEY, encode_record(runs), lifetime=60)
        await one.store(spec_key(RUN), encode(SPEC), lifetime=60)
        await one.store(stage_key(RUN, Stage(0)), seat("serving", 4), lifetime=60)
        await other.store(stage_key(RUN, Stage(0)), seat("gone", 4), lifetime=60)
        await other.store(stage_key(RUN, Stage(1)), b"garbage", lifetime=60)
        await other.store(stage_key(RUN, Stage(2)), seat("joining", 0), lifetime=60)
        await one.store(commit_key(RUN, Stage(0)), commit(3), lifetime=60)
        await other.store(commit_key(RUN, Stage(2)), commit(2), lifetime=60)
    return await read_status(one, run)


def run(main: Coroutine[Any, Any, T]) -> T:
    return loop.run(main)


def test_every_run_is_told_with_its_seats_and_newest_commit() -> None:
    [found] = run(statuses(None))
    assert (found.run, found.name, found.step, found.loss) == (RUN, "tea", 3, 5.0)
    assert [[each.peer for each in seats] for seats in found.stages] == [
        ["peer-a"], [], ["peer-b"], [],
    ]  # fmt: skip
    assert found.stages[0][0].state == "serving"
    assert run(statuses(RUN)) == [found]


async def resumed() -> list[RunStatus]:
    """All have just come back with their checkpoints: no commit of before is listed any more."""
    one = SimTable(seed=1).directory(SimSigner(PeerId("peer-a"), seed=1))
    runs = RunsRecord(runs=(RunEntry(run=RUN, name="tea"),))
    await one.store(RUNS_KEY, encode_record(runs), lifetime=60)
    await one.store(spec_key(RUN), encode(SPEC), lifetime=60)
    await one.store(stage_key(RUN, Stage(0)), seat("serving", 4), lifetime=60)
    await one.store(stage_key(RUN, Stage(1)), seat("joining", 0), lifetime=60)
    return await read_status(one, None)


def test_a_run_that_was_resumed_has_begun_and_stands_where_its_seats_do() -> None:
    [found] = run(resumed())
    assert (found.step, found.loss) == (3, None)


def test_a_run_that_is_not_there_is_refused() -> None:
    with pytest.raises(RefusedError, match="nobody trains at this address"):
        run(statuses(None, listed=False))
    with pytest.raises(RefusedError, match=r"nobody here publishes run 0{32}; check the id$"):
        run(statuses(RunId("0" * 32)))


def test_the_table_shows_stages_that_nobody_serves() -> None:
    [found] = run(statuses(None))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(found))
    text = console.export_text()
    assert "step 3/300" in text
    assert text.count("nobody") == 2
    assert "1.50" in text
