"""The peer program: its first lines, its data, its leaving. Real peers: test_simulation."""

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from p2ptrain.data import pin
from p2ptrain.data.store import sole_owner
from p2ptrain.errors import DataError, InternalError, RefusedError, UserError
from p2ptrain.net.node import NetworkOptions
from p2ptrain.run import Data, RunSpec, digest
from peers.peer import (
    Leaving,
    PeerOptions,
    events_file,
    find_corpus,
    first_cause,
    serve,
    welcome,
)

if TYPE_CHECKING:
    from p2ptrain.engine.lifecycle import Node

LIBRARY = RunSpec()


def options(**values: object) -> PeerOptions:
    return PeerOptions(network=NetworkOptions(), **values)  # type: ignore[arg-type]


def test_the_first_lines_say_who_we_are_and_what_others_type() -> None:
    addresses = (
        "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWme",
        "/ip4/192.0.2.7/tcp/4001/p2p/12D3KooWme",
    )
    lines = list(welcome(addresses, digest(LIBRARY), LIBRARY))
    assert lines[0] == "peer 12D3KooWme"
    assert lines[1] == (
        "others join with: p2ptrain peer --initial-peers /ip4/192.0.2.7/tcp/4001/p2p/12D3KooWme"
    )
    assert digest(LIBRARY) in lines[2]
    assert len(lines) == 3
    kept = [*welcome(addresses, digest(LIBRARY), LIBRARY, Path("/disk"))]
    assert kept[3] == "checkpoints in /disk: every 25 steps"


def test_a_peer_without_the_runs_data_gets_it_from_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign = RunSpec(data=Data(root="0" * 64, total_bytes=5, file_count=1))
    assert find_corpus(foreign, options()) is None
    assert "this run trains on 1; the run was begun by another version of Python" in caplog.text
    assert find_corpus(pin(LIBRARY), options()) is not None


def test_data_that_the_user_names_must_be_the_runs(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(1000))
    spec = pin(RunSpec(data=Data(source="text")), text)
    assert find_corpus(spec, options(data=text)) is not None
    text.write_bytes(bytes(999))
    with pytest.raises(DataError, match="999 bytes"):
        find_corpus(spec, options(data=text))


class Draining:
    """Stands in for a node that is asked to drain."""

    drained = 0

    def drain(self) -> None:
        self.drained += 1


@pytest.mark.asyncio
async def test_the_first_ctrl_c_drains_and_the_second_goes() -> None:
    said: list[str] = []
    node = Draining()

    async def main() -> Leaving:
        leaving = Leaving(said.append)
        leaving.node = cast("Node", node)
        leaving.ask(signal.SIGINT)
        await asyncio.sleep(0)
        assert (node.drained, leaving.asked, leaving.exit_code) == (1, True, 130)
        leaving.ask(signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        return leaving

    async with asyncio.TaskGroup() as group:
        task = group.create_task(main())
    assert task.result().exit_code == 130
    assert len(said) == 1


@pytest.mark.asyncio
async def test_before_there_is_a_node_ctrl_c_goes_at_once() -> None:
    async def main() -> int:
        leaving = Leaving(lambda _: None)
        leaving.ask(signal.SIGTERM)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        return leaving.exit_code

    async with asyncio.TaskGroup() as group:
        code = group.create_task(main())
    assert code.result() == 0


@pytest.mark.asyncio
async def test_a_reader_who_left_makes_it_leave_in_order() -> None:
    leaving, node = Leaving(lambda _: None), Draining()
    leaving.node = cast("Node", node)
    leaving.ask(signal.SIGPIPE)
    assert (node.drained, leaving.exit_code) == (1, 1)


def test_our_own_error_is_told_before_its_consequences() -> None:
    refused = RefusedError("another run")
    group = BaseExceptionGroup("", [ValueError(), ExceptionGroup("", [refused, OSError()])])
    assert first_cause(group) is refused
    fault = ZeroDivisionError()
    assert first_cause(BaseExceptionGroup("", [fault, OSError()])) is fault
    assert isinstance(first_cause(ExceptionGroup("", [InternalError("x")])), InternalError)


def test_an_events_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--events"):
        events_file(tmp_path / "nowhere" / "events.jsonl")
    with events_file(tmp_path / "events.jsonl"):
        assert (tmp_path / "events.jsonl").exists()


@pytest.mark.asyncio
async def test_a_folder_in_use_is_said_before_anything_else(tmp_path: Path) -> None:
    """Who is told to add ``--resume`` first would obey in vain."""
    spec = pin(LIBRARY)
    (tmp_path / f"{digest(spec)}.stage-0.epoch-0.step-5.safetensors").touch()
    with sole_owner(tmp_path):
        reason = await refusal(options(spec=spec, new_swarm=True, checkpoints=tmp_path))
    assert "in use by another running peer" in reason


@pytest.mark.net
@pytest.mark.asyncio
async def test_who_resumes_alone_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    alone = options(spec=pin(LIBRARY), new_swarm=True, checkpoints=tmp_path, resume=True)
    assert "holds no checkpoint of run" in await refusal(alone)


@pytest.mark.net
@pytest.mark.asyncio
async def test_memory_that_holds_no_seat_is_refused_before_the_run_is_joined() -> None:
    reason = await refusal(options(spec=pin(LIBRARY), new_swarm=True, memory_bytes=1000))
    assert "this peer gives 0.001 MB: raise --max-memory" in reason


async def refusal(given: PeerOptions) -> str:
    """Why such a peer is refused; it has not said a word before."""
    said: list[str] = []
    with pytest.raises(UserError) as caught:
        async with asyncio.timeout(60):
            await serve(given, Leaving(said.append), say=said.append)
    assert said == []
    return str(caught.value)
