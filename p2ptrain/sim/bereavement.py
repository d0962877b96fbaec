"""Which stages have lost what nobody can give back, as the event log tells.

A stage is bereft when its newest state died with its last holder. Then a run cannot end by
itself, and no checker blames the protocol: nobody alive has anything to begin from.

    nobody alive serves it, and the run has begun to commit
    somebody has committed a step there that nobody alive has
    others are two steps further than anybody alive there: the sum in between is gone

One step behind is no bereavement: whoever is there has the weights from which the missing
sum follows, and the neighbours still hold what went into it.

Refused: asking the peers. The dead do not answer, and a bug would answer wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable


def bereft_stages(entries: Iterable[ev.Entry], stages: int) -> list[Stage]:
    """The stages whose newest state nobody who lives has."""
    newest = dict.fromkeys(map(Stage, range(stages)), 0)
    held: dict[Stage, dict[PeerId, int]] = {stage: {} for stage in newest}
    for entry in entries:
        event = entry.event
        match event:
            case ev.SeatOpened(stage=stage, version=version):
                held[stage][entry.peer] = version
            case ev.StepCommitted(stage=stage, step=step):
                held[stage][entry.peer] = step + 1
                newest[stage] = max(newest[stage], step + 1)
            case ev.SeatClosed(stage=stage):
                held[stage].pop(entry.peer, None)
            case ev.PeerStopped():
                _forget(held, entry.peer)
            case ev.FaultFired(fault="kill", target=target):
                _forget(held, PeerId(target))
            case _:
                pass
    furthest = max(newest.values(), default=0)
    return [
        stage
        for stage, versions in held.items()
        if furthest and (not versions or max(versions.values()) < max(newest[stage], furthest - 1))
    ]


def _forget(held: dict[Stage, dict[PeerId, int]], peer: PeerId) -> None:
    for versions in held.values():
        versions.pop(peer, None)
