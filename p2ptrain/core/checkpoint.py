"""A checkpoint of one stage: two blobs, and what makes them one whole.

    <run>.stage-2.epoch-0.step-40.safetensors   the state as joiners get it
    <run>.stage-2.epoch-0.step-40.header        what it is of, its size and its Merkle root

The state is written first and the header last, so a header says: all of this was there. It
is believed only as far as it can be checked: its own digest, the run that it names, and the
root of the state beside it. Whatever a dying machine leaves behind therefore is either a
whole checkpoint or none.

Invariants:
    * what :func:`admit` and :func:`fits` let through is byte for byte what was saved, for this
      run, this stage and this step, whatever the files are called;
    * what stays on a disk is bounded: :func:`superseded` names everything else.

Refused: one file with the header inside. The state would then be no plain safetensors file
that any other program reads. Refused, too: trusting a rename alone; disks lie about order.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from p2ptrain.core.agreement import Position
from p2ptrain.core.merkle import chunk_size, chunks, leaf_digest, merkle_root
from p2ptrain.units import DIGEST_BYTES, Digest, PeerId, RunId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.units import Bytes

    Buffer = bytes | bytearray | memoryview

KEPT: Final = 2
"""Checkpoints of a stage: peers die while they save, and the one before is what all have."""

FORMAT: Final = 1
"""Of the header. Another one is not read: a checkpoint is short-lived, like its run."""

HEADER_MOST_BYTES: Final = 1 << 20
"""Members of the last record are the only long part; a thousand peers take 60 kB."""

STATE_SUFFIX: Final = ".safetensors"
HEADER_SUFFIX: Final = ".header"

_PERSON: Final = b"p2ptrain ckpt"
_NAME: Final = re.compile(
    r"(?P<run>[0-9a-f]{32})\.stage-(?P<stage>\d{1,4})\.epoch-(?P<epoch>\d{1,9})"
    r"\.step-(?P<step>\d{1,10})(?P<suffix>\.safetensors|\.header)"
)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a state is of. ``members``: the last step record's peers, for whoever audits it."""

    format: int
    run: RunId
    stage: Stage
    at: Position
    members: tuple[tuple[PeerId, ...], ...]
    size_bytes: int
    root: Digest


class Mark(NamedTuple):
    """Which checkpoint of its run and stage a file belongs to; orders oldest first."""

    epoch: int
    step: Step


def name_of(run: RunId, stage: Stage, mark: Mark, suffix: str) -> str:
    """The name of one of a checkpoint's two blobs."""
    return f"{run}.stage-{stage}.epoch-{mark.epoch}.step-{mark.step}{suffix}"


def listed(names: Iterable[str], run: RunId) -> dict[Stage, list[Mark]]:
    """Which checkpoints ``names`` have a header of, newest first; others' files are no matter."""
    found: dict[Stage, list[Mark]] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match and match["run"] == run and match["suffix"] == HEADER_SUFFIX:
            mark = Mark(int(match["epoch"]), Step(int(match["step"])))
            found.setdefault(Stage(int(match["stage"])), []).append(mark)
    return {stage: sorted(marks, reverse=True) for stage, marks in sorted(found.items())}


def superseded(names: Iterable[str], run: RunId, stage: Stage, written: Mark) -> list[str]:
    """The names to remove once ``written`` is safe, in the order in which to remove them.

    The newest older one is kept: peers that died while they saved have only that. One that is
    newer than what was just written was left when the run fell back behind it; it is kept only
    where there is no older one. Headers go first: a state without one is nothing.
    """
    mine: list[tuple[str, Mark]] = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match and match["run"] == run and int(match["stage"]) == stage:
            mine.append((name, Mark(int(match["epoch"]), Step(int(match["step"])))))
    whole = {mark for name, mark in mine if name.endswith(HEADER_SUFFIX)} | {written}
    others = sorted(whole - {written}, key=lambda mark: (mark < written, mark), reverse=True)
    kept = {written, *others[: KEPT - 1]}
    gone = [name for name, mark in mine if mark not in kept]
    return sorted(gone, key=lambda name: (name.endswith(STATE_SUFFIX), name))


def seal(header: Header) -> bytes:
    """The header's bytes, with their digest."""
    body = msgspec.msgpack.encode(header)
    return body + _digest(body)


def admit(sealed: Buffer, run: RunId, stage: Stage, mark: Mark) -> Header | str:
    """The header, or why it is none of ``stage`` of ``run`` at ``mark``."""
    header = _unseal(sealed)
    if isinstance(header, str):
        return header
    if (header.run, header.stage) != (run, stage):
        return f"a checkpoint of stage {header.stage} of run {header.run}"
    if (header.at.epoch, header.at.step) != mark:
        return f"a checkpoint of step {header.at.step}"
    return header


def _unseal(sealed: Buffer) -> Header | str:
    view = memoryview(sealed)
    if not DIGEST_BYTES < len(view) <= HEADER_MOST_BYTES:
        return f"a header of {len(view)} bytes"
    body = bytes(view[:-DIGEST_BYTES])
    if _digest(body) != view[-DIGEST_BYTES:]:
        return "a torn header"
    try:
        header = msgspec.msgpack.decode(body, type=Header)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "a header of another kind"
    if header.format != FORMAT:
        return f"a header of format {header.format}, not {FORMAT}"
    return header


def pieces(state: Buffer) -> Iterable[memoryview]:
    """The chunks of a state, as joiners get them: hash each with ``merkle.leaf_digest``."""
    view = memoryview(state).cast("B").toreadonly()
    return chunks(view, chunk_size(len(view)))


def root(state: Buffer) -> Digest:
    """The Merkle root that a header holds, in one go."""
    return merkle_root([leaf_digest(piece) for piece in pieces(state)])


def fits(header: Header, size_bytes: Bytes, found: Digest) -> bool:
    """Whether a state of this size and root is the one that ``header`` was written for."""
    return (header.size_bytes, header.root) == (size_bytes, found)


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=DIGEST_BYTES, person=_PERSON).digest()
