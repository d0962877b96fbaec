"""Pictures of a run, where matplotlib is installed (the extra ``plots``).

One file per question: does it learn (loss), does it keep its pace (seconds per step), who
served (seats per stage). Without matplotlib a run loses its pictures, nothing else.
"""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from p2ptrain.observe.report import Report
    from p2ptrain.units import Seconds, Stage

INSTALL_LINE = "no plots: matplotlib is not installed (pip install 'p2ptrain[plots]')"


def write_plots(report: Report, entries: Sequence[ev.Entry], folder: Path) -> list[Path]:
    """Write the plots into ``folder``; none where matplotlib is missing (see INSTALL_LINE).

    Raises:
        OSError: the disk refused.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    figures = {
        "loss.png": _loss(report),
        "steps.png": _steps(entries),
        "seats.png": _seats(entries),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=120, bbox_inches="tight")
    return paths


def _figure(title: str, x: str, y: str) -> Figure:
    # A Figure of its own, never pyplot: that keeps global state and may look for a display.
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure(figsize=(8.0, 4.5))
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, alpha=0.3)
    return figure


def _loss(report: Report) -> Figure:
    figure = _figure(f"loss of run {report.run_id[:8]}", "step", "nats per token")
    axes = figure.axes[0]
    if report.loss:
        axes.plot(*zip(*report.loss, strict=True), label="training", linewidth=1)
    if report.val_losses:
        axes.plot(*zip(*report.val_losses, strict=True), "o-", label="validation")
    if report.baseline_val_loss is not None:
        axes.axhline(report.baseline_val_loss, ls="--", color="gray", label="one process")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return figure


def _steps(entries: Sequence[ev.Entry]) -> Figure:
    figure = _figure("pace, each seat", "step", "seconds")
    # Step 0 lasts as long as others take to come: its bar would hide the pace.
    commits = [e.event for e in entries if isinstance(e.event, ev.StepCommitted) and e.event.step]
    figure.axes[0].plot([c.step for c in commits], [c.seconds for c in commits], ".", markersize=3)
    return figure


def _seats(entries: Sequence[ev.Entry]) -> Figure:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    figure = _figure("seats per stage", "seconds since the first peer", "seats")
    began, ended = (entries[0].at, entries[-1].at) if entries else (0.0, 0.0)
    held: dict[Stage, int] = defaultdict(int)
    curves: dict[Stage, list[tuple[Seconds, int]]] = defaultdict(list)
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.SeatOpened | ev.SeatClosed):
            held[event.stage] += 1 if isinstance(event, ev.SeatOpened) else -1
            curves[event.stage].append((entry.at - began, held[event.stage]))
    axes = figure.axes[0]
    for stage, points in sorted(curves.items()):
        points.append((ended - began, held[stage]))
        axes.step(*zip(*points, strict=True), where="post", label=f"stage {stage}")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if curves:
        axes.legend(fontsize="small")
    return figure
