"""When the replicas of a stage take over one state, and whose: agreement "canonical".

Intuition: with one sum per step, replicas of different devices still drift apart, because
each rounds its own update. The drift is a random walk of roundings; taking one replica's
state now and then sets it to zero (but for what sync.adoption leaves out, which is bounded).
Whose does not matter, so a hash says: over the step record, which all replicas of a chain have
alike, and drawn anew each time, so that nobody shapes the model by being first for ever.

Where the first in the order is lost, replicas ask each other, and who is asked may be adopting
as well. It is waited for where the order says so: of two that ask each other always the later
in it waits, the earlier is denied and goes on.

Invariants:
    * equal chains give equal orders; the last adoption comes after the last update, so that a
      run ends with one state for each stage;
    * whoever asks whom: nobody waits in a circle. Its earliest would wait for somebody who asks
      only those before it, and one of these would be in the circle.

Refused: the mean of all states. It takes a reduction of weights as exact as that of
gradients, to gain what the next update rounds away.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from p2ptrain.units import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from p2ptrain.core.agreement import Position
    from p2ptrain.run import RunSpec
    from p2ptrain.units import PeerId, Stage, Step

GENESIS: Final = Digest(bytes(DIGEST_BYTES))
"""Names the state that the seed gives, which all replicas have before any is adopted."""

_SCORE_BYTES = 8  # ties need 2^32 replicas


def adopts_at(spec: RunSpec, version: Step) -> bool:
    """Whether replicas take over one state when they have come to ``version``."""
    if spec.sync.agreement != "canonical" or version == 0:  # at genesis all have the seed's
        return False
    return version % spec.sync.canonical_steps == 0 or version == spec.optimizer.steps


def differs_at(spec: RunSpec, version: Step) -> bool:
    """Whether a state is adopted at ``version``, as its difference to the last one.

    Not after the last update: nothing follows that could send what the difference left out.
    """
    lossy = spec.sync.adoption != "exact" and version != spec.optimizer.steps
    return lossy and adopts_at(spec, version)


def adoption_order(at: Position, stage: Stage, members: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """Whose state replicas of ``stage`` that stand at ``at`` take; who is gone is passed over.

    ``members``: of the stage, in the record of the step before.
    """

    def score(peer: PeerId) -> tuple[bytes, PeerId]:
        text = f"{at.epoch}/{at.step}/{stage}/{peer}".encode()
        key = blake2b(text, key=at.chain, digest_size=_SCORE_BYTES)
        return key.digest(), peer

    return tuple(sorted(set(members), key=score))


def waits(order: Sequence[PeerId], peer: PeerId, *, on: PeerId, asked: Iterable[PeerId]) -> bool:
    """Whether ``peer`` may wait for what ``on``, which asks ``asked`` just now, is adopting.

    It may if it comes later in ``order`` than ``on``, or than all whom ``on`` asks. Strangers,
    as joiners and buddies are, come after all of the order.
    """
    places = {each: place for place, each in enumerate(order)}
    its, theirs = (places.get(each, len(order)) for each in (peer, on))
    sources = [places.get(each, len(order)) for each in asked]
    return its > theirs or (bool(sources) and its > max(sources))
