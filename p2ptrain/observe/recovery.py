"""How long a stage needed after a fault: from the fault to its next sign of progress.

    a replica fails (kill, freeze, p2pd) the next microbatch that *another* seat of a stage it
                                        served has counted
    a stage loses its replicas          from the death of the last of them to the stage's next
                                        commit by somebody else
    the whole swarm dies                likewise, to the next commit by who was started again
    more fails (a partition)            the next commit

Invariants: a fault after which nothing more happened has no length (the run ended, or it
never recovered: the loss of a run shows in its steps, not here); of a peer with several
seats the slowest stage counts; what the dead said last, or those did who were to die and
still lived, is no recovery; the deaths that a loss consists of are no faults of their own.

Times of different peers are compared: the events come from one machine, or one simulation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from p2ptrain.units import Seconds

REPLICA_FAULTS = frozenset({"kill", "freeze", "daemon-death"})
SWARM_FAULTS = frozenset(
    {"last-replica", "stage-loss", "partition", "bootstrap-death", "swarm-death"}
)
DEADLY_FAULTS = frozenset({"last-replica", "stage-loss", "swarm-death"})
STAGE_WORD = "stage "


def recovery_seconds(entries: Sequence[ev.Entry]) -> list[Seconds]:
    """One length for every fault that was recovered from, in the order of the faults."""
    seats: dict[PeerId, set[Stage]] = {}
    dying: set[PeerId] = set()  # of a loss that has been told
    lengths: list[Seconds] = []
    for index, entry in enumerate(entries):
        event = entry.event
        if isinstance(event, ev.SeatOpened):
            seats.setdefault(entry.peer, set()).add(event.stage)
        elif isinstance(event, ev.SeatClosed):
            seats.get(entry.peer, set()).discard(event.stage)
        elif isinstance(event, ev.PeerStarted):
            dying.discard(entry.peer)
        elif isinstance(event, ev.FaultFired):
            if event.fault != "kill" or event.target not in dying:
                lengths += _after(event, entry.at, seats, entries[index + 1 :])
            dying |= _doomed(event, seats)
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
        length = _until_commit(_stage_of(fault), at, _doomed(fault, seats), later)
        if length is not None:
            yield length


def _doomed(fault: ev.FaultFired, seats: dict[PeerId, set[Stage]]) -> set[PeerId]:
    """Who is to die of ``fault``; the deaths follow it."""
    stage = _stage_of(fault)
    if fault.fault not in DEADLY_FAULTS:
        return set()
    return {peer for peer, held in seats.items() if stage in held or (stage is None and held)}


def _next_count(stage: Stage, without: str, later: Iterable[ev.Entry]) -> Seconds | None:
    for entry in later:
        event = entry.event
        if isinstance(event, ev.SlotCounted) and event.stage == stage and entry.peer != without:
            return entry.at
    return None


def _until_commit(
    stage: Stage | None, at: Seconds, doomed: set[PeerId], later: Iterable[ev.Entry]
) -> Seconds | None:
    """From the last death among the ``doomed`` to a commit of ``stage``, or any, by another."""
    for entry in later:
        match entry.event:
            case ev.FaultFired(fault="kill", target=target) if target in doomed:
                at = entry.at
            case ev.PeerStarted():
                doomed.discard(entry.peer)
            case ev.StepCommitted() as commit if entry.peer not in doomed:
                if stage in (None, commit.stage):
                    return entry.at - at
            case _:
                pass
    return None


def _stage_of(fault: ev.FaultFired) -> Stage | None:
    number = fault.target.removeprefix(STAGE_WORD)
    return Stage(int(number)) if fault.target.startswith(STAGE_WORD) else None
