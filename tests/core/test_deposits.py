"""Deposits: taken once, whole, from who is gone; what of them is asked for, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.agreement import Bitmap, Position, Tallies
from p2ptrain.core.deposits import (
    COMING_MOST,
    DEPOSITS_MOST,
    GRACE_SECONDS,
    LEFT_SHARE,
    WANTED_MOST,
    Deposits,
    Kept,
    View,
    Wants,
    mate,
)
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.units import Chain, PeerId, RunId, Stage, Step

RUN = RunId("run")
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))
A, B, C, ME = (PeerId(name) for name in ("a", "b", "c", "me"))
WIDTH, ELEMENTS = 16, 10


def bitmap(peer: PeerId, mask: int, *, seq: int = 1, incarnation: int = 1) -> Bitmap:
    return Bitmap(
        peer=peer,
        incarnation=incarnation,
        at=AT,
        stage=Stage(1),
        seq=seq,
        slots=mask_to_bytes(mask, WIDTH),
        tallies=Tallies(),
        signature=b"",
    )


def view(
    *live: PeerId,
    counted: int = 0,
    others: int = 0,
    tied: int = 0,
    starts: dict[PeerId, int] | None = None,
) -> View:
    peers, starts = frozenset(live), starts or {}
    return View(live=peers, starts=starts, counted=counted, others=others | tied, tied=tied)


def left(deposits: Deposits, told: Bitmap) -> bool:
    """All of a deposit in two pieces."""
    middle = ELEMENTS // 2
    first = deposits.came(told, 0, middle, b"1", elements=ELEMENTS)
    return not first and deposits.came(told, middle, ELEMENTS, b"2", elements=ELEMENTS)


def take(deposits: Deposits) -> Kept:
    """What may be taken up once all but us are gone is."""
    kept = deposits.to_take(view(ME))
    assert kept is not None
    deposits.took(kept)
    return kept


def mate_of(
    me: PeerId, rates: dict[PeerId, float], *, step: int = 3, last: PeerId | None = None
) -> PeerId | None:
    others = {peer: rate for peer, rate in rates.items() if peer != me}
    return mate(RUN, Step(step), Stage(1), me, others, last=last)


@given(st.sets(st.integers(0, 30), min_size=2), st.integers(0, 9))
def test_everybody_leaves_its_deposits_with_one_other_and_nobody_is_given_those_of_two(
    numbers: set[int], step: int
) -> None:
    rates = {PeerId(f"peer {number}"): 0.0 for number in numbers}
    mates = {peer: mate_of(peer, rates, step=step) for peer in rates}
    assert set(mates.values()) == set(rates)
    assert all(peer != other for peer, other in mates.items())


def test_who_is_slow_is_given_no_deposits_and_who_has_them_keeps_them_longer() -> None:
    rates = dict.fromkeys((A, B, C, ME), 1.0)
    chosen = mate_of(ME, rates)
    assert chosen is not None
    slower = {**rates, chosen: 1.01 * LEFT_SHARE}
    other = mate_of(ME, slower)
    assert other not in (None, ME, chosen)
    assert mate_of(ME, slower, last=chosen) == chosen
    assert mate_of(ME, {**rates, chosen: 0.99 * LEFT_SHARE}, last=chosen) == other
    assert mate_of(ME, {**rates, chosen: 0.0}) == chosen  # nobody has measured it yet
    assert mate_of(ME, rates, last=other) == other
    assert mate_of(ME, {peer: 1.0 for peer in rates if peer != chosen}, last=chosen) == other
    assert mate_of(ME, {ME: 1.0}, last=chosen) is None


def test_what_a_mate_left_is_taken_up_once_it_is_gone() -> None:
    deposits = Deposits()
    assert left(deposits, bitmap(A, 0b101))
    assert deposits.to_take(view(A, ME)) is None
    kept = deposits.to_take(view(ME, counted=0b1000, others=0b10))
    assert kept is not None
    assert kept.pieces == [(0, b"1"), (5, b"2")]
    assert deposits.taken == ()
    deposits.took(kept)
    assert (deposits.borrowed, deposits.taken) == (0b101, ((A, 0b101),))
    assert deposits.to_take(view(ME)) is None
    assert deposits.to_return(view(ME)) is None


@pytest.mark.parametrize(
    ("elsewhere", "useful"),
    [
        ({"counted": 0b1000}, False),  # the own sum holds it, and one slot cannot be in it twice
        ({"tied": 0b0001}, False),  # a mate could take it out only with all that it has borrowed
        ({"others": 0b0001}, True),  # a mate takes it out again
        ({"others": 0b0011}, False),  # that takes mates too long
    ],
)
def test_what_mates_count_who_live_is_taken_up_if_they_can_take_it_out_and_it_is_worth_it(
    elsewhere: dict[str, int], *, useful: bool
) -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b11111011))
    assert (deposits.to_take(view(ME, **elsewhere)) is not None) == useful


def test_two_deposits_that_share_a_slot_are_not_both_taken_up() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b11))
    left(deposits, bitmap(B, 0b10))
    take(deposits)
    assert deposits.to_take(view(ME)) is None


def test_an_empty_deposit_is_of_no_use() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0))
    assert deposits.to_take(view(ME)) is None


def test_who_comes_back_gets_its_own_and_may_go_again() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b1))
    kept = take(deposits)
    assert deposits.to_return(view(A, ME)) is kept
    deposits.returned(kept)
    assert deposits.borrowed == 0
    assert deposits.to_take(view(A, ME)) is None
    assert deposits.to_take(view(ME)) is kept


def test_another_start_of_a_peer_has_not_what_the_last_had_counted() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b1, incarnation=1))
    assert deposits.to_take(view(A, ME, starts={A: 1})) is None
    kept = deposits.to_take(view(A, ME, starts={A: 2}))
    assert kept is not None
    deposits.took(kept)
    assert deposits.to_return(view(A, ME, starts={A: 2})) is None
    assert left(deposits, bitmap(A, 0b10, incarnation=2))  # what it leaves now is another's


def test_a_slot_that_must_go_takes_its_deposit_along() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b110))
    kept = take(deposits)
    assert deposits.meeting(0b100) is kept
    assert deposits.meeting(0b001) is None


def test_what_others_had_counted_is_not_taken_up_again() -> None:
    """Two mates to whom one seat left its deposits would take turns for ever."""
    deposits = Deposits()
    left(deposits, bitmap(A, 0b110))
    kept = take(deposits)
    deposits.returned(kept, overlapped=True)
    assert (deposits.borrowed, deposits.to_take(view(ME))) == (0, None)


def test_the_newest_of_a_mate_takes_the_place_of_the_last_when_it_is_whole() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b1, seq=1))
    newer = bitmap(A, 0b11, seq=2)
    deposits.came(newer, 0, 5, b"1", elements=ELEMENTS)
    assert deposits.begun(newer)
    kept = deposits.to_take(view(ME))
    assert kept is not None
    assert kept.slots == 0b1
    assert deposits.came(newer, 5, ELEMENTS, b"2", elements=ELEMENTS)
    kept = deposits.to_take(view(ME))
    assert kept is not None
    assert kept.slots == 0b11
    assert not left(deposits, bitmap(A, 0b1, seq=1))


def full() -> tuple[Deposits, list[PeerId]]:
    deposits, peers = Deposits(), [PeerId(f"mate {number}") for number in range(DEPOSITS_MOST)]
    for number, peer in enumerate(peers):
        assert left(deposits, bitmap(peer, 1 << number))
    return deposits, peers


def test_what_can_be_taken_up_no_more_makes_room_for_others_and_nothing_else_does() -> None:
    deposits, peers = full()
    for useful in (
        view(*peers, others=0b1),  # it lives: its own count is among them
        view(*peers[1:]),  # it is gone, and to be taken up
    ):
        deposits.make_room(useful)
        assert not left(deposits, bitmap(A, 0b1000))
    deposits.make_room(view(*peers[1:], others=0b1))  # mates have made it good
    assert left(deposits, bitmap(A, 0b1000))


def test_while_there_is_room_nothing_is_let_go() -> None:
    deposits = Deposits()
    left(deposits, bitmap(A, 0b1))
    deposits.make_room(view(ME, others=0b1))
    assert deposits.to_take(view(ME)) is not None


def test_what_comes_no_further_makes_room() -> None:
    deposits, senders = Deposits(), [PeerId(f"mate {number}") for number in range(COMING_MOST)]
    for peer in senders:
        assert not deposits.came(bitmap(peer, 0b1), 0, 5, b"1", elements=ELEMENTS)
    deposits.make_room(view(A, *senders))
    assert not left(deposits, bitmap(A, 0b10))
    deposits.make_room(view(A, *senders[1:]))
    assert left(deposits, bitmap(A, 0b10))


def test_pieces_out_of_order_and_deposits_beyond_the_bound_are_dropped() -> None:
    deposits = Deposits()
    told = bitmap(A, 0b1)
    assert not deposits.came(told, 5, ELEMENTS, b"2", elements=ELEMENTS)
    assert not deposits.begun(told)
    for number in range(DEPOSITS_MOST):
        assert left(deposits, bitmap(PeerId(f"mate {number}"), 1 << number))
    assert not left(deposits, told)
    deposits.clear()
    assert left(deposits, told)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(("leave", "take", "return", "gone", "back", "count")),
        st.sampled_from((A, B, C)),
        st.integers(0, 255),
    ),
    max_size=40,
)


@given(MOVES)
def test_no_slot_is_ever_counted_twice_here(moves: list[tuple[str, PeerId, int]]) -> None:
    """The own set and what is taken stay disjoint, whatever comes when."""
    deposits, live, own = Deposits(), {A, B, C, ME}, 0
    for seq, (what, peer, mask) in enumerate(moves):
        now = view(*live, counted=own | deposits.borrowed)
        if what == "leave":
            left(deposits, bitmap(peer, mask, seq=seq))
        elif what == "take" and (kept := deposits.to_take(now)) is not None:
            assert not kept.slots & (own | deposits.borrowed)
            assert kept.bitmap.peer not in live
            deposits.took(kept)
        elif what == "return" and (kept := deposits.to_return(now)) is not None:
            before = deposits.borrowed
            deposits.returned(kept)
            assert deposits.borrowed == before & ~kept.slots
        elif what == "gone":
            live.discard(peer)
        elif what == "back":
            live.add(peer)
        elif what == "count":
            own |= mask & ~deposits.borrowed
        assert not own & deposits.borrowed


def test_what_the_stage_above_lacks_is_asked_for_after_a_while_and_again_and_again() -> None:
    wants = Wants()
    assert wants.look(0b11, now=10.0) == 0
    assert wants.look(0b01, now=10.0 + GRACE_SECONDS) == 0b01
    assert wants.look(0b11, now=10.0 + 2 * GRACE_SECONDS) == 0b01  # the other is lacking anew
    assert wants.look(0b11, now=10.0 + 3 * GRACE_SECONDS) == 0b11
    assert wants.look(0, now=30.0) == 0


def test_few_are_asked_for_at_a_time() -> None:
    wants, many = Wants(), (1 << 3 * WANTED_MOST) - 1
    wants.look(many, now=0.0)
    assert wants.look(many, now=GRACE_SECONDS).bit_count() == WANTED_MOST
