"""A newcomer with only an address finds the run, or learns what to give."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from p2ptrain.engine.discovery import agreed_run, expect_run, fetch_spec, find_runs
from p2ptrain.errors import RefusedError
from p2ptrain.run import RunSpec, digest, encode
from p2ptrain.sim.directory import SimTable
from p2ptrain.sim.loop import run
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import PeerId, RunId
from p2ptrain.wire.records import RUNS_KEY, RunEntry, RunsRecord, encode_record, spec_key

if TYPE_CHECKING:
    from p2ptrain.sim.directory import SimDirectory

ONE, TWO = RunSpec(name="one"), RunSpec(name="two", seed=2)


def directory(table: SimTable, name: str = "new") -> SimDirectory:
    return table.directory(SimSigner(PeerId(name), seed=1))


async def publish(table: SimTable, owner: str, spec: RunSpec, *, blob: bytes | None = None) -> None:
    here = directory(table, owner)
    entry = RunEntry(run=digest(spec), name=spec.name)
    await here.store(RUNS_KEY, encode_record(RunsRecord(runs=(entry,))), lifetime=60.0)
    await here.store(spec_key(digest(spec)), blob or encode(spec), lifetime=60.0)


def test_the_only_run_is_found_and_a_forged_spec_is_passed_over() -> None:
    async def main() -> None:
        table = SimTable()
        await publish(table, "a", ONE, blob=encode(TWO))
        await publish(table, "b", ONE, blob=b"\xc1")
        await publish(table, "c", ONE)
        await directory(table, "d").store(RUNS_KEY, b"nonsense", lifetime=60.0)
        assert await fetch_spec(directory(table)) == (digest(ONE), ONE)

    run(main())


def test_a_run_that_is_just_beginning_is_waited_for() -> None:
    async def main() -> None:
        table = SimTable()
        async with asyncio.TaskGroup() as tasks:
            found = tasks.create_task(fetch_spec(directory(table), digest(ONE)))
            await asyncio.sleep(5.0)
            await publish(table, "a", ONE)
            assert await found == (digest(ONE), ONE)

    run(main())


def test_with_several_runs_the_user_says_which() -> None:
    async def main() -> None:
        table = SimTable()
        await publish(table, "a", ONE)
        await publish(table, "b", TWO)
        with pytest.raises(RefusedError, match=r"2 runs .*--run.*\(one\)"):
            await fetch_spec(directory(table), patience_seconds=1000.0)
        assert await fetch_spec(directory(table), digest(TWO)) == (digest(TWO), TWO)
        assert sorted((await find_runs(directory(table))).values()) == ["one", "two"]

    run(main(), ceiling_seconds=100.0)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (None, "begin one with p2ptrain peer --new-swarm --run FILE"),
        (RunId("feed"), "nobody here publishes run feed; check the id"),
    ],
)
def test_nothing_there_is_said_in_one_line(wanted: RunId | None, line: str) -> None:
    async def main() -> None:
        with pytest.raises(RefusedError, match=line):
            await fetch_spec(directory(SimTable()), wanted)  # whatever command asked

    run(main(), ceiling_seconds=100.0)


def test_a_directory_that_does_not_answer_is_named() -> None:
    async def main() -> None:
        table = SimTable()
        table.down = True
        with pytest.raises(RefusedError, match="did not answer"):
            await fetch_spec(directory(table))

    run(main(), ceiling_seconds=100.0)


def test_a_run_is_begun_beside_another_only_if_the_user_says_so() -> None:
    async def main() -> None:
        table = SimTable()
        await expect_run(directory(table), digest(ONE))  # an empty address book
        await publish(table, "a", ONE)
        await expect_run(directory(table), digest(ONE))
        with pytest.raises(RefusedError, match=rf"{digest(ONE)} \(one\); leave out --run to join"):
            await expect_run(directory(table), digest(TWO))

    run(main())


def test_a_run_that_is_given_is_taken_unless_others_train_something_else() -> None:
    async def main() -> None:
        table = SimTable()
        await publish(table, "a", ONE)
        here = directory(table)
        assert await agreed_run(here, None, None, new_swarm=False) == (digest(ONE), ONE)
        assert await agreed_run(here, None, ONE, new_swarm=False) == (digest(ONE), ONE)
        assert await agreed_run(here, None, TWO, new_swarm=True) == (digest(TWO), TWO)
        with pytest.raises(RefusedError, match="--new-swarm"):
            await agreed_run(here, None, TWO, new_swarm=False)

    run(main())
