"""How long a stage needed after a fault: from the fault to its next sign of progress.

    a replica fails (kill, freeze, p2pd) the next microbatch that *another* seat of a stage it
                                        served has counted
    more fails (a stage, a partition)   the next commit, of that stage if one is named

Invariants: a fault after which nothing more happened has no length (the run ended, or it
never recovered: the loss of a run shows in its steps, not here); of a peer with several
seats the slowest stage counts.

Times of different peers are compared: the events come from one machine, or one simulation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from p2ptrain.units import Seconds, Stage

REPLICA_FAULTS = frozenset({"kill", "freeze", "daemon-death"})
SWARM_FAULTS = frozenset(
    {"last-replica", "stage-loss", "partition", "bootstrap-death", "swarm-death"}
)
STAGE_WORD = "stage "


def recovery_seconds(entries: Sequence[ev.Entry]) -> list[Seconds]:
    """One length for every fault that was recovered from, in the order of the faults."""
    seats: dict[PeerId, set[Stage]] = {}
    lengths: list[Seconds] = []
    for index, entry in enumerate(entries):
        event = entry.event
        if isinstance(event, ev.SeatOpened):
            seats.setdefault(entry.peer, set()).add(event.stage)
        elif isinstance(event, ev.SeatClosed):
            seats.get(entry.peer, set()).discard(event.stage)
        elif isinstance(event, ev.FaultFired):
            lengths += _after(event, entry.at, seats, entries[index + 1 :])
    return lengths


def _after(
    fault: ev.FaultFired,
    at: Seconds,
    seats: dict[PeerId, set[Stage]],
    later: Sequence[ev.Entry],
) -> Iterator[Seconds]:
    if fault.fault in REPLICA_FAULTS:
        served = sorted(seats.get(PeerId(fault.target), set()))
        ends = [_next_count(stage, fault.target, later) for stage in served]
        if ends and None not in ends:
            yield max(end - at for end in ends if end is not None)
    elif fault.fault in SWARM_FAULTS:
        end = _next_commit(fault.target, later)
        if end is not None:
            yield end - at


def _next_count(stage: Stage, without: str, later: Iterable[ev.Entry]) -> Seconds | None:
    for entry in later:
        event = entry.event
        if isinstance(event, ev.SlotCounted) and event.stage == stage and entry.peer != without:
            return entry.at
    return None


def _next_commit(target: str, later: Iterable[ev.Entry]) -> Seconds | None:
    stage = target.removeprefix(STAGE_WORD) if target.startswith(STAGE_WORD) else None
    for entry in later:
        event = entry.event
        if isinstance(event, ev.StepCommitted) and stage in (None, str(event.stage)):
            return entry.at
    return None
