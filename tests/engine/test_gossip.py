"""Bitmaps: signed, told to the leader at once and to others soon, believed only if genuine."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import pytest

from p2ptrain.core.agreement import Bitmap, Tallies
from p2ptrain.core.ledger import bitmap_bytes, bytes_to_mask
from p2ptrain.engine import gossip as gossip_module
from p2ptrain.engine.gossip import GOSSIP_LEAST_SHARE, GOSSIP_SECONDS, REPEAT_SECONDS, Gossip
from p2ptrain.engine.items import Item
from p2ptrain.errors import MisbehaviourError
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Microbatch, PeerId, Slot, Stage, Step

ME, MATE, BELOW, ABOVE = (PeerId(name) for name in ("me", "mate", "below", "above"))
MakeBench = Callable[..., Any]


@pytest.fixture
def seat(bench: MakeBench) -> Any:
    return bench()


@pytest.fixture
def gossip(seat: Any) -> Gossip:
    made = Gossip(
        seat.pipeline,
        seat.post,
        SimSigner(ME),
        spec=seat.spec,
        incarnation=1,
        next_seq=count(1).__next__,
    )
    made.begin(seat.at)
    return made


def theirs(seat: Any, *, step: int = 0, seq: int = 1, peer: PeerId = MATE) -> Bitmap:
    unsigned = Bitmap(
        peer=peer,
        incarnation=1,
        at=msgspec.structs.replace(seat.at, step=Step(step)),
        stage=Stage(1),
        seq=seq,
        slots=b"\x01",
        tallies=Tallies(),
        signature=b"",
    )
    return msgspec.structs.replace(unsigned, signature=SimSigner(peer).sign(bitmap_bytes(unsigned)))


def test_every_bitmap_is_signed_and_newer_than_the_last(seat: Any, gossip: Gossip) -> None:
    first = gossip.renew()
    seat.pipeline.counted = 0b101
    second = gossip.renew()
    assert SimSigner(MATE).verify(ME, bitmap_bytes(second), second.signature)
    assert second.seq > first.seq
    assert bytes_to_mask(second.slots) == 0b101


def test_the_leader_hears_at_once_and_the_others_within_a_second(seat: Any, gossip: Gossip) -> None:
    seat.pipeline.counted = 0b1
    newest = gossip.renew()
    gossip.counted(MATE, 5.0)
    assert seat.post.told == [(MATE, newest)]
    assert gossip.due_at == 5.0 + GOSSIP_SECONDS
    gossip.spread(6.0)
    assert [peer for peer, _ in seat.post.told[1:]] == [ABOVE, BELOW, MATE, ME]
    assert gossip.due_at == 6.0 + REPEAT_SECONDS


def test_of_a_large_step_a_few_counts_are_not_worth_a_message_to_all(seat: Any) -> None:
    gossip = Gossip(
        seat.pipeline,
        seat.post,
        SimSigner(ME),
        spec=toy_spec(stages=3, microbatches=4 * GOSSIP_LEAST_SHARE, steps=3),
        incarnation=1,
        next_seq=count(1).__next__,
    )
    gossip.begin(seat.at)
    waiting = Microbatch(Step(0), Slot(999))
    seat.pipeline.shelf.put(
        Item(
            work=waiting,
            state="queued",
            sender=BELOW,
            path=(BELOW,),
            tokens=b"",
            given=b"",
            replay=False,
        )
    )
    for counted, due_at in ((0b111, 5.0 + REPEAT_SECONDS), (0b1111, 5.0 + GOSSIP_SECONDS)):
        seat.pipeline.counted = counted
        gossip.renew()
        gossip.counted(MATE, 5.0)
        assert gossip.due_at == due_at
    gossip.spread(6.0)
    seat.pipeline.counted = 0b11111
    seat.pipeline.shelf.drop(waiting)
    gossip.renew()
    gossip.counted(MATE, 6.0)
    assert gossip.due_at == 6.0 + GOSSIP_SECONDS  # nothing more will come: let it be known


def test_the_leader_does_not_tell_itself(seat: Any, gossip: Gossip) -> None:
    gossip.renew()
    gossip.tell(ME)
    assert seat.post.told == []


def test_a_forged_bitmap_is_never_kept(seat: Any, gossip: Gossip) -> None:
    for step in (0, 1):
        forged = msgspec.structs.replace(theirs(seat, step=step), signature=b"x" * 32)
        with pytest.raises(MisbehaviourError):
            gossip.admits(forged)
    assert gossip.begin(msgspec.structs.replace(seat.at, step=Step(1))) == ()


def test_what_is_a_step_early_is_kept_the_newest_of_each_and_not_without_end(
    seat: Any, gossip: Gossip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gossip_module, "EARLY_BITMAPS", 2)
    for seq in (1, 3, 2):
        assert not gossip.admits(theirs(seat, step=1, seq=seq))
    for peer in ("p1", "p2", "p3"):
        gossip.admits(theirs(seat, step=1, peer=PeerId(peer)))
    early = gossip.begin(msgspec.structs.replace(seat.at, step=Step(1)))
    assert [(bitmap.peer, bitmap.seq) for bitmap in early] == [(MATE, 3), ("p1", 1)]


def test_what_is_of_no_step_near_is_not_even_verified(seat: Any, gossip: Gossip) -> None:
    far = msgspec.structs.replace(theirs(seat, step=2), signature=b"")
    assert not gossip.admits(far)


def test_closed_it_neither_hears_nor_speaks(seat: Any, gossip: Gossip) -> None:
    gossip.renew()
    gossip.close()
    gossip.greet(MATE)
    gossip.spread(1.0)
    assert not gossip.admits(theirs(seat))
    assert seat.post.told == []
    assert gossip.due_at is None
