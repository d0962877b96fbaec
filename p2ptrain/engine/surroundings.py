"""What a new seat is given: what all seats of a peer share, and what its own place is.

Values only. A seat is assembled from them in `engine/seat`, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Position
from p2ptrain.core.sizes import microbatch_token_bytes, most_boundary_bytes
from p2ptrain.engine.items import Place
from p2ptrain.units import Step

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable, Coroutine

    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.distrust import Distrust
    from p2ptrain.engine.post import Post
    from p2ptrain.engine.roster import Roster
    from p2ptrain.observe import events as ev
    from p2ptrain.ports import Signer, Spill
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Chain, PeerId, RunId, Seconds, Stage
    from p2ptrain.wire.limits import FrameLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all seats of a peer share."""

    run: RunId
    spec: RunSpec
    incarnation: int
    signer: Signer
    limits: FrameLimits
    post: Post
    roster: Roster
    emit: ev.Emit
    rng: random.Random
    wake: Callable[[], None]  # there may be work to compute
    spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
    backlog: Callable[[], Seconds]  # of all seats of this peer
    committed: Callable[[Stage, Done], None]
    next_seq: Callable[[], int]  # of bitmaps: a stage left and taken again goes on counting
    distrust: Distrust
    spill: Spill | None = None  # where frames go when memory is short


def frames_of_a_step(spec: RunSpec, stage: Stage) -> Bytes:
    """What a seat keeps that computes a whole step alone: as many bytes must have a place."""
    most = spec.batch.microbatches + spec.evaluation.microbatches
    return most * retained_bytes_each(spec, stage)


def retained_bytes_each(spec: RunSpec, stage: Stage) -> Bytes:
    """What a microbatch leaves at a stage at most: a forward, a gradient, or both."""
    last, tokens = spec.cut.stages - 1, microbatch_token_bytes(spec)
    forward = tokens + most_boundary_bytes(spec, stage, "forward") if stage < last else 0
    gradient = most_boundary_bytes(spec, stage - 1, "backward") if stage > 0 else 0
    return forward + gradient


def place_of(spec: RunSpec, me: PeerId, stage: Stage) -> Place:
    """What the seat's pipeline must know."""
    return Place(
        me=me,
        stage=stage,
        is_last=stage == spec.cut.stages - 1,
        token_bytes=microbatch_token_bytes(spec),
        retained_bytes_each=retained_bytes_each(spec, stage),
        retained_bound=spec.limits.retained_bytes,
    )


def genesis(chain: Chain) -> Position:
    """The position of a run's first step."""
    return Position(epoch=0, step=Step(0), chain=chain)
