"""Whom this peer does not listen to any more, because there is proof that it lied.

Proof is two statements under one signature that cannot both be true. A wrong signature is
none: whoever passed it on is to blame, and loses its link. Who is not listened to falls
silent for us, is suspected like any silent peer, and everything goes around it.

Invariants: nobody is named here without proof; who is stays until we restart. We sign one SUM for
each place ourselves, whichever seat of ours comes to it: one that begins its step again
(engine/rewinding) may come to other bits where arithmetic differs.

Bounds: one entry for each peer that had a seat, since only their signatures are looked at; of our
own SUMs those of OURS_STEPS steps.

Refused: passing the proof on. Everybody gets both statements, or is not misled by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.units import PeerId, Stage

OURS_STEPS = 3
"""The present step and the last are talked of (engine/sums); one more for who takes one late."""


class Distrust:
    """Liars, by proof. ``emit`` hears of each once."""

    def __init__(self, emit: ev.Emit) -> None:
        self._emit = emit
        self._liars: set[PeerId] = set()
        self._ours: dict[tuple[Position, Stage], Sum] = {}

    def once(self, whole: Sum, sign: Callable[[], Sum]) -> Sum:
        """What we have signed for the place of ``whole``, or what ``sign`` makes of it now."""
        oldest = whole.at.step - OURS_STEPS + 1
        self._ours = {place: one for place, one in self._ours.items() if place[0].step >= oldest}
        place = (whole.at, whole.stage)
        if place not in self._ours:
            self._ours[place] = sign()
        return self._ours[place]

    def catch(self, peer: PeerId, proof: str) -> None:
        """``peer`` has lied."""
        if peer not in self._liars:
            self._liars.add(peer)
            self._emit(ev.FrameRefused(peer=peer, reason=proof))
            self._emit(ev.Alarm(reason=f"{peer} {proof}: it is not listened to any more"))

    def __contains__(self, peer: object) -> bool:
        return peer in self._liars
