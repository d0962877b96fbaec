"""How a newcomer with only an address finds the run: the directory lists runs and RunSpecs.

The RunSpec needs no trust: its digest is the run id. Which run is meant does, so with more
than one the user says which.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.errors import DirectoryError, RefusedError, RunSpecError, WireError
from p2ptrain.run import decode, digest
from p2ptrain.wire.records import RUNS_KEY, RunsRecord, decode_record, spec_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.ports import Directory
    from p2ptrain.run import RunSpec
    from p2ptrain.units import RunId, Seconds

PATIENCE_SECONDS = 15.0  # a run that has just begun is listed within a few
LOOK_SECONDS = 1.0
NAMED_RUNS = 8  # in the refusal; more would not be read


async def find_runs(directory: Directory) -> dict[RunId, str]:
    """The runs that somebody lists, with their names, by run id.

    Raises:
        DirectoryError: it did not answer.
    """
    found: dict[RunId, str] = {}
    for record in await directory.read(RUNS_KEY):
        try:
            listed = decode_record(record.value, RunsRecord)
        except WireError:
            continue
        for entry in listed.runs:
            found.setdefault(entry.run, entry.name)
    return dict(sorted(found.items()))


async def agreed_run(
    directory: Directory, run: RunId | None, spec: RunSpec | None, *, new_swarm: bool
) -> tuple[RunId, RunSpec]:
    """The run of ``spec``, or the one that the directory tells; ``new_swarm``: whatever it tells.

    Raises:
        RefusedError: see :func:`expect_run` and :func:`fetch_spec`.
    """
    if spec is None:
        return await fetch_spec(directory, run)
    if not new_swarm:
        await expect_run(directory, digest(spec))
    return digest(spec), spec


async def expect_run(directory: Directory, run: RunId) -> None:
    """Refuse to begin ``run`` by mistake, where others train something else already.

    A directory that does not answer refuses nothing: this is advice, not safety.

    Raises:
        RefusedError: there are runs, and ``run`` is not among them.
    """
    try:
        runs = await find_runs(directory)
    except DirectoryError:
        return
    if runs and run not in runs:
        raise RefusedError(
            f"run {run} is not among those at this address: {_named(runs)}; leave out --run to "
            "join, or add --new-swarm to begin another"
        )


async def fetch_spec(
    directory: Directory, run: RunId | None = None, *, patience_seconds: Seconds = PATIENCE_SECONDS
) -> tuple[RunId, RunSpec]:
    """The RunSpec of ``run``, or of the only run there is.

    Raises:
        RefusedError: there is no such run, or several and none was named; the message says
            what to give.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience_seconds
    while True:
        try:
            return await _fetch(directory, run)
        except (RefusedError, DirectoryError) as error:
            ambiguous = isinstance(error, _SeveralError)
            if ambiguous or loop.time() >= until:
                raise RefusedError(str(error)) from error
        await asyncio.sleep(LOOK_SECONDS)


class _SeveralError(RefusedError):
    """More than one run: waiting does not help."""


async def _fetch(directory: Directory, run: RunId | None) -> tuple[RunId, RunSpec]:
    if run is None:
        runs = await find_runs(directory)
        if not runs:
            raise RefusedError(
                "nobody trains at this address; begin one with p2ptrain peer --new-swarm --run FILE"
            )
        if len(runs) > 1:
            raise _SeveralError(
                f"{len(runs)} runs at this address; give --run one of: {_named(runs)}"
            )
        run = next(iter(runs))
    for record in await directory.read(spec_key(run)):
        try:
            spec = decode(record.value)
        except RunSpecError:
            continue
        if digest(spec) == run:
            return run, spec
    raise RefusedError(f"nobody here publishes run {run}; check the id")


def _named(runs: Mapping[RunId, str]) -> str:
    return ", ".join(f"{run} ({name})" for run, name in list(runs.items())[:NAMED_RUNS])
