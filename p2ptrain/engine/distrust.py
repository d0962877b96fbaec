"""Whom this peer does not listen to any more, because there is proof that it lied.

Proof is two statements under one signature that cannot both be true. A wrong signature is
none: whoever passed it on is to blame, and loses its link. Who is not listened to falls
silent for us, is suspected like any silent peer, and everything goes around it.

Invariant: nobody is named here without proof; who is stays until we restart.

Bound: one entry for each peer that had a seat, since only their signatures are looked at.

Refused: passing the proof on. Everybody gets both statements, or is not misled by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from p2ptrain.units import PeerId


class Distrust:
    """Liars, by proof. ``emit`` hears of each once."""

    def __init__(self, emit: ev.Emit) -> None:
        self._emit = emit
        self._liars: set[PeerId] = set()

    def catch(self, peer: PeerId, proof: str) -> None:
        """``peer`` has lied."""
        if peer not in self._liars:
            self._liars.add(peer)
            self._emit(ev.FrameRefused(peer=peer, reason=proof))
            self._emit(ev.Alarm(reason=f"{peer} {proof}: it is not listened to any more"))

    def __contains__(self, peer: object) -> bool:
        return peer in self._liars
