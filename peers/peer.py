"""One peer: puts the real world together and runs a node of the engine in it.

    identity -> network (p2pd, streams, directory) -> the run's spec (given, or from the
    directory) -> data, if it is at hand -> compute -> Node.run -> the outcome

One process, one uvloop loop, one p2pd child, one compute thread per device. The first
lines say who this peer is and what to give to others. SIGINT (Ctrl-C) drains: the seat's
step is finished, then the peer leaves; a second one leaves now. SIGTERM drains as well, and
so do a closed terminal (SIGHUP) and a reader of our output who has gone.

Importing this module imports torch and hivemind (seconds): the command does it last.

Refused: a constructor that opens sockets; everything here lives inside ``with`` blocks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import uvloop

from p2ptrain.compute.executor import TorchCompute
from p2ptrain.data import corpus_from_bytes, load_corpus
from p2ptrain.data.store import DiskStore
from p2ptrain.engine.discovery import agreed_run
from p2ptrain.engine.lifecycle import Node
from p2ptrain.engine.terms import NodeOptions, World
from p2ptrain.errors import DataError, P2PTrainError, UserError
from p2ptrain.net.identity import Identity
from p2ptrain.net.node import Network, NetworkOptions
from p2ptrain.net.reach import check_reachable, own_ips
from p2ptrain.observe import events as ev
from p2ptrain.observe.sinks import JsonlSink, LogSink, fan_out, formatter, stamp
from p2ptrain.observe.voice import Voice
from peers.failpoint import Failpoint
from peers.folder import owned, refuse_to_replace, refuse_to_wait
from peers.outcome import outcome_of, tell_result
from peers.retention import check_frames_fit, check_seat_fits, spilling
from peers.vitals import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from p2ptrain.ports import Corpus
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, RunId, Stage
    from peers.failpoint import HaltAt

log = logging.getLogger(__name__)

INTERRUPTED_EXIT = 130
UNHEARD_EXIT = 1
MILLISECOND_NANOSECONDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """What this peer alone decides. ``spec`` None: ask the directory, for ``run`` if given.

    ``new_swarm``: begin ``spec`` even where others train something else.
    ``checkpoints``: a folder for them, None writes none; ``resume``: go on from those.
    ``spill_folder``: on the disk to which retained frames go when memory is short, at most
    ``spill_bytes`` of them.
    ``halt``: where to stand still, to be killed there.
    ``events``, ``result``: files for whoever watches this peer from outside.
    """

    network: NetworkOptions
    spec: RunSpec | None = None
    run: RunId | None = None
    new_swarm: bool = False
    identity_path: Path | None = None
    data: Path | None = None
    device: str = "auto"
    stage: Stage | None = None
    memory_bytes: Bytes | None = None
    threads: int | None = None
    checkpoints: Path | None = None
    resume: bool = False
    spill_folder: Path | None = None
    spill_bytes: Bytes = 0
    log_format: Literal["text", "json"] = "text"
    halt: HaltAt | None = None
    events: Path | None = None
    result: Path | None = None


class Leaving:
    """What the signals ask for: first to drain, then to go at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.node: Node | None = None
        self._asked: signal.Signals | None = None
        self._say = say
        self._task = asyncio.current_task()

    def ask(self, number: signal.Signals) -> None:
        """A signal has come."""
        again, self._asked = self._asked is not None, self._asked or number
        if self.node is None or again:
            assert self._task is not None
            self._task.cancel()
        else:
            self._say("finishing this step, then leaving (Ctrl-C again: leave now)")
            self.node.drain()

    @property
    def asked(self) -> bool:
        """Whether somebody wants us to go."""
        return self._asked is not None

    @property
    def exit_code(self) -> int:
        """0, or 130 after Ctrl-C, or 1 when nobody hears us any more."""
        return {signal.SIGINT: INTERRUPTED_EXIT, signal.SIGPIPE: UNHEARD_EXIT}.get(
            self._asked or signal.SIGTERM, 0
        )


def run(options: PeerOptions, *, say: Callable[[str], None]) -> int:
    """Serve until the run is complete or somebody says stop; return the exit code.

    Raises:
        P2PTrainError: with the exit code that belongs to it.
    """
    voice = Voice(say)
    voice.setFormatter(formatter(options.log_format))
    logging.basicConfig(level=logging.INFO, handlers=[voice], force=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_told(options, voice))


async def _until_told(options: PeerOptions, voice: Voice) -> int:
    loop = asyncio.get_running_loop()
    leaving = Leaving(voice.say)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, leaving.ask, number)

    def unheard() -> None:  # from any thread, in the middle of anything
        loop.call_soon_threadsafe(leaving.ask, signal.SIGPIPE)

    voice.when_unheard(unheard)
    try:
        await serve(options, leaving, say=voice.say)
    except asyncio.CancelledError:
        if not leaving.asked:
            raise
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    return leaving.exit_code


async def serve(options: PeerOptions, leaving: Leaving, *, say: Callable[[str], None]) -> None:
    """Join, train, leave. Cancelled, it closes everything and leaves no process behind."""
    path, kept = options.identity_path, options.checkpoints
    async with AsyncExitStack() as stack:
        identity = Identity.temporary() if path is None else Identity.open(path)
        stack.enter_context(identity)
        stack.enter_context(owned(kept))
        network = await stack.enter_async_context(Network.open(identity, options.network))
        check_reachable(network.addresses(), options.network.initial_peers, machine=own_ips())
        found = (network.directory, options.run, options.spec)
        run_id, spec = await agreed_run(*found, new_swarm=options.new_swarm)
        if kept is not None and not options.resume:
            refuse_to_replace(kept, run_id)
        elif kept is not None and options.new_swarm and not options.network.initial_peers:
            refuse_to_wait(kept, run_id)
        store = None if kept is None else DiskStore(kept)
        spill = stack.enter_context(spilling(options.spill_folder, options.spill_bytes))
        check_frames_fit(spec, options.stage, spill)
        compute = compute_of(spec, options)
        stack.enter_context(closing(compute))
        check_seat_fits(compute, spec, options.stage)
        for line in welcome(network.addresses(), run_id, spec, kept):
            say(line)
        failpoint = Failpoint(options.halt)
        world = World(
            transport=failpoint.tapped(network.transport),
            directory=network.directory,
            signer=network.signer,
            compute=compute,
            corpus=find_corpus(spec, options),
            corpus_from=lambda corpus: corpus_from_bytes(spec, corpus),
            store=store,
            spill=spill,
        )
        incarnation = time.time_ns() // MILLISECOND_NANOSECONDS  # grows with every start
        outputs: list[Callable[[ev.Entry], None]] = [LogSink(log)]
        if options.events is not None:
            outputs.append(stack.enter_context(events_file(options.events)))
        emit = stamp(network.peer, asyncio.get_running_loop().time, fan_out(*outputs))
        failpoint.emit = emit
        emit(ev.PeerStarted(run=run_id, addresses=network.addresses()))
        leaving.node = node = Node(
            run_id,
            spec,
            world,
            incarnation=incarnation,
            emit=emit,
            rng=random.Random(incarnation),
            options=NodeOptions(stage=options.stage, resume=options.resume),
        )
        links = node.links.peers
        stack.enter_context(watched(emit, lambda: network.daemon_pid, lambda: len(links())))
        result = await node.run()
        drained = "the run is complete" if result.finished else "drained"
        emit(ev.PeerStopped(reason=result.lost or drained))
        tell_result(options.result, outcome_of(network.peer, run_id, result), result.lost)


def welcome(
    addresses: tuple[str, ...], run_id: RunId, spec: RunSpec, checkpoints: Path | None = None
) -> Iterator[str]:
    """The first lines: who we are, and what others type to join us."""
    public = sorted(addresses, key=lambda text: text.startswith(("/ip4/127.", "/ip6/::1/")))
    if public:
        yield f"peer {public[0].rpartition('/')[2]}"
        yield f"others join with: p2ptrain peer --initial-peers {public[0]}"
    yield f"run {run_id} ({spec.name}): {spec.cut.stages} stages, {spec.optimizer.steps} steps"
    every = spec.checkpoint.every_steps
    if checkpoints is not None:
        often = f"every {every} steps" if every else "none: the run has checkpoint.every_steps = 0"
        yield f"checkpoints in {checkpoints}: {often}"


def events_file(path: Path) -> JsonlSink:
    """The file of ``--events``.

    Raises:
        UserError: it cannot be written.
    """
    try:
        return JsonlSink(path)
    except OSError as error:
        raise UserError(f"--events {path}: cannot be written ({error.strerror})") from error


def compute_of(spec: RunSpec, options: PeerOptions) -> TorchCompute:
    """This peer's device, as its owner wants it used."""
    return TorchCompute(
        spec,
        device=options.device,
        memory_bytes=options.memory_bytes,
        threads=options.threads,
    )


def find_corpus(spec: RunSpec, options: PeerOptions) -> Corpus | None:
    """The run's data, if it is here; else peers of stage 0 give it, should we serve that.

    Raises:
        DataError: the user named data, and it is not this run's.
    """
    try:
        return load_corpus(spec, options.data)
    except DataError as error:
        if options.data is not None:
            raise
        log.warning("%s; peers give the data if this one comes to serve stage 0", error)
        return None


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to tell the user: the first of ours in a group, else the first at all."""
    leaves = list(_leaves(group))
    return next((leaf for leaf in leaves if isinstance(leaf, P2PTrainError)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
