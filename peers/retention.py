"""Where a peer's retained frames go when memory is short; whether they, and a seat, fit at all.

    base folder -> a folder of this process alone, locked, gone when it ends
                   (after a kill -9: when the next peer of the same base starts)

Invariants: a peer that cannot keep the frames of a whole step of its stage is refused before
it takes a seat: it would say BUSY for ever if its stage-mates died; so is one whose memory holds
no seat; a folder that cannot be written is told once, and refused only where memory alone does
not suffice.

Refused: the system's folder for temporary files. It is often memory.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from p2ptrain.core.assignment import expect_stage
from p2ptrain.data.spill import DiskSpill
from p2ptrain.engine.surroundings import frames_of_a_step
from p2ptrain.errors import UserError
from p2ptrain.net.scratch import scratch_folder
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from p2ptrain.ports import Compute, Spill
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes

log = logging.getLogger(__name__)

MEGABYTE = 10**6


@contextmanager
def spilling(base: Path | None, bound_bytes: Bytes) -> Iterator[Spill | None]:
    """A disk for frames; None, with a warning where one was wanted, if there is none."""
    if base is None or bound_bytes == 0:
        yield None
        return
    with ExitStack() as stack:
        spill = None
        try:
            folder = stack.enter_context(scratch_folder(base))
        except OSError as error:
            log.warning("%s: no frames can be spilled here (%s)", base, error.strerror)
        else:
            spill = DiskSpill(folder, bound_bytes=bound_bytes)
            stack.callback(spill.close)
        yield spill


def check_frames_fit(spec: RunSpec, stage: Stage | None, spill: Spill | None) -> None:
    """Whether this peer could keep a whole step of its stage, or of any that it may take.

    Raises:
        UserError: memory and disk together cannot, or the run has no such stage.
    """
    if stage is not None:
        expect_stage(stage, spec.cut.stages)
    stages = range(spec.cut.stages) if stage is None else (stage,)
    needed, most = max((frames_of_a_step(spec, Stage(each)), each) for each in stages)
    disk, memory = 0 if spill is None else spill.bound_bytes, spec.limits.retained_bytes
    if needed > memory + disk:
        missing = -(-(needed - memory) // MEGABYTE)
        raise UserError(
            f"a step leaves {needed / MEGABYTE:,.1f} MB of frames at stage {most}; in memory the "
            f"run keeps {memory / MEGABYTE:,.1f} MB (limits.retained_bytes), on disk this peer "
            f"{disk / MEGABYTE:,.1f} MB: give --max-spill {missing}MB or more"
        )


def check_seat_fits(compute: Compute, spec: RunSpec, stage: Stage | None) -> None:
    """Whether this peer's memory holds a seat of its stage, or of any that it may take.

    Raises:
        UserError: it does not.
    """
    stages = range(spec.cut.stages) if stage is None else (stage,)
    needed, least = min((compute.seat_bytes(Stage(each)), each) for each in stages)
    if needed > compute.memory_bytes:
        raise UserError(
            f"a seat of stage {least} takes {needed / MEGABYTE:,.1f} MB"
            f"{', and none takes less' if stage is None else ''}; this peer gives "
            f"{compute.memory_bytes / MEGABYTE:,.3f} MB: raise --max-memory"
        )
