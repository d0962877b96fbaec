"""Words that everybody uses: identifiers and units.

Identifiers are NewTypes, so that a stage cannot be passed where a step is meant;
they cost nothing at run time. Lengths of time are seconds, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, NewType, TypeAlias

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58 (``12D3Koo...``); it contains the peer's public key."""

RunId = NewType("RunId", str)
"""Digest of a RunSpec, in hex: the name of one training job."""

Stage = NewType("Stage", int)
"""A contiguous slice of the layers, counted from 0 at the data."""

Step = NewType("Step", int)
"""One optimizer step, t; version t-1 of the weights enters it."""

Slot = NewType("Slot", int)
"""A microbatch's place in its step: 0..G-1 train, G..G+E-1 evaluate."""

Chain = NewType("Chain", bytes)
"""Hash of all committed steps so far (32 bytes)."""

Digest = NewType("Digest", bytes)
"""A BLAKE2b digest of 32 bytes."""

Seconds: TypeAlias = float
Bytes: TypeAlias = int

DIGEST_BYTES = 32


class Microbatch(NamedTuple):
    """The unit that flows: slot ``slot`` of step ``step``. Orders oldest first.

    A tuple: it is the key of everything, and a dataclass is hashed and compared in Python.
    """

    step: Step
    slot: Slot


@dataclass(frozen=True, slots=True, order=True)
class Seat:
    """One peer serving one stage; a peer may hold several."""

    peer: PeerId
    stage: Stage
