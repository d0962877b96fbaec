"""The ledger: newest bitmap per peer, union over the living, overlaps to subtract."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.core.agreement import Bitmap, Counted, Position, Tallies
from p2ptrain.core.ledger import (
    BITMAP_BYTES,
    BITMAPS_MOST,
    LOAN_BYTES,
    Ledger,
    bitmap_bytes,
    bytes_to_mask,
    mask_to_bytes,
    slots_of,
    sum_tallies,
)
from p2ptrain.units import Chain, PeerId, Stage, Step

ANN, BOB, EVE, GONE = PeerId("ann"), PeerId("bob"), PeerId("eve"), PeerId("gone")
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))
WIDTH = 6
FULL = (1 << WIDTH) - 1
Keeper = Callable[[int, tuple[PeerId, ...]], PeerId]


def bitmap(peer: PeerId, mask: int, *, seq: int = 1, incarnation: int = 1) -> Bitmap:
    return Bitmap(
        peer=peer,
        incarnation=incarnation,
        at=AT,
        stage=Stage(0),
        seq=seq,
        slots=mask_to_bytes(mask, WIDTH),
        tallies=Tallies(tokens=mask.bit_count()),
        signature=b"",
    )


def first(_: int, holders: tuple[PeerId, ...]) -> PeerId:
    return holders[0]


def last(_: int, holders: tuple[PeerId, ...]) -> PeerId:
    return holders[-1]


def ledger_of(*bitmaps: Bitmap, live: tuple[PeerId, ...] = (ANN, BOB, EVE)) -> Ledger:
    ledger = Ledger(FULL)
    ledger.set_live(frozenset(live))
    for one in bitmaps:
        assert ledger.observe(one)
    return ledger


def test_the_union_of_the_living_completes_a_step() -> None:
    ledger = ledger_of(bitmap(ANN, 0b000111))
    assert ledger.missing() == 0b111000
    assert ledger.observe(bitmap(BOB, 0b111000))
    assert (ledger.missing(), ledger.union()) == (0, FULL)
    assert ledger.cover() == ((ANN, 0b000111), (BOB, 0b111000))
    assert ledger.overlaps(first) == {}


def test_a_newer_bitmap_replaces_and_may_shrink() -> None:
    ledger = ledger_of(bitmap(ANN, 0b111))
    assert ledger.observe(bitmap(ANN, 0b011, seq=2))
    assert ledger.union() == 0b011
    assert not ledger.observe(bitmap(ANN, FULL, seq=2))
    assert not ledger.observe(bitmap(ANN, FULL, seq=1))
    assert ledger.union() == 0b011


def test_a_new_incarnation_buries_the_old_bitmap() -> None:
    ledger = ledger_of(bitmap(ANN, FULL, seq=9))
    assert ledger.observe(bitmap(ANN, 0, seq=0, incarnation=2))
    assert ledger.union() == 0
    assert not ledger.observe(bitmap(ANN, FULL, seq=10))


def test_a_dead_seats_slots_are_missing_and_return_with_it() -> None:
    ledger = ledger_of(bitmap(ANN, 0b000111), bitmap(BOB, 0b111000))
    ledger.set_live(frozenset({BOB}))
    assert ledger.missing() == 0b000111
    assert ledger.bitmaps() == (bitmap(ANN, 0b000111), bitmap(BOB, 0b111000))
    ledger.set_live(frozenset({ANN, BOB}))
    assert ledger.missing() == 0
    ledger.drop(ANN)
    assert ledger.get(ANN) is None
    assert ledger.missing() == 0b000111


def test_slots_outside_the_step_are_refused() -> None:
    ledger = Ledger(0b1)
    assert not ledger.observe(bitmap(ANN, 0b10))
    assert ledger.bitmaps() == ()


def test_all_but_the_keeper_subtract() -> None:
    ledger = ledger_of(bitmap(ANN, 0b0111), bitmap(BOB, 0b1110), bitmap(EVE, 0b0100))
    assert ledger.overlaps(first) == {BOB: 0b0110, EVE: 0b0100}
    ledger.set_live(frozenset({BOB, EVE}))
    assert ledger.overlaps(first) == {EVE: 0b0100}


masks = st.integers(0, FULL)


def lent(told: Bitmap, *loans: tuple[PeerId, int]) -> Bitmap:
    borrowed = tuple(Counted(peer, mask_to_bytes(mask, WIDTH)) for peer, mask in loans)
    return msgspec.structs.replace(told, borrowed=borrowed)


def test_who_has_borrowed_a_slot_keeps_it() -> None:
    """It could take it out only with all that it counts of that mate."""
    ledger = ledger_of(bitmap(ANN, 0b000111), lent(bitmap(BOB, 0b111100), (GONE, 0b001100)))
    assert ledger.borrowed(BOB) == 0b001100
    assert ledger.computed() == ((ANN, 0b000111), (BOB, 0b110000))
    assert ledger.overlaps(first) == ledger.overlaps(last) == {ANN: 0b000100}
    ledger.drop(BOB)
    assert ledger.borrowed(BOB) == 0


@pytest.mark.parametrize("keeper", [first, last])
def test_of_several_who_have_borrowed_one_keeps_all_of_it(
    keeper: Keeper,
) -> None:
    """If each kept some, all would have to give back everything."""
    ledger = ledger_of(
        lent(bitmap(ANN, 0b001111), (GONE, 0b001111)), lent(bitmap(BOB, 0b111110), (GONE, 0b000110))
    )
    assert ledger.overlaps(keeper) == {BOB: 0b001110}


@pytest.mark.parametrize("keeper", [first, last])
def test_what_was_borrowed_of_who_is_there_again_is_its_own(
    keeper: Keeper,
) -> None:
    """Whoever has borrowed it gives it back: both would take it out."""
    ann, bob = bitmap(ANN, 0b001111), lent(bitmap(BOB, 0b111111), (ANN, 0b001111))
    assert ledger_of(ann, bob).overlaps(keeper) == {BOB: 0b001111}
    ledger = ledger_of(ann, bob, live=(BOB,))
    assert ledger.overlaps(keeper) == {}


def test_nobody_has_borrowed_what_it_does_not_count() -> None:
    ledger = ledger_of(bitmap(ANN, 0b000111))
    assert not ledger.observe(lent(bitmap(ANN, 0b000111, seq=2), (GONE, 0b001000)))
    assert ledger.borrowed(ANN) == 0


def test_what_is_borrowed_and_of_whom_is_signed_too() -> None:
    plain = bitmap(ANN, 0b000111)
    told = {bitmap_bytes(lent(plain, (peer, slots))) for peer in (BOB, EVE) for slots in (1, 2)}
    assert len(told | {bitmap_bytes(plain)}) == 5
    assert b"borrowed" not in msgspec.msgpack.encode(plain)


@given(st.lists(masks, min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_subtracting_overlaps_leaves_a_disjoint_cover_of_the_same_union(sets: list[int]) -> None:
    ledger = ledger_of(*(bitmap(p, m) for p, m in zip((ANN, BOB, EVE), sets, strict=True)))
    union = ledger.union()
    for peer, mask in ledger.overlaps(first).items():
        old = dict(ledger.cover())[peer]
        assert mask & ~old == 0
        assert ledger.observe(bitmap(peer, old & ~mask, seq=2))
    assert ledger.overlaps(first) == {}
    assert ledger.union() == union
    assert sum(mask for _, mask in ledger.cover()) == union


@given(masks)
def test_masks_and_bytes(mask: int) -> None:
    assert bytes_to_mask(mask_to_bytes(mask, WIDTH)) == mask
    assert sum(1 << slot for slot in slots_of(mask)) == mask


def test_wire_form_is_little_endian_in_the_least_bytes() -> None:
    assert mask_to_bytes(1 << 8 | 1, 9) == b"\x01\x01"
    with pytest.raises(OverflowError):
        mask_to_bytes(1 << 8, 8)


def test_tallies_add_field_by_field() -> None:
    one = Tallies(loss=1, tokens=2, val_loss=3, val_tokens=4, poisoned=5)
    assert sum_tallies([one, one]) == Tallies(
        loss=2, tokens=4, val_loss=6, val_tokens=8, poisoned=10
    )
    assert sum_tallies([]) == Tallies()


CHANGES: list[dict[str, object]] = [
    {"peer": BOB},
    {"incarnation": 2},
    {"at": Position(epoch=1, step=Step(3), chain=Chain(bytes(32)))},
    {"at": Position(epoch=0, step=Step(4), chain=Chain(bytes(32)))},
    {"at": Position(epoch=0, step=Step(3), chain=Chain(b"\x01" * 32))},
    {"stage": Stage(1)},
    {"seq": 2},
    {"slots": b"\x07"},
    {"tallies": Tallies(val_tokens=1)},
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_signature_covers_every_field_but_itself(change: dict[str, object]) -> None:
    plain = bitmap(ANN, 0b1)
    assert bitmap_bytes(msgspec.structs.replace(plain, **change)) != bitmap_bytes(plain)
    assert bitmap_bytes(msgspec.structs.replace(plain, signature=b"x")) == bitmap_bytes(plain)


def test_names_that_cost_nothing_take_no_room_from_the_living() -> None:
    ledger = Ledger(FULL)
    ledger.set_live(frozenset({ANN}))
    strangers = [bitmap(PeerId(f"stranger-{number}"), 0) for number in range(BITMAPS_MOST + 1)]
    assert [ledger.observe(one) for one in strangers] == [True] * BITMAPS_MOST + [False]
    assert ledger.observe(bitmap(ANN, 0b1))
    assert len(ledger.bitmaps()) == BITMAPS_MOST
    assert ledger.union() == 0b1
    assert ledger.observe(bitmap(PeerId("stranger-9"), 0b10, seq=2))  # who has a place keeps it


def test_what_is_shown_fits_and_shows_the_living_first() -> None:
    ledger = ledger_of(bitmap(ANN, 0), bitmap(BOB, 0), bitmap(EVE, 0), live=(EVE,))
    each = BITMAP_BYTES + 1
    assert [one.peer for one in ledger.shown(2 * each)] == [EVE, ANN]
    assert ledger.shown(each - 1) == ()
    lender = ledger_of(lent(bitmap(ANN, 1), (GONE, 1)))
    assert lender.shown(each + LOAN_BYTES) == ()
    assert len(lender.shown(each + LOAN_BYTES + 1)) == 1
