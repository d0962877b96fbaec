"""What peers write into the directory: keys and strict values.

    p2ptrain/1/runs                 RunsRecord    which runs can be found here
    p2ptrain/1/<run id>/spec        the RunSpec   (run/spec encodes it; its digest is the id)
    p2ptrain/1/<run id>/stage/<s>   SeatRecord    a seat of its owner
    p2ptrain/1/<run id>/commit/<s>  CommitRecord  the last commit of its owner's seat

The directory has checked owner, signature and age; here the value is read strictly, and a
value that is not in order is as if it were not there. Nothing here is an authority.

Invariant: every record that is encoded here fits the directory's 4 kB.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import msgspec

from p2ptrain.errors import WireError
from p2ptrain.units import Chain, RunId, Stage, Step

ROOT_KEY = "p2ptrain/1"
RUNS_KEY = f"{ROOT_KEY}/runs"

RUNS_MOST = 16  # a peer speaks for its own run; a bootstrap may know a few
ADDRESSES_MOST = 8
ADDRESS_CHARACTERS_MOST = 256
NAME_CHARACTERS_MOST = 64

COUNTER_MOST = 2**62


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of all directory values."""


class RunEntry(Record, frozen=True, array_like=True):
    """A run and its name."""

    run: RunId
    name: str


class RunsRecord(Record, frozen=True):
    """The runs that its owner takes part in."""

    runs: tuple[RunEntry, ...]


class SeatRecord(Record, frozen=True):
    """A seat. ``rate``: microbatches per second; ``gone``: its owner has left it.

    ``memory_bytes`` and ``link_bytes_per_second``: what its owner gives, 0 if unmeasured.
    """

    state: Literal["joining", "serving", "draining", "gone"]
    version: Step
    rate: float
    queue: int
    incarnation: int
    memory_bytes: int = 0
    link_bytes_per_second: int = 0
    addresses: tuple[str, ...] = ()
    epoch: int = 0


class CommitRecord(Record, frozen=True):
    """The last step that its owner's seat has taken; ``chain`` lies behind it.

    ``loss``, ``val_loss``: nats per token of that step, for whoever watches the run.
    """

    epoch: int
    step: Step
    chain: Chain
    loss: float | None = None
    val_loss: float | None = None


R = TypeVar("R", bound=Record)


def spec_key(run: RunId) -> str:
    """Where the RunSpec lies."""
    return f"{ROOT_KEY}/{run}/spec"


def stage_key(run: RunId, stage: Stage) -> str:
    """Where the seats of a stage lie."""
    return f"{ROOT_KEY}/{run}/stage/{stage}"


def commit_key(run: RunId, stage: Stage) -> str:
    """Where a stage's commits lie."""
    return f"{ROOT_KEY}/{run}/commit/{stage}"


def encode_record(record: Record) -> bytes:
    """Encode a record of ours."""
    return msgspec.msgpack.encode(record)


def decode_record(value: bytes, kind: type[R]) -> R:
    """Read a record of another peer.

    Raises:
        WireError: it is not one of ``kind``, or says what cannot be.
    """
    try:
        record = msgspec.msgpack.decode(value, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"no {kind.__name__}: {error}") from error
    if not _sound(record):
        raise WireError(f"a {kind.__name__} out of range")
    return record


def _sound(record: Record) -> bool:
    match record:
        case SeatRecord():
            counters = (record.version, record.queue, record.incarnation, record.epoch)
            sizes = (record.memory_bytes, record.link_bytes_per_second)
            return (
                all(0 <= value <= COUNTER_MOST for value in (*counters, *sizes))
                and 0.0 <= record.rate <= 1e9  # noqa: PLR2004 - faster than any device; a NaN fails
                and len(record.addresses) <= ADDRESSES_MOST
                and all(len(each) <= ADDRESS_CHARACTERS_MOST for each in record.addresses)
            )
        case RunsRecord():
            return len(record.runs) <= RUNS_MOST and all(
                0 < len(each.run) <= NAME_CHARACTERS_MOST
                and each.run.isalnum()
                and len(each.name) <= NAME_CHARACTERS_MOST
                and each.name.isprintable()
                for each in record.runs
            )
        case CommitRecord():
            counted = (record.epoch, record.step)
            losses = (record.loss, record.val_loss)
            return all(0 <= value <= COUNTER_MOST for value in counted) and all(
                value is None or math.isfinite(value) for value in losses
            )
        case _:
            return True
