"""Events in words: one line each, and how loud.

    warning   something an operator must see
    info      what a run is made of: joining, stepping, leaving
    debug     everything else

Invariant: every kind of event has words; what nobody worded is told by its fields.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

from p2ptrain.observe import events as ev

Line: TypeAlias = tuple[int, str]

SHOWN_CHARACTERS = 6  # the end of a peer id; its beginning is the same for all


def short(peer: str) -> str:
    """A peer id as people tell it apart."""
    return f"..{peer[-SHOWN_CHARACTERS:]}" if len(peer) > SHOWN_CHARACTERS else peer


def describe(event: ev.AnyEvent) -> Line:
    """The level and the words of ``event``."""
    warning = _trouble(event)
    if warning is not None:
        return logging.WARNING, warning
    info = _milestone(event)
    if info is not None:
        return logging.INFO, info
    fields = {name: getattr(event, name) for name in event.__struct_fields__}
    words = (f"{name} {_plain(value)}" for name, value in fields.items())
    return logging.DEBUG, f"{type(event).__name__}: {', '.join(words)}"


def _trouble(event: ev.AnyEvent) -> str | None:  # noqa: C901, PLR0911, PLR0912 - one line an event
    match event:
        case ev.LinkRefused():
            return f"{short(event.peer)} was refused: {event.reason}"
        case ev.FrameRefused():
            return f"{short(event.peer)} broke the protocol: {event.reason}"
        case ev.Suspected():
            return f"{short(event.peer)} is silent since {event.silent_seconds:.1f} s"
        case ev.DonorRefused():
            return f"no state of stage {event.stage} from {short(event.peer)}: {event.reason}"
        case ev.Alarm():
            return event.reason
        case ev.RolledBack():
            return _fallen(event)
        case ev.RunLost():
            return f"the run is given up: {event.reason}"
        case ev.FaultFired():
            return f"fault {event.fault} on {short(event.target)}"
        case _:
            return None


def _milestone(event: ev.AnyEvent) -> str | None:  # noqa: C901, PLR0911, PLR0912 - one line an event
    match event:
        case ev.PeerStarted():
            return f"taking part in run {event.run}"
        case ev.PeerStopped():
            return f"leaving: {event.reason}"
        case ev.SeatOpened():
            return f"serving stage {event.stage} from version {event.version}: {event.reason}"
        case ev.SeatClosed():
            return f"left stage {event.stage}: {event.reason}"
        case ev.StateLoaded():
            size = f"{event.size_bytes / 1e6:.1f} MB"
            sources = ", ".join(short(peer) for peer in event.sources or (event.source,))
            return f"stage {event.stage}: version {event.version}, {size} from {sources}"
        case ev.StateAdopted():
            whose = short(event.source)
            return f"stage {event.stage}: version {event.version} is that of {whose} for all"
        case ev.CheckpointSaved():
            size = f"{event.size_bytes / 1e6:.1f} MB"
            return f"stage {event.stage}: checkpoint of version {event.version} saved, {size}"
        case ev.Resumed():
            return f"resuming from version {event.version}: {event.reason}"
        case ev.Restored():
            return f"{short(event.peer)} is back"
        case ev.StepCommitted():
            return _committed(event)
        case ev.RunEnded():
            return f"step {event.step} was the last: {event.reason}"
        case _:
            return None


def _committed(event: ev.StepCommitted) -> str:
    losses = [
        f"{name} {value:.4f}"
        for name, value in (("loss", event.loss), ("val_loss", event.val_loss))
        if value is not None
    ]
    only_scored = event.loss is None and event.val_loss is not None  # nothing was to be learnt
    skipped = ["skipped"] if event.skipped and not only_scored else []
    parts = [f"step {event.step} stage {event.stage}", *losses, *skipped]
    return "  ".join([*parts, f"{event.seconds:.1f} s"])


def _fallen(event: ev.RolledBack) -> str:
    to = f"step {event.version}, epoch {event.epoch}"
    if not event.discarded_version:  # a newcomer hears what was before it
        return f"the run begins again at {to}; {event.reason}"
    left = f"step {event.discarded_version} of epoch {event.discarded_epoch}"
    chain = event.discarded_chain.hex()[:12]
    return f"the run begins again at {to}; discarded: {left}, chain {chain}; {event.reason}"


def _plain(value: object) -> str:
    return value.hex()[:12] if isinstance(value, bytes) else str(value)
