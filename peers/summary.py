"""The end of a simulation: its report, its words, its exit code.

    Simulated + all events -> Report -> report.json, events.jsonl, plots | words | JSON

Exit code 0 means: every peer finished, no id was lost or counted twice, all replicas agree,
and the weights are the reference's if that was asked. Anything else is 1, with the reason.

Refused: a summary with numbers that the report does not hold.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click
import msgspec

from p2ptrain.errors import UserError
from p2ptrain.observe.plots import INSTALL_LINE, write_plots
from p2ptrain.observe.report import Facts, Report, build_report, write_report
from p2ptrain.observe.sinks import merge_entries
from p2ptrain.run import digest
from peers.display import Display
from peers.simulation import REPORT_FILE, Simulated, SimulationOptions, forget, simulate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2ptrain.observe.events import Entry

LOSS_TOLERANCE = 0.01
"""Of the validation loss, where peers round each in its own way. Rounding acts like another
seed of the same run, and those end within about one percent of each other."""

ROUNDED = (
    "not compared bit by bit: with agreement canonical every peer rounds in its own way "
    f"(validation losses are compared, within {LOSS_TOLERANCE:.0%})"
)

FAILED_EXIT = 1
INTERRUPTED_EXIT = 130


def conduct(options: SimulationOptions, *, as_json: bool) -> int:
    """Simulate, report, and return the exit code. JSON goes to stdout as its last line."""
    with Display(as_json=as_json) as display:
        try:
            simulated = asyncio.run(simulate(options, display))
        except (KeyboardInterrupt, asyncio.CancelledError):
            display.say("ended at once; every process is gone")
            return INTERRUPTED_EXIT
        try:
            report, troubles = tell(options, simulated, display)
        except KeyboardInterrupt:
            if options.report is None:
                forget(simulated.folder)
            raise
    if as_json:
        click.echo(msgspec.json.encode(report))
    if simulated.interrupted:
        return INTERRUPTED_EXIT
    return FAILED_EXIT if troubles else 0


def tell(
    options: SimulationOptions, simulated: Simulated, display: Display
) -> tuple[Report, list[str]]:
    """Report and say how it went; return the report and what went wrong."""
    entries = merge_entries(simulated.events)
    report = build_report(entries, facts(options, simulated))
    steps = min(report.steps, options.swarm.spec.optimizer.steps)  # the last only evaluates
    report = msgspec.structs.replace(report, steps=steps)
    troubles = list(faults(simulated, report))
    for line in [*words(report), *(f"trouble: {trouble}" for trouble in troubles)]:
        display.say(line)
    for line in keep(options, simulated, report, entries, in_trouble=bool(troubles)):
        display.say(line)
    return report, troubles


def facts(options: SimulationOptions, simulated: Simulated) -> Facts:
    """What the supervisor knows and no event says."""
    spec, reference = options.swarm.spec, simulated.reference
    return Facts(
        run_id=digest(spec),
        commit=simulated.commit,
        seed=spec.seed,
        peers=options.swarm.peers,
        stages=spec.cut.stages,
        replicas=list(simulated.outcome.replicas),
        seconds=simulated.seconds,
        baseline_val_loss=reference.val_loss if reference else None,
        weights_digest=simulated.outcome.weights_digest,
        reference_digest=reference.weights_digest if reference else None,
        verified=simulated.verified,
        compared=ROUNDED if reference and not simulated.bitwise else "",
        peak_rss_bytes=simulated.peak_rss_bytes,
        orphans=simulated.orphans,
    )


def faults(simulated: Simulated, report: Report) -> Iterator[str]:
    """Everything that is not as it should be, a line each."""
    yield from simulated.troubles
    counts = report.microbatches
    if counts.lost or counts.duplicated:
        yield f"{counts.lost} microbatches lost, {counts.duplicated} counted twice"
    if simulated.outcome.disagreements:
        yield f"replicas disagree on {', '.join(simulated.outcome.disagreements)}"
    if simulated.verified is False:
        yield "the weights are not those of one process training alone"
    yield from _far(report)
    if not simulated.interrupted and simulated.outcome.weights_digest is None:
        yield "the run did not end with a whole model"
    if not simulated.interrupted and simulated.unfinished:
        yield f"ended before the run was complete: {', '.join(simulated.unfinished)}"
    if simulated.orphans:
        yield f"{simulated.orphans} processes outlived their peers and were killed"


def _far(report: Report) -> Iterator[str]:
    """Where weights cannot be compared, losses are."""
    mine, alone = report.val_loss, report.baseline_val_loss
    if report.compared and mine is not None and alone is not None:
        apart = abs(mine - alone) / alone
        if not apart <= LOSS_TOLERANCE:
            yield (
                f"validation loss {mine:.4f}, of one process {alone:.4f}: {apart:.1%} apart, "
                f"at most {LOSS_TOLERANCE:.0%} is rounding"
            )


def words(report: Report) -> Iterator[str]:
    """The report as a person wants to read it."""
    rate = report.tokens_per_second
    pace = f" ({rate:,.0f} tokens/s)" if rate is not None else ""
    replicas = "/".join(map(str, report.replicas))
    yield f"run {report.run_id}, commit {report.commit}, seed {report.seed}"
    yield f"{report.peers} peers, seats per stage {replicas}; {report.seconds:.0f} s in all"
    yield f"{report.steps} steps, {report.tokens:,} tokens{pace}"
    if report.loss and report.val_loss is not None:
        baseline = report.baseline_val_loss
        alone = "" if baseline is None else f" (one process: {baseline:.4f})"
        first, last = report.loss[0][1], report.loss[-1][1]
        yield f"loss {first:.3f} -> {last:.3f}, validation {report.val_loss:.4f}{alone}"
    counts = report.microbatches
    yield (
        f"microbatches: {counts.committed} committed, {counts.lost} lost, "
        f"{counts.duplicated} counted twice, {counts.replayed} replayed, {counts.recalled} recalled"
    )
    if report.faults:
        fired = ", ".join(f"{count} {fault}" for fault, count in report.faults.items())
        median = report.recovery_seconds.median
        yield f"faults: {fired}" + ("" if median is None else f"; recovered in {median:.1f} s")
    wire = report.wire
    if (
        wire.forward_bytes_per_microbatch
        and wire.backward_bytes_per_microbatch
        and wire.ratio_vs_bf16
    ):
        yield (
            f"wire: {wire.forward_bytes_per_microbatch / 1000:,.1f} kB forward and "
            f"{wire.backward_bytes_per_microbatch / 1000:,.1f} kB backward per microbatch and hop, "
            f"{wire.ratio_vs_bf16:.1f}x below bf16"
        )
    if (grown := report.growth) is not None:
        yield (
            f"growth a minute, worst of {grown.peers} that lived: "
            f"{grown.rss_bytes_per_minute / 1e6:+.2f} MB "
            f"(p2pd {grown.daemon_rss_bytes_per_minute / 1e6:+.2f} MB), "
            f"{grown.threads_per_minute:+.2f} threads, {grown.links_per_minute:+.2f} links; at "
            f"equal links {grown.tasks_beyond_links_per_minute:+.2f} tasks, "
            f"{grown.descriptors_beyond_links_per_minute:+.2f} descriptors "
            f"(p2pd {grown.daemon_descriptors_beyond_links_per_minute:+.2f})"
        )
    if report.weights_digest is not None:
        verdict = {
            True: "equal to those of one process training alone",
            False: "NOT those of one process training alone",
            None: report.compared or "not compared (--verify does)",
        }[report.verified]
        yield f"weights {report.weights_digest[:16]}: {verdict}"


def keep(
    options: SimulationOptions,
    simulated: Simulated,
    report: Report,
    entries: Sequence[Entry],
    *,
    in_trouble: bool,
) -> Iterator[str]:
    """Write what was asked for, forget the rest unless it explains a trouble; tell where.

    Raises:
        UserError: the disk refused.
    """
    folder = options.report
    if folder is None:
        if in_trouble and not simulated.interrupted:
            yield f"output and events of all processes: {simulated.folder}"
        else:
            forget(simulated.folder)
        return
    try:
        write_report(report, folder / REPORT_FILE)
        with (folder / "events.jsonl").open("wb") as file:
            file.writelines(msgspec.json.encode(entry) + b"\n" for entry in entries)
        plots = write_plots(report, entries, folder)
    except OSError as error:
        raise UserError(f"--report {folder}: {error.strerror}") from error
    yield f"report: {folder / REPORT_FILE}"
    yield f"plots: {', '.join(plot.name for plot in plots)}" if plots else INSTALL_LINE
