"""The commands that go on the network: bootstrap, peer, status.

Whatever can be refused is refused before torch and hivemind are imported, so a slip of
the finger costs a tenth of a second.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from p2ptrain.cli.flags import Command, Integer, Size, option, pairs
from p2ptrain.cli.leaving import at_once
from p2ptrain.cli.spec import (
    ANY_PATH,
    RUN_ID,
    data_option,
    preset_option,
    resolve,
    set_option,
    source_of,
)
from p2ptrain.data import pin
from p2ptrain.errors import UserError
from p2ptrain.net.addresses import parse_peer_addresses
from p2ptrain.net.emulation import LinkShape, parse_link
from p2ptrain.units import RunId, Stage

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec

MOST_SPILL = "16GB"
"""A step of the largest preset leaves 4.4 GB with a seat that computes it alone; frames of two
steps may be kept, and a peer may hold two seats."""
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

peers_option = option(
    "--initial-peers", "--join", "--bootstrap", multiple=True, metavar="ADDRESS...",
    help="Addresses of a bootstrap or of any peer of the run.",
)  # fmt: skip
identity_option = option("--identity-path", type=ANY_PATH, help="Key file; made if missing.")
host_option = option(
    "--host-maddrs", multiple=True, metavar="ADDRESS...", help="Where to listen (multiaddress)."
)
announce_option = option(
    "--announce-maddrs", multiple=True, metavar="ADDRESS...", help="What to tell others instead."
)
relay_option = click.option(
    "--use-relay/--no-relay", default=True, help="Let relays help those who cannot be reached."
)


@click.command(cls=Command)
@option("--port", type=Integer(0, 65535), default=31337, show_default=True)
@host_option
@announce_option
@identity_option
@peers_option
@relay_option
def bootstrap(
    *,
    port: int,
    host_maddrs: tuple[str, ...],
    announce_maddrs: tuple[str, ...],
    identity_path: Path | None,
    initial_peers: tuple[str, ...],
    use_relay: bool,
) -> int:
    """Run an address book; it prints the address to share."""
    parse_peer_addresses(initial_peers)
    with at_once():
        from bootstrap import node  # noqa: PLC0415 -- hivemind takes seconds

    options = node.BootstrapOptions(
        port=port,
        host_maddrs=host_maddrs,
        announce_maddrs=announce_maddrs,
        identity_path=identity_path or home() / "bootstrap.key",
        initial_peers=initial_peers,
        use_relay=use_relay,
    )
    return node.run(options, say=click.echo)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFlags:
    """The flags of ``p2ptrain peer``, as they are declared below."""

    initial_peers: tuple[str, ...]
    new_swarm: bool
    run: str | None
    preset: str | None
    sets: tuple[str, ...]
    stage: str
    device: str
    data: Path | None
    max_memory: int | None
    threads: int | None
    identity_path: Path | None
    port: int
    host_maddrs: tuple[str, ...]
    announce_maddrs: tuple[str, ...]
    use_relay: bool
    max_spill: int
    checkpoint_dir: Path | None
    resume: bool
    log_format: Literal["text", "json"]
    link: str | None
    cut_file: Path | None
    halt_at: str | None
    events: Path | None
    result: Path | None


@click.command(cls=Command)
@peers_option
@click.option("--new-swarm", is_flag=True, help="Begin a run instead of joining one.")
@option("--run", metavar="FILE|ID", help="A RunSpec, or the id of a run to join.")
@preset_option
@set_option
@option("--stage", default="auto", help="auto, or the stage to serve.")
@option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@data_option
@option("--max-memory", type=Size(), help="For seats, like 8GB; default: half of what is free.")
@option(
    "--threads",
    type=Integer(1, 1024),
    help="Of this peer; needs sync.agreement = canonical.",
)
@option("--max-spill", type=Size(), default=MOST_SPILL, help="Frames on disk; default: 16GB.")
@identity_option
@option("--port", type=Integer(0, 65535), default=0, help="To listen on, of all addresses.")
@host_option
@announce_option
@relay_option
@option("--checkpoint-dir", type=ANY_PATH, help="Where to keep checkpoints.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoints of a run that stopped.")
@option("--log-format", type=click.Choice(["text", "json"]), default="text")
@option("--link", help="Emulate a line, like 200mbit,50ms.", hidden=True)
@option("--cut-file", type=ANY_PATH, help="Play a partition by this file.", hidden=True)
@option("--halt-at", help="Stand still, TIMES:POINT:FILE; see peers/failpoint.", hidden=True)
@option("--events", type=ANY_PATH, help="Write every event to a file.", hidden=True)
@option("--result", type=ANY_PATH, help="Write the outcome to a file.", hidden=True)
def peer(**given: Any) -> int:
    """Join a run, or begin one."""
    flags = PeerFlags(**given)
    parse_peer_addresses(flags.initial_peers)
    if flags.resume and flags.checkpoint_dir is None:
        raise UserError("--resume needs --checkpoint-dir D, where this peer kept its checkpoints")
    run_id, spec = wanted_run(flags)
    stage = wanted_stage(flags.stage, spec)
    link = shape(flags.link)
    if not DEVICE.fullmatch(flags.device):
        raise UserError(f"--device {flags.device}: give auto, cpu, cuda, cuda:N or mps")
    with at_once():
        from p2ptrain.net.listening import DaemonOptions  # noqa: PLC0415 -- hivemind takes seconds
        from p2ptrain.net.node import NetworkOptions  # noqa: PLC0415
        from peers import failpoint  # noqa: PLC0415
        from peers.peer import PeerOptions, run  # noqa: PLC0415

    identity = flags.identity_path or home() / "identity.key"
    network = NetworkOptions(
        daemon=DaemonOptions(
            host_maddrs=flags.host_maddrs or (f"/ip4/0.0.0.0/tcp/{flags.port}",),
            announce_maddrs=flags.announce_maddrs,
            use_relay=flags.use_relay,
        ),
        initial_peers=flags.initial_peers,
        peerstore=identity.parent / f"{identity.name}.peers.json",  # each key has its own
        link=link,
        cut=flags.cut_file,
    )
    options = PeerOptions(
        network=network,
        spec=spec,
        run=run_id,
        new_swarm=flags.new_swarm,
        identity_path=identity,
        data=flags.data,
        device=flags.device,
        stage=stage,
        memory_bytes=flags.max_memory,
        threads=flags.threads,
        checkpoints=flags.checkpoint_dir,
        resume=flags.resume,
        spill_folder=flags.checkpoint_dir or home(),  # the system's temporary folder may be memory
        spill_bytes=flags.max_spill,
        halt=None if flags.halt_at is None else failpoint.parse(flags.halt_at),
        log_format=flags.log_format,
        events=flags.events,
        result=flags.result,
    )
    return run(options, say=click.echo)


@click.command(cls=Command)
@peers_option
@option("--run", metavar="ID", help="Only this run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def status(*, initial_peers: tuple[str, ...], run: str | None, as_json: bool) -> None:
    """Show the runs at an address, and who serves what."""
    if not initial_peers:
        raise click.UsageError("give --initial-peers ADDRESS of a bootstrap or any peer")
    parse_peer_addresses(initial_peers)
    if run is not None and not RUN_ID.fullmatch(run):
        raise UserError(f"--run {run}: no run has such an id; they have 32 hexadecimal digits")
    with at_once():
        from rich.console import Console  # noqa: PLC0415 -- the rest takes seconds

        from p2ptrain.net.node import NetworkOptions  # noqa: PLC0415
        from peers import status as program  # noqa: PLC0415

    found = program.run(
        NetworkOptions(initial_peers=initial_peers), RunId(run) if run is not None else None
    )
    if as_json:
        click.echo(msgspec.json.encode({"runs": found}).decode())
        return
    for each in found:
        Console().print(program.table(each))


def wanted_run(flags: PeerFlags) -> tuple[RunId | None, RunSpec | None]:
    """The run that the flags name: its id, or its RunSpec with the data pinned, or neither.

    Raises:
        UserError: neither a swarm to join nor a new one; or what cannot go together.
    """
    if not flags.initial_peers and not flags.new_swarm:
        raise UserError(
            "give --initial-peers ADDRESS of a swarm to join, or --new-swarm to begin one"
        )
    if flags.run == "":
        raise UserError("--run is empty: give a RunSpec's file or a run's id, or leave it out")
    known = flags.run is not None or flags.preset is not None
    if not known and not flags.new_swarm:
        if flags.sets:
            raise UserError("--set changes a RunSpec: give --run FILE, or --new-swarm")
        return None, None
    if flags.run is not None and RUN_ID.fullmatch(flags.run) and not Path(flags.run).exists():
        if flags.new_swarm or flags.sets:
            raise UserError("--run names a run that exists: leave out --new-swarm and --set")
        return RunId(flags.run), None
    run_file = _run_file(flags)
    source = source_of(flags.data) if run_file is None else {}
    spec = resolve(run_file, flags.preset, flags={**source, **pairs(flags.sets)}).spec
    return None, spec if spec.data.root else pin(spec, flags.data)


def _run_file(flags: PeerFlags) -> Path | None:
    """The file that the run is read from; None: a preset, or the defaults, begin one."""
    if flags.run is None:
        if flags.preset is not None and not flags.new_swarm:
            why = "give --new-swarm, or leave it out to join the run that is there"
            raise UserError(f"--preset begins a run: {why}")
        return None
    if flags.preset is None and not os.path.lexists(flags.run):
        ids = "those have 32 lower-case hexadecimal digits (p2ptrain status shows them)"
        raise UserError(
            f"--run {flags.run}: no such file (p2ptrain init writes one), and no id of a run: {ids}"
        )
    return Path(flags.run)


def wanted_stage(text: str, spec: RunSpec | None) -> Stage | None:
    """The stage that ``--stage`` insists on, None for ``auto``.

    Raises:
        UserError: there is no such stage.
    """
    if text == "auto":
        return None
    most = 1023 if spec is None else spec.cut.stages - 1
    if not text.isdecimal() or int(text) > most:
        raise UserError(f"--stage {text}: give auto, or a number from 0 to {most}")
    return Stage(int(text))


def shape(text: str | None) -> LinkShape | None:
    """The line that ``--link`` describes."""
    return None if text is None else parse_link(text)


def home() -> Path:
    """Where keys and known peers lie when no flag says otherwise."""
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data else Path.home() / ".local" / "share") / "p2ptrain"
