"""Which lineage this peer is of, and how it comes to another: told, checked, taken over.

    we decide (engine/falling), or a rollback is heard that beats ours
        --> everybody linked is told --> all seats are given up, whatever they count
        --> each stage is taken again: from who serves it there, else from where it begins
    a link comes up, or a heartbeat names a lower epoch --> that peer is told

Intuition: who was frozen or cut off while the others fell back need not find out by himself.
The first to hear him tells him, and he comes as a newcomer would.

Invariants:
    * only a signed rollback of somebody known moves anything, and only to a lineage that beats
      ours: whatever is told in whatever order, all end in the same one;
    * nothing of another lineage is counted: its positions differ, and its seats are not seen.

Refused: asking the others whether to fall back. Who has a better reason falls back higher,
and all follow that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.lineage import LEAP_MOST, Rollback, admits, beats, rollback_bytes
from p2ptrain.engine.surroundings import genesis
from p2ptrain.errors import MisbehaviourError
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.units import PeerId
    from p2ptrain.wire.messages import Heartbeat


class Lineage:
    """The lineage of one node. ``root``: where it begins."""

    def __init__(self, node: Node) -> None:
        self.root: Position = genesis(genesis_chain(node.run_id))
        self._node = node
        self._proof: Rollback | None = None

    def declare(self, at: Position, reason: str) -> None:
        """Let the run begin again at ``at``: decided here, for all."""
        unsigned = Rollback(at=at, peer=self._node.me, signature=b"")
        signature = self._node.world.signer.sign(rollback_bytes(self._node.run_id, unsigned))
        self._adopt(msgspec.structs.replace(unsigned, signature=signature), reason)

    def heard(self, peer: PeerId, rollback: Rollback) -> None:
        """``peer`` tells of a rollback: ours to take over, old, or none at all.

        Raises:
            MisbehaviourError: it is not signed by whom it names, or leaps too far.
        """
        node, at = self._node, rollback.at
        if node.seats and peer not in node.roster.everyone():
            return  # a stranger to everybody here
        if node.ended.is_set() or not beats(at, self.root):
            return
        if at.epoch > self.root.epoch + LEAP_MOST:
            raise MisbehaviourError(f"a rollback to epoch {at.epoch}", peer=peer)
        signed = rollback_bytes(node.run_id, rollback)
        if not node.world.signer.verify(rollback.peer, signed, rollback.signature):
            raise MisbehaviourError("a rollback with a wrong signature", peer=peer)
        self._adopt(rollback, f"as {rollback.peer} has decided")

    def up(self, peer: PeerId) -> None:
        """A link to ``peer`` is up: it may not know where we are."""
        if self._proof is not None:
            self._node.mail.tell(peer, self._proof)

    def told(self, peer: PeerId, message: Heartbeat) -> None:
        """``peer`` says where it stands: who is of a lower epoch has missed something."""
        if any(status.epoch < self.root.epoch for status in message.seats):
            self.up(peer)

    def admits(self, at: Position) -> bool:
        """Whether a state of ``at`` belongs to our history."""
        return admits(self.root, at)

    def begins(self, at: Position) -> bool:
        """Whether ``at`` is where our lineage begins, in whatever epoch its state was taken."""
        return (at.step, at.chain) == (self.root.step, self.root.chain)

    def _adopt(self, rollback: Rollback, reason: str) -> None:
        node = self._node
        stood = [seat.position for seat in node.seats.values() if seat.position is not None]
        left = max(stood, key=lambda at: (at.epoch, at.step), default=self.root)
        self.root, self._proof = rollback.at, rollback
        event = ev.RolledBack(
            epoch=self.root.epoch,
            version=self.root.step,
            chain=self.root.chain,
            discarded_epoch=left.epoch,
            discarded_version=left.step,
            discarded_chain=left.chain,
            reason=reason,
        )
        node.emit(event)
        node.mail.tell_all(node.links.peers(), rollback)
        node.begin_anew()
