"""The witness believes signatures alone, and sees who acted on less."""

import msgspec
import pytest

from p2ptrain.core.agreement import Ballot, Bitmap, Nack, Plan, Position, Share, Tallies
from p2ptrain.core.ledger import bitmap_bytes
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.witness import READING_SECONDS, Witness
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire import framing

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
AT = Position(epoch=0, step=Step(0), chain=Chain(bytes(32)))
STAGE = Stage(1)
NO_BALLOT = Ballot(round=0, rank=0, digest=Digest(bytes(32)))


class Wire:
    """A witness and a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.witness = Witness(SimSigner(PeerId("witness")), lambda: self.now)

    def sends(self, sender: PeerId, receiver: PeerId, message: Bitmap | Plan | Nack) -> None:
        frame = framing.encode(message)
        self.witness.heard("sent", (sender, receiver), frame)
        self.witness.heard("arrived", (sender, receiver), frame)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.witness.judge().problems


def bitmap(seq: int, slots: int = 3, *, peer: PeerId = B, signer: PeerId = B) -> Bitmap:
    blank = Bitmap(
        peer=peer,
        incarnation=1,
        at=AT,
        stage=STAGE,
        seq=seq,
        slots=bytes((slots,)),
        tallies=Tallies(),
        signature=b"",
    )
    return msgspec.structs.replace(blank, signature=SimSigner(signer).sign(bitmap_bytes(blank)))


def plan(*bitmaps: Bitmap) -> Plan:
    shares = tuple(
        Share(
            peer=each.peer,
            incarnation=each.incarnation,
            seq=each.seq,
            slots=each.slots,
            tallies=each.tallies,
            start=0,
            stop=1,
        )
        for each in bitmaps
    )
    return Plan(at=AT, stage=STAGE, ballot=NO_BALLOT, shares=shares)


def test_a_plan_of_what_was_signed_is_as_it_should_be() -> None:
    wire = Wire()
    wire.sends(B, A, bitmap(1))
    wire.sends(A, B, plan(bitmap(1), bitmap(7, peer=A, signer=A)))  # the own one needs no wire
    assert wire.problems == ()


@pytest.mark.parametrize(
    "believed", [bitmap(2, 15), bitmap(1, 15), bitmap(2, signer=C), bitmap(9, peer=C, signer=C)]
)
def test_a_plan_of_what_was_never_signed_is_seen(believed: Bitmap) -> None:
    wire = Wire()
    wire.sends(B, A, bitmap(1))
    wire.sends(C, A, bitmap(2, signer=C))  # C speaks for B
    wire.sends(A, B, plan(believed))
    assert len(wire.problems) == 1
    assert "never signed" in wire.problems[0]


def test_a_plan_of_an_old_bitmap_is_seen_once_the_new_one_was_read() -> None:
    wire = Wire()
    wire.sends(B, A, bitmap(1, 1))
    nack = Nack(at=AT, stage=STAGE, ballot=NO_BALLOT, highest=NO_BALLOT, bitmaps=(bitmap(2),))
    wire.sends(B, A, nack)
    wire.sends(A, B, plan(bitmap(1, 1)))
    assert wire.problems == ()  # it may lie unread
    wire.now = READING_SECONDS
    wire.sends(A, B, plan(bitmap(1, 1)))
    assert len(wire.problems) == 1
    assert "old share" in wire.problems[0]


def test_a_nack_shows_what_its_sender_believes() -> None:
    wire = Wire()
    for seq in (1, 2):
        wire.sends(B, A, bitmap(seq, seq))
    wire.now = 5.0
    for held, complaint in ((bitmap(2, 2), ""), (bitmap(1, 1), "old"), (bitmap(9, 15), "never")):
        known = len(wire.problems)
        signature = b"?" if complaint == "never" else held.signature
        shown = msgspec.structs.replace(held, signature=signature)
        nack = Nack(at=AT, stage=STAGE, ballot=NO_BALLOT, highest=NO_BALLOT, bitmaps=(shown,))
        wire.sends(A, C, nack)
        assert len(wire.problems) == known + bool(complaint)
        assert complaint in "".join(wire.problems[known:])


def test_what_arrived_at_a_frozen_peer_lies_unread() -> None:
    wire = Wire()
    for seq in (1, 2):
        wire.sends(B, A, bitmap(seq))
    wire.now = 9.0
    wire.witness.forgave(A)
    wire.sends(A, B, plan(bitmap(1)))
    assert wire.problems == ()


def test_what_arrived_last_on_a_broken_link_may_never_be_read() -> None:
    wire = Wire()
    for seq in (1, 2):
        wire.sends(B, A, bitmap(seq))
    wire.witness.broke(A, B)
    wire.now = 9.0
    wire.sends(A, B, plan(bitmap(1)))
    assert wire.problems == ()


def test_who_calls_a_ghost_is_named_and_lies_are_counted() -> None:
    wire = Wire()
    wire.witness.lied()
    wire.witness.lured(A)
    verdict = wire.witness.judge()
    assert (verdict.invariant, verdict.facts) == ("I6", 1)
    assert verdict.problems == ("a called a peer that exists in forged records alone",)


def test_a_sample_is_of_another_peer_and_its_first_of_the_step() -> None:
    wire = Wire()
    for seq in (1, 2, 3):
        wire.sends(B, A, bitmap(seq))
    wire.sends(C, A, bitmap(1, peer=C, signer=C))
    newest, early = wire.witness.sample(STAGE, but=C)
    assert (newest, early) == (bitmap(3), bitmap(1))
    assert wire.witness.sample(Stage(0), but=C) == (None, None)
