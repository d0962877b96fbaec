"""Which retained frames leave memory for the disk, and when.

    memory_bytes + what is still coming > bound, or much of the bound filled
        -> so many bytes should leave -> one frame after another, the least needed first

Intuition: a frame is kept to the step's end although hardly any is looked at again. What
the next stage has counted is needed only if a seat dies; what nobody has taken yet is
needed in any case. So a bound in memory costs little speed, while the disk holds the rest.

Invariants: nothing leaves while half of the bound suffices; while something is left to put
out, room for one more microbatch is made, or only microbatches that are being worked at
fill the bound (they go on, and leave).

Refused: least recently used. All frames of a step are used once, in the order of their ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.duties import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.core.duties import What
    from p2ptrain.units import Bytes, Microbatch

HIGH_SHARE = 0.75  # of the bound: the disk has time for a quarter of it before anybody waits
LOW_SHARE = 0.5  # of the bound: far enough below, so that frames do not leave one by one

_NEEDED_LEAST = (
    State.COUNTED,  # should a seat die
    State.COMPUTED,
    State.HELD,
    State.WAITING,
    State.RECALLING,  # soon, perhaps
    State.LOCATING,
    State.IDLE,
    State.ASKING,
    State.OFFERED,
    State.SENT,  # is being read this instant: its memory is free only when it has gone out
)
_RANKS = {state: rank for rank, state in enumerate(_NEEDED_LEAST)}


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame in memory: of what, how far its custody is (None: over), how large."""

    work: Microbatch
    what: What
    state: State | None
    size_bytes: Bytes


def excess_bytes(
    *, memory_bytes: Bytes, coming_bytes: Bytes, bound_bytes: Bytes, begun: bool = False
) -> Bytes:
    """How much should leave memory now; 0 if nothing need.

    Args:
        memory_bytes: what is retained in memory.
        coming_bytes: what all that is here or offered, and one more, will leave there.
        bound_bytes: what may lie in memory.
        begun: frames are leaving already; they go on until half of the bound is free.
    """
    crowded = memory_bytes + coming_bytes > bound_bytes
    if not (begun or crowded) and memory_bytes <= HIGH_SHARE * bound_bytes:
        return 0
    target = max(0, min(int(LOW_SHARE * bound_bytes), bound_bytes - coming_bytes))
    return max(0, memory_bytes - target)


def leaves_first(frames: Iterable[Frame]) -> Frame | None:
    """The frame that is needed least: by its custody, then the oldest."""
    return min(frames, key=_need, default=None)


def _need(frame: Frame) -> tuple[int, Microbatch, What]:
    rank = -1 if frame.state is None else _RANKS[frame.state]
    return rank, frame.work, frame.what
