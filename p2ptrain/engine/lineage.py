"""Which lineage this peer is of, and how it comes to another: told, checked, taken over.

    we decide (engine/falling), or a rollback is heard that beats ours
        --> everybody linked is told --> all seats are given up, whatever they count
        --> each stage is taken again: from who serves it there, else from where it begins
    a link comes up, or a heartbeat names a lower epoch --> that peer is told
    what we hear is in doubt (core/lineage: doubt) --> an alarm, and it is looked at again

Intuition: who was frozen or cut off while the others fell back need not find out by himself.
The first to hear him tells him, and he comes as a newcomer would.

Invariants:
    * only a signed rollback, told by somebody known, moves anything, and only to a lineage that
      beats ours: whatever is told in whatever order, all end in the same one;
    * while every stage is served here one peer's word moves nobody, and never to a history that
      we know was another: with bad lines, or in bad faith, it would take a sound run back;
    * nothing of another lineage is counted: its positions differ, and its seats are not seen.

Refused: asking the others whether to fall back. Who has a better reason falls back higher,
and all follow that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.lineage import (
    LEAP_MOST,
    Rollback,
    admits,
    beats,
    doubt,
    rollback_bytes,
    unserved,
)
from p2ptrain.engine.surroundings import genesis
from p2ptrain.errors import MisbehaviourError
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.units import Chain, PeerId, Step
    from p2ptrain.wire.messages import Heartbeat

PAST_MOST = 4096  # steps whose chains are remembered: 32 bytes each, and no rollback goes further
WITNESSES = 2  # peers of another lineage: more than one must stand there for it to be whole


class Lineage:
    """The lineage of one node. ``root``: where it begins."""

    def __init__(self, node: Node) -> None:
        self.root: Position = genesis(genesis_chain(node.run_id))
        self._node = node
        self._proof: Rollback | None = None
        self._past: dict[Step, Chain] = {self.root.step: self.root.chain}
        self._doubted: dict[PeerId, Rollback] = {}  # not followed yet; who tells us has a link
        self._told = ""  # the last doubt

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
        self._judge(peer, rollback)

    def look(self) -> None:
        """Call every second or so: what was doubted may be seen to be true by now."""
        linked = self._node.links.peers()
        self._doubted = {peer: told for peer, told in self._doubted.items() if peer in linked}
        for peer, rollback in self._doubted.copy().items():
            if not self._node.ended.is_set():
                self._judge(peer, rollback)

    def stepped(self, at: Position) -> None:
        """A seat of ours has come to ``at``."""
        self._past[at.step] = at.chain
        if len(self._past) > PAST_MOST:
            del self._past[next(iter(self._past))]

    @property
    def past(self) -> Mapping[Step, Chain]:
        """With which chain we have been at a step, where that can only have been one."""
        return self._past if self._node.spec.sync.agreement == "bitwise" else {}

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

    def _judge(self, peer: PeerId, rollback: Rollback) -> None:
        """Follow it, or keep it and say why not: once for each reason."""
        self._doubted.pop(peer, None)
        if not beats(rollback.at, self.root):
            return
        why = self._doubt(rollback.at)
        if not why:
            self._adopt(rollback, f"as {rollback.peer} has decided")
            return
        self._doubted[peer] = rollback
        if why != self._told:
            self._told, step = why, rollback.at.step
            reason = f"{rollback.peer} has the run begin again at step {step}; we go on: {why}"
            self._node.emit(ev.Alarm(reason=reason))

    def _doubt(self, at: Position) -> str:
        node = self._node
        stages = node.spec.cut.stages
        known = self.past.get(at.step)
        lost = unserved(node.roster.views(), stages)
        return doubt(self.root, at, lost=lost, there=self._stands(at.epoch), known=known)

    def _stands(self, epoch: int) -> bool:
        """Whether the stages around our seats, or all, are served in ``epoch``, at first hand."""
        node, stages = self._node, set(range(self._node.spec.cut.stages))
        near = {stage + offset for stage in node.seats for offset in (-1, 0, 1)} or stages
        seats = [
            view
            for view in node.roster.of_all_epochs()
            if view.epoch >= epoch and view.state != "joining" and node.roster.counts(view.peer)
        ]
        whole = {view.stage for view in seats} >= near & stages
        return whole and len({view.peer for view in seats} - {node.me}) >= WITNESSES

    def _adopt(self, rollback: Rollback, reason: str) -> None:
        node = self._node
        stood = [seat.position for seat in node.seats.values() if seat.position is not None]
        left = max(stood, key=lambda at: (at.epoch, at.step), default=self.root)
        self.root, self._proof = rollback.at, rollback
        self._told = ""
        self._past = {step: chain for step, chain in self._past.items() if step < self.root.step}
        self._past[self.root.step] = self.root.chain
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
