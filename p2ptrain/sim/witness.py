"""I6: nothing unsigned, forged or replayed is acted on. Judged from the bytes on the wire.

The witness hears all that is sent and all that arrives (the network's tap), checks every
signature itself, and looks at what peers do next:

    a plan, or a Nack, names a share of another peer that this peer never signed
    it names an older bitmap of a peer than one that its sender had got
    somebody calls a peer that exists in forged records alone

Facts are the lies that were told. Own shares of a leader never cross the wire; the cover
of every commit is checked against its owner's log all the same (I1).

Refused: to ask the engine whether it refused. It could refuse and act all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.core.agreement import Bitmap, Nack, Plan
from p2ptrain.core.ledger import bitmap_bytes
from p2ptrain.sim.points import read_frames
from p2ptrain.sim.verdicts import Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position, Share
    from p2ptrain.ports import Signer
    from p2ptrain.sim.points import Side
    from p2ptrain.units import PeerId, Seconds, Stage

    _Arrival: TypeAlias = tuple[Seconds, int, PeerId]  # when, which sequence, from whom
    _Account: TypeAlias = tuple[PeerId, int, Position, Stage]  # of an accumulator: whose, where

READING_SECONDS = 0.2
"""From the wire to the machine: a few turns of a loop that may compute in between."""

TELLING = (b"Bitmap", b"Nack", b"Plan")


class Witness:
    """Hears the wire; see the module."""

    def __init__(self, signer: Signer, clock: Callable[[], Seconds]) -> None:
        self._signer = signer  # of nobody in the run: it only verifies
        self._clock = clock
        self._signed: dict[_Account, dict[int, bytes]] = {}  # slots by sequence
        self._got: dict[tuple[PeerId, _Account], list[_Arrival]] = {}  # by receiver
        self._newest: dict[Stage, list[Bitmap]] = {}
        self._lies = 0
        self._problems: list[str] = []

    def heard(self, side: Side, ends: tuple[PeerId, PeerId], data: bytes | memoryview) -> None:
        """Something was sent, or has arrived, between two peers."""
        whole = bytes(data)
        if not any(tag in whole for tag in TELLING):
            return
        for message in read_frames(whole):
            match message:
                case Bitmap():
                    self._bitmap(side, ends, message)
                case Nack():
                    for bitmap in message.bitmaps:
                        self._held(side, ends, bitmap)
                case Plan() if side == "sent":
                    for share in message.shares:
                        self._share(ends[0], message, share)
                case _:
                    pass

    def forgave(self, peer: PeerId) -> None:
        """What has arrived at ``peer`` does not count: it was frozen, or had no seat yet."""
        for got in [got for got in self._got if got[0] == peer]:
            del self._got[got]

    def broke(self, peer: PeerId, other: PeerId) -> None:
        """The link of ``peer`` to ``other`` is down: what arrived last may never be read."""
        since = self._clock() - READING_SECONDS
        for (receiver, _), arrivals in self._got.items():
            if receiver == peer:
                arrivals[:] = [each for each in arrivals if each[0] < since or each[2] != other]

    def lied(self) -> None:
        """A lie was told."""
        self._lies += 1

    def lured(self, peer: PeerId) -> None:
        """``peer`` called a ghost."""
        self._problems.append(f"{peer} called a peer that exists in forged records alone")

    def sample(self, stage: Stage, *, but: PeerId) -> tuple[Bitmap | None, Bitmap | None]:
        """The newest bitmap of a peer of ``stage``, and its first one of the same step."""
        others = [each for each in self._newest.get(stage, ()) if each.peer != but]
        if not others:
            return None, None
        newest = others[-1]
        same = [each for each in others if (each.peer, each.at) == (newest.peer, newest.at)]
        return newest, same[0]

    def judge(self) -> Verdict:
        """What was seen so far."""
        return verdict("I6", self._lies, self._problems)

    # --- looking --------------------------------------------------------------------------------

    def _bitmap(self, side: Side, ends: tuple[PeerId, PeerId], bitmap: Bitmap) -> None:
        if not self._signer.verify(bitmap.peer, bitmap_bytes(bitmap), bitmap.signature):
            return
        account = (bitmap.peer, bitmap.incarnation, bitmap.at, bitmap.stage)
        self._signed.setdefault(account, {})[bitmap.seq] = bitmap.slots
        if side == "arrived":
            arrival = (self._clock(), bitmap.seq, ends[0])
            self._got.setdefault((ends[1], account), []).append(arrival)
        elif ends[0] == bitmap.peer:
            self._newest.setdefault(bitmap.stage, []).append(bitmap)

    def _held(self, side: Side, ends: tuple[PeerId, PeerId], bitmap: Bitmap) -> None:
        """A Nack shows what its sender holds of others."""
        if side == "sent" and bitmap.peer != ends[0]:
            account = (bitmap.peer, bitmap.incarnation, bitmap.at, bitmap.stage)
            what = f"step {bitmap.at.step}, stage {bitmap.stage}: {ends[0]}"
            self._acted_on(ends[0], account, (bitmap.seq, bitmap.slots), f"{what} holds")
        self._bitmap(side, ends, bitmap)

    def _share(self, leader: PeerId, plan: Plan, share: Share) -> None:
        if share.peer == leader:
            return
        account = (share.peer, share.incarnation, plan.at, plan.stage)
        what = f"step {plan.at.step}, stage {plan.stage}: the plan of {leader} names"
        self._acted_on(leader, account, (share.seq, share.slots), what)

    def _acted_on(
        self, actor: PeerId, account: _Account, share: tuple[int, bytes], what: str
    ) -> None:
        seq, slots = share
        if self._signed.get(account, {}).get(seq) != slots:
            self._problems.append(f"{what} a share that {account[0]} never signed")
            return
        until = self._clock() - READING_SECONDS
        got = self._got.get((actor, account), ())
        if any(at <= until and newer > seq for at, newer, _ in got):
            self._problems.append(f"{what} an old share of {account[0]}")
