"""``p2ptrain simulate``: a whole swarm on this machine, of real processes or on virtual time.

Short flags are names for values of the RunSpec; everything else goes through ``--set``.
What one of the two worlds cannot do is refused by name, never ignored. A codec that is sized
for the model takes the preset ``small`` and microbatches of 2,048 tokens, if nothing else is
named: the default model is too narrow for most of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from p2ptrain.cli.flags import Command, Integer, Size, option, pairs
from p2ptrain.cli.spec import (
    ANY_PATH,
    data_option,
    preset_option,
    resolve,
    run_option,
    set_option,
    source_of,
)
from p2ptrain.data import pin
from p2ptrain.errors import UserError
from p2ptrain.net.emulation import parse_link
from p2ptrain.run import PRESETS, RunSpec, preset
from p2ptrain.run.codecs import LEAST_TOKENS, NAMES, RATIOS
from p2ptrain.sim.faults import FaultPlan, parse

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_STEPS = 100
"""A preset's own length is for real runs; this shows learning within minutes on two cores."""

MOST_THREADS = 1024
"""As in a RunSpec."""

MOST_SEATS_EACH = 4
"""Stages for each peer until it is worth a word: a hole stands ten seconds before it is taken."""

MOST_PEERS = 256
"""Each is a Python with torch and a p2pd (0.4 GB); more fit on a virtual clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateFlags:
    """The flags of ``p2ptrain simulate``, as they are declared below."""

    peers: int
    stages: int | None
    steps: int | None
    run_file: Path | None
    preset: str | None
    sets: tuple[str, ...]
    codec: str | None
    seed: int | None
    data: Path | None
    link: str | None
    chaos: str
    max_memory: int | None
    threads: str | None
    virtual: bool
    verify: bool
    report: Path | None
    as_json: bool


@click.command(cls=Command)
@option("--peers", type=Integer(1), default=8, show_default=True)
@click.option("--stages", type=Integer(1), help="Pipeline stages; default: the RunSpec's.")
@click.option("--steps", type=Integer(1), help="Optimizer steps.")
@run_option
@preset_option
@set_option
@click.option("--codec", help=f"Codec of all boundaries: {', '.join(NAMES)}.")
@click.option("--seed", type=Integer(0), help="Of weights, data order and faults.")
@data_option
@option("--link", help="Line of each peer, like 200mbit,50ms.")
@option("--chaos", default="", help="Faults, like kill=30%/min,freeze=1:10s.")
@option("--max-memory", type=Size(), help="Of each peer, for seats.")
@option("--threads", help="Of each peer in turn, like 1,2; needs sync.agreement = canonical.")
@click.option("--virtual", is_flag=True, help="One process, virtual time, toy arithmetic.")
@click.option("--verify", is_flag=True, help="Train in one process too; compare the weights.")
@option("--report", type=ANY_PATH, help="Keep report, events and plots in this folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, last on stdout.")
def simulate(**given: Any) -> int:
    """Run a whole swarm on this machine."""
    flags = SimulateFlags(**given)
    spec = simulated_spec(flags)
    for line in filter(None, (layers_added(flags, spec), slow_start(flags.peers, spec))):
        click.echo(line, err=True)
    if flags.link is not None:
        parse_link(flags.link)
    chaos = planned(flags.chaos)
    if flags.virtual:
        return _virtual(flags, spec)
    if flags.peers > MOST_PEERS:
        raise UserError(f"--peers {flags.peers}: at most {MOST_PEERS} real ones; try --virtual")
    from peers.launch import SwarmOptions  # noqa: PLC0415
    from peers.simulation import SimulationOptions  # noqa: PLC0415 -- only what runs
    from peers.summary import conduct  # noqa: PLC0415

    options = SimulationOptions(
        swarm=SwarmOptions(
            spec=pin(spec, flags.data) if not spec.data.root else spec,
            peers=flags.peers,
            data=flags.data,
            link=flags.link,
            memory_bytes=flags.max_memory,
            threads=threads_in_turn(flags.threads),
        ),
        chaos=chaos,
        verify=flags.verify,
        report=flags.report,
    )
    return conduct(options, as_json=flags.as_json)


def planned(text: str) -> FaultPlan:
    """What ``--chaos`` says.

    Raises:
        UserError: it is malformed, or kills more than there are.
    """
    plan = parse(text)
    if plan.kill is not None and plan.kill.share_per_minute > 1.0:
        rate = f"kill={plan.kill.share_per_minute:.0%}/min"
        raise UserError(f"--chaos {rate}: at most 100%/min, each peer once a minute")
    return plan


def threads_in_turn(text: str | None) -> tuple[int, ...]:
    """How many threads each peer computes with.

    Raises:
        UserError: the text is no list of numbers.
    """
    parts = [] if text is None else text.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= MOST_THREADS for part in parts):
        raise UserError(f"--threads {text}: give numbers from 1 to {MOST_THREADS}, like 1,2")
    return tuple(int(part) for part in parts)


def simulated_spec(flags: SimulateFlags) -> RunSpec:
    """The RunSpec with the short flags in it.

    Raises:
        RunSpecError: it cannot be run.
    """
    short = {
        "cut.stages": flags.stages,
        "optimizer.steps": flags.steps,
        "codec.name": flags.codec,
        "seed": flags.seed,
    }
    given: dict[str, object] = {name: value for name, value in short.items() if value is not None}
    if flags.codec is not None:
        given["codec.boundaries"] = ()  # of all boundaries, whatever the file names for each
    if flags.run_file is None:
        given = {"optimizer.steps": DEFAULT_STEPS, **source_of(flags.data), **given}
        stages = flags.stages or (preset(flags.preset) if flags.preset else RunSpec()).cut.stages
        given["sync.start_replicas"] = max(1, flags.peers // stages)  # begin with everybody there
    named = flags.preset
    if flags.codec in RATIOS and flags.run_file is None and named is None:
        named, wide = "small", preset("small")
        sequences = -(-LEAST_TOKENS // wide.model.context)
        given = {"batch.sequences": max(sequences, wide.batch.sequences), **given}
    if flags.run_file is None and named is None and flags.link is None:
        given["checkpoint.every_steps"] = 1  # a state of a few MB, over the loopback
    return resolve(flags.run_file, named, flags={**given, **pairs(flags.sets)}).spec


def layers_added(flags: SimulateFlags, spec: RunSpec) -> str:
    """What to say where ``--stages`` made the model deeper than its preset; '' where it did not."""
    named = flags.run_file is not None or "model.n_layers" in pairs(flags.sets)
    base = flags.preset or spec.name
    layers = PRESETS[base].model.n_layers if base in PRESETS else spec.model.n_layers
    if named or flags.stages is None or layers >= flags.stages:
        return ""
    has = f"the preset {base} has {layers} layers"
    return f"--stages {flags.stages}: {has}; this run has {flags.stages}, one for each stage"


def slow_start(peers: int, spec: RunSpec) -> str:
    """What to say where few peers serve many stages; '' where they do not."""
    stages = spec.cut.stages
    if stages <= MOST_SEATS_EACH * peers:
        return ""
    each = f"{peers} peers take {stages} stages one after another, {-(-stages // peers)} each"
    return f"{each}; the first step may be minutes away"


def _virtual(flags: SimulateFlags, spec: RunSpec) -> int:
    refused = {
        "--verify": flags.verify,
        "--report": flags.report,
        "--max-memory": flags.max_memory,
        "--threads": flags.threads,
    }
    for name, value in refused.items():
        if value:
            raise UserError(f"{name} is for real peers: with --virtual the checkers judge already")
    from peers import virtual  # noqa: PLC0415 -- only what runs

    options = virtual.VirtualOptions(
        spec=spec, peers=flags.peers, link=flags.link, chaos=flags.chaos
    )
    result = virtual.run(options)
    if flags.as_json:
        click.echo(virtual.as_json(options, result))
    else:
        for line in virtual.summary(result):
            click.echo(line)
    return 0 if result.holds else 1
