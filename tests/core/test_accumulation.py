"""The own accumulator: running, freezing, still; and what is being taken out of it."""

from __future__ import annotations

from p2ptrain.core.accumulation import Accumulation
from p2ptrain.core.agreement import Bitmap, Plan, Position, Tallies
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.core.plans import make_plan
from p2ptrain.core.rounds import Freeze, Subtract, Unfreeze
from p2ptrain.units import Chain, PeerId, Stage, Step

ANN, BOB = PeerId("ann"), PeerId("bob")
AT = Position(epoch=0, step=Step(1), chain=Chain(bytes(32)))


def bitmap(peer: PeerId, mask: int, seq: int) -> Bitmap:
    return Bitmap(
        peer=peer, incarnation=1, at=AT, stage=Stage(0), seq=seq, slots=mask_to_bytes(mask, 4),
        tallies=Tallies(tokens=mask.bit_count()), signature=b"",
    )  # fmt: skip


def plan_of(*bitmaps: Bitmap) -> Plan:
    return make_plan(AT, Stage(0), (0, 0), bitmaps, [(0, 1)] * len(bitmaps))


def test_freeze_and_unfreeze_alternate_and_only_quiet_makes_it_still() -> None:
    mine = Accumulation(bitmap(ANN, 0, 0))
    mine.quiet()
    assert not mine.still
    assert (mine.freeze(), mine.freeze()) == ((Freeze(),), ())
    assert not mine.still
    mine.quiet()
    assert mine.still
    assert (mine.thaw(), mine.thaw()) == ((Unfreeze(),), ())
    assert not mine.still


def test_a_plan_matches_exactly_what_is_there() -> None:
    mine = Accumulation(bitmap(ANN, 0, 0))
    mine.show(bitmap(ANN, 0b11, 3))
    assert mine.matches(plan_of(bitmap(BOB, 0, 1), bitmap(ANN, 0b11, 3)))
    assert not mine.matches(plan_of(bitmap(ANN, 0b11, 2)))
    assert not mine.matches(plan_of(bitmap(ANN, 0b01, 3)))
    assert not mine.matches(plan_of(bitmap(BOB, 0b11, 3)))
    assert not mine.matches(None)


def test_one_order_at_a_time_and_nothing_matches_meanwhile() -> None:
    mine = Accumulation(bitmap(ANN, 0b111, 1))
    assert mine.subtract(0) == ()
    assert mine.subtract(0b011) == (Subtract(0b011),)
    assert mine.subtract(0b111) == ()
    assert not mine.matches(plan_of(bitmap(ANN, 0b111, 1)))
    mine.show(bitmap(ANN, 0b110, 2))
    assert mine.subtracting == 0b010
    assert mine.subtract(0b110) == ()
    mine.show(bitmap(ANN, 0b100, 3))
    assert mine.matches(plan_of(bitmap(ANN, 0b100, 3)))
    assert mine.subtract(0b100) == (Subtract(0b100),)
