"""The report of a run: what its events say, beside what only its supervisor knows.

    events.jsonl of all peers --+
                                +--> Report --> report.json
    Facts (seed, digests, ...) -+

The numbers are read from outside, from what every operator has. What was lost or counted
twice follows from the covers in the commits, never from what the engine believes.

Invariants: a field that nothing was seen of is None or 0, never a guess; one step is
counted once, however many seats committed it; fields are added, never renamed (DESIGN 9).
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.observe import events as ev
from p2ptrain.observe.growth import Growth, growth
from p2ptrain.observe.recovery import recovery_seconds
from p2ptrain.observe.traffic import Wire, wire_of
from p2ptrain.units import PeerId, Seconds, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

SHOWN_ALARMS = 20  # the first ones tell, the rest follow from them


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor of a run knows and no event says. None: not known, not asked.

    ``seconds``: from start to end; ``baseline_val_loss``: the reference's; ``commit``: of
    the source; ``orphans``: processes that outlived the run.
    """

    run_id: str
    commit: str
    seed: int
    peers: int
    stages: int
    replicas: list[int]
    seconds: Seconds
    baseline_val_loss: float | None = None
    weights_digest: str | None = None
    reference_digest: str | None = None
    verified: bool | None = None
    compared: str = ""
    peak_rss_bytes: int = 0
    orphans: int = 0


class Microbatches(msgspec.Struct, frozen=True, kw_only=True):
    """Microbatches by their fate, summed over stages but for ``committed`` (once each)."""

    committed: int
    replayed: int
    recalled: int
    overlapped: int
    duplicated: int
    lost: int
    taken_up: int = 0  # counted by mates that were gone: their deposits were added, less returned


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Of several lengths of time."""

    median: Seconds | None
    max: Seconds | None


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """How Asks were answered. ``offers`` is None where no seat told its activity."""

    offers: int | None
    busy: int


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """The last reading between stage ``boundary`` and the next; see ``core/health``."""

    boundary: int
    step: Step
    magnitude: float
    deviation: float
    least_deviation: float
    saturation: float
    error: float
    gradient_norm: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """report.json. Times in seconds, sizes in bytes, losses in nats per token.

    ``growth``: None where no peer was watched for minutes.
    """

    run_id: str
    commit: str
    seed: int
    peers: int
    stages: int
    replicas: list[int]
    steps: int
    tokens: int
    seconds: Seconds
    tokens_per_second: float | None
    loss: list[tuple[Step, float]]
    val_loss: float | None
    baseline_val_loss: float | None
    wire: Wire
    microbatches: Microbatches
    faults: dict[str, int]
    recovery_seconds: Spread
    busy_fraction: float | None
    ask: Answers
    weights_digest: str | None
    reference_digest: str | None
    verified: bool | None
    peak_rss_bytes: int
    false_suspicions: int
    orphans: int
    val_losses: list[tuple[Step, float]]
    step_seconds: Spread
    suspicions: int
    frames_refused: int
    frames_spilled: int
    spill_reads: int
    alarms: list[str]
    growth: Growth | None
    boundaries: list[Boundary]
    compared: str


def build_report(entries: Sequence[ev.Entry], facts: Facts) -> Report:
    """Put ``entries``, ordered by time, and ``facts`` together.

    Times of different peers are compared (pace, recovery): the events must come from one
    machine or one simulation.
    """
    kinds = Counter(type(entry.event) for entry in entries)
    steps = _steps(entries)
    tokens = sum(commit.tokens for commit in steps.values())
    span = _span(entries)
    commits = [entry.event for entry in entries if isinstance(entry.event, ev.StepCommitted)]
    val_losses = [(s, c.val_loss) for s, c in steps.items() if c.val_loss is not None]
    return Report(
        **msgspec.structs.asdict(facts),
        steps=len(steps),
        tokens=tokens,
        tokens_per_second=tokens / span if span > 0 else None,
        loss=[(s, c.loss) for s, c in steps.items() if c.loss is not None],
        val_loss=val_losses[-1][1] if val_losses else None,
        wire=wire_of(entries),
        microbatches=_microbatches(entries, kinds),
        faults=_faults(entries),
        recovery_seconds=_spread(recovery_seconds(entries)),
        busy_fraction=_busy_fraction(entries),
        ask=_answers(entries, kinds),
        false_suspicions=kinds[ev.Restored],
        val_losses=val_losses,
        step_seconds=_spread([commit.seconds for commit in commits]),
        suspicions=kinds[ev.Suspected],
        frames_refused=kinds[ev.FrameRefused],
        frames_spilled=kinds[ev.Spilled],
        spill_reads=kinds[ev.SpillRead],
        alarms=[e.event.reason for e in entries if isinstance(e.event, ev.Alarm)][:SHOWN_ALARMS],
        growth=growth(entries),
        boundaries=_boundaries(entries),
    )


def write_report(report: Report, path: Path) -> None:
    """Write report.json.

    Raises:
        OSError: the disk refused.
    """
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def _steps(entries: Iterable[ev.Entry]) -> dict[Step, ev.StepCommitted]:
    """One commit of every step, in order: the highest epoch's, as first told."""
    steps: dict[Step, ev.StepCommitted] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.StepCommitted):
            known = steps.get(event.step)
            if known is None or event.epoch > known.epoch:
                steps[event.step] = event
    return dict(sorted(steps.items()))


def _span(entries: Iterable[ev.Entry]) -> Seconds:
    """From the first microbatch taken from the data to the last commit: no waiting for peers."""
    began = [entry.at for entry in entries if isinstance(entry.event, ev.Sourced)]
    ended = [entry.at for entry in entries if isinstance(entry.event, ev.StepCommitted)]
    return max(ended) - min(began) if began and ended else 0.0


def _boundaries(entries: Iterable[ev.Entry]) -> list[Boundary]:
    """Of every boundary the reading of the last step; of several replicas' the first told."""
    last: dict[int, ev.BoundaryRead] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.BoundaryRead):
            known = last.get(event.boundary)
            if known is None or event.step > known.step:
                last[event.boundary] = event
    return [Boundary(**msgspec.structs.asdict(last[boundary])) for boundary in sorted(last)]


def _microbatches(entries: Iterable[ev.Entry], kinds: Counter[type]) -> Microbatches:
    """Lost and duplicated: ids absent from, or twice in, what was committed.

    Only steps that every stage has committed are judged, and in each stage every step up
    to the last of those must be there: a run may be interrupted in the middle of a step.
    """
    covers: dict[Stage, dict[Step, ev.StepCommitted]] = defaultdict(dict)
    duplicated: dict[tuple[Stage, Step], int] = {}
    lost: dict[tuple[Stage, Step], int] = {}
    expected: dict[Step, int] = {}
    for entry in entries:
        event = entry.event
        if not isinstance(event, ev.StepCommitted):
            continue
        known = covers[event.stage].setdefault(event.step, event)
        if event.epoch < known.epoch:
            continue
        covers[event.stage][event.step] = event
        twice, absent = _judge(event)
        key = event.stage, event.step
        if event.epoch > known.epoch:  # what a rollback undid was not committed
            duplicated.pop(key, None)
            lost.pop(key, None)
        duplicated[key] = max(twice, duplicated.get(key, 0))
        lost[key] = max(absent, lost.get(key, 0))
        expected[event.step] = int.from_bytes(event.expected, "little").bit_count()
    last = min((max(steps) for steps in covers.values()), default=-1)
    whole = [step for step in expected if step <= last]
    gaps = sum(expected[step] for steps in covers.values() for step in whole if step not in steps)
    recalled = sum(
        1 for e in entries if isinstance(e.event, ev.Recalled) and e.event.answer == "none"
    )
    return Microbatches(
        committed=sum(expected[step] for step in whole),
        replayed=kinds[ev.Replayed],
        recalled=recalled,
        overlapped=kinds[ev.Subtracted],
        taken_up=_taken_up(entries),
        duplicated=sum(duplicated.values()),
        lost=sum(lost.values()) + gaps,
    )


def _taken_up(entries: Iterable[ev.Entry]) -> int:
    slots = 0
    for event in (entry.event for entry in entries):
        if isinstance(event, ev.DepositTaken | ev.DepositReturned):
            count = int.from_bytes(event.slots, "little").bit_count()
            slots += count if isinstance(event, ev.DepositTaken) else -count
    return slots


def _judge(event: ev.StepCommitted) -> tuple[int, int]:
    """How many slots stand twice in a cover, and how many of the expected nowhere."""
    union = twice = 0
    for share in event.cover:
        slots = int.from_bytes(share.slots, "little")
        twice |= union & slots
        union |= slots
    absent = int.from_bytes(event.expected, "little") & ~union
    return twice.bit_count(), absent.bit_count()


def _faults(entries: Iterable[ev.Entry]) -> dict[str, int]:
    fired = Counter(e.event.fault for e in entries if isinstance(e.event, ev.FaultFired))
    return dict(sorted(fired.items()))


def _busy_fraction(entries: Iterable[ev.Entry]) -> float | None:
    """Computing time of the peers' devices over the time that their seats were stepping."""
    computing: dict[PeerId, Seconds] = defaultdict(float)
    began: dict[PeerId, Seconds] = {}
    ended: dict[PeerId, Seconds] = {}
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.Activity):
            computing[entry.peer] += event.computing_seconds
            since = entry.at - event.seconds
            began[entry.peer] = min(since, began.get(entry.peer, since))
            ended[entry.peer] = entry.at
    spans = sum(ended[peer] - began[peer] for peer in ended)
    return sum(computing.values()) / spans if spans > 0 else None


def _answers(entries: Iterable[ev.Entry], kinds: Counter[type]) -> Answers:
    told = [entry.event for entry in entries if isinstance(entry.event, ev.Activity)]
    return Answers(
        offers=sum(each.offers for each in told) if told else None, busy=kinds[ev.BusySaid]
    )


def _spread(values: Sequence[Seconds]) -> Spread:
    if not values:
        return Spread(median=None, max=None)
    return Spread(median=statistics.median(values), max=max(values))
