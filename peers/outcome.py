"""What peers leave behind, and whether it fits together.

Each peer writes one JSON object when it ends in order. From outside they must agree: all
replicas of a stage hold the same tensors, and the stages together make a whole model.
Weights are compared by digest; no byte of them is moved.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.digest import combine_digests
from p2ptrain.errors import InternalError, LostError
from p2ptrain.units import Bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from p2ptrain.engine.terms import NodeResult
    from p2ptrain.units import PeerId, RunId

RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024
"""getrusage counts bytes on macOS, KiB elsewhere."""


class PeerOutcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A peer's ``--result`` file. ``versions``: by stage; ``tensor_digests``: hex, by name."""

    peer: str
    run: str
    finished: bool
    versions: dict[int, int]
    tensor_digests: dict[str, str]
    chain: str
    false_suspicions: int
    peak_rss_bytes: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmOutcome:
    """What all peers together leave.

    ``weights_digest``: of the whole model, None if a stage was left by nobody.
    ``disagreements``: tensors of which replicas hold different bytes.
    """

    weights_digest: str | None
    disagreements: Sequence[str]
    replicas: tuple[int, ...]
    finished: int
    false_suspicions: int


def read_outcome(path: Path) -> PeerOutcome | None:
    """What a peer left in ``path``; None if it ended otherwise.

    Raises:
        InternalError: the file is not a peer's.
    """
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=PeerOutcome)
    except msgspec.DecodeError as error:
        raise InternalError(f"{path}: {error}") from error


def together(outcomes: Iterable[PeerOutcome], *, stages: int) -> SwarmOutcome:
    """Put the outcomes of a run with so many stages together."""
    tensors: dict[str, str] = {}
    disagreements: list[str] = []
    replicas = [0] * stages
    finished, false_suspicions = 0, 0
    for outcome in sorted(outcomes, key=lambda outcome: outcome.peer):
        false_suspicions += outcome.false_suspicions
        if not outcome.finished:
            continue
        finished += 1
        for stage in outcome.versions:
            replicas[stage] += 1
        for name, digest in outcome.tensor_digests.items():
            if tensors.setdefault(name, digest) != digest:
                disagreements.append(name)
    return SwarmOutcome(
        weights_digest=combine_digests(tensors) if all(replicas) else None,
        disagreements=sorted(set(disagreements)),
        replicas=tuple(replicas),
        finished=finished,
        false_suspicions=false_suspicions,
    )


def outcome_of(peer: PeerId, run_id: RunId, result: NodeResult) -> PeerOutcome:
    """What this peer leaves for whoever watches it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return PeerOutcome(
        peer=peer,
        run=run_id,
        finished=result.finished,
        versions={int(stage): int(version) for stage, version in result.versions.items()},
        tensor_digests=dict(result.tensor_digests),
        chain=result.chain.hex(),
        false_suspicions=result.false_suspicions,
        peak_rss_bytes=usage.ru_maxrss * RSS_UNIT_BYTES,
    )


def tell_result(path: Path | None, left: PeerOutcome, lost: str) -> None:
    """Write what this peer leaves, where somebody wants it.

    Raises:
        LostError: the run was given up.
    """
    if path is not None:
        path.write_bytes(msgspec.json.encode(left))
    if lost:
        raise LostError(f"the run cannot go on: {lost}")
