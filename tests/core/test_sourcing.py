"""Shares of stage 0: one owner for every slot, by speed; handing on loses and doubles none."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.ledger import slots_of
from p2ptrain.core.sourcing import PACES_MOST, Shares, pace_of, part_for, weighted
from p2ptrain.units import PeerId, RunId, Step

RUN = RunId("0" * 32)
SLOTS = 24
ALL = (1 << SLOTS) - 1
PEERS = tuple(PeerId(f"peer-{number}") for number in range(4))

peers = st.sampled_from(PEERS)
paces = st.lists(st.integers(0, PACES_MOST), min_size=len(PEERS), max_size=len(PEERS))
lives = st.sets(peers, min_size=1).map(frozenset)
turns = st.lists(
    st.one_of(
        st.tuples(st.just("hand on"), peers, peers, st.integers(0, SLOTS), st.booleans()),
        st.tuples(st.just("begin"), peers, peers, st.integers(0, SLOTS), st.booleans()),
    ),
    max_size=30,
)


def views(codes: list[int]) -> dict[PeerId, Shares]:
    members = weighted(PEERS, codes)
    return {peer: Shares(RUN, peer, Step(3), range(SLOTS), members) for peer in PEERS}


# --- speeds -----------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e6))
def test_a_pace_is_within_a_tenth_of_the_rate(rate: float) -> None:
    ((_, weight),) = weighted(PEERS[:1], [pace_of(rate)])
    assert abs(math.log2(weight / rate)) <= 1 / 8 + 1e-9


def test_no_rate_is_no_pace() -> None:
    assert [pace_of(rate) for rate in (0.0, -1.0, math.inf, math.nan)] == [0, 0, 0, 0]
    assert pace_of(1e-300) == 1
    assert pace_of(1e300) == PACES_MOST


def test_who_is_unknown_counts_like_the_usual() -> None:
    slow, fast = pace_of(1.0), pace_of(4.0)
    weights = dict(weighted(PEERS, [slow, fast, fast, 0]))
    assert weights[PEERS[3]] == weights[PEERS[1]] == 4 * weights[PEERS[0]]
    assert set(dict(weighted(PEERS, ())).values()) == {1.0}


def test_shares_follow_speed() -> None:
    codes = [pace_of(1.0), pace_of(1.0), pace_of(0.1), pace_of(2.0)]
    (view, *_) = (
        Shares(RUN, PEERS[0], Step(0), range(4000), weighted(PEERS, codes)) for _ in range(1)
    )
    view.set_live(frozenset(PEERS))
    owned = [view.owned(peer).bit_count() / 4000 for peer in PEERS]
    for share, rate in zip(owned, (1.0, 1.0, 0.1, 2.0), strict=True):
        assert abs(share - rate / 4.1) < 0.03


def test_both_end_together() -> None:
    assert part_for(3.0, 1.0) == 0.75
    assert part_for(0.0, 1.0) == part_for(1.0, 0.0) == 0.5


# --- owners -----------------------------------------------------------------------------------


@given(paces, lives)
def test_every_slot_has_one_owner_and_all_views_name_the_same(
    codes: list[int], live: frozenset[PeerId]
) -> None:
    owned = []
    for peer, view in views(codes).items():
        if peer in live:
            view.set_live(live)
            owned.append({other: view.owned(other) for other in PEERS})
            assert view.mine() == view.owned(peer) == view.fallen_to(0)
    assert all(one == owned[0] for one in owned)
    masks = list(owned[0].values())
    assert sum(masks) == ALL  # a sum equals the union only if nothing is owned twice
    assert {peer for peer, mask in owned[0].items() if mask} <= live


@given(paces, lives, lives)
def test_a_death_moves_only_what_the_dead_owned(
    codes: list[int], before: frozenset[PeerId], after: frozenset[PeerId]
) -> None:
    view = views(codes)[PEERS[0]]
    both = before | after
    view.set_live(both)
    owned = {peer: view.owned(peer) for peer in PEERS}
    view.set_live(after)
    for peer in after:
        assert view.owned(peer) & owned[peer] == owned[peer]


def test_all_have_their_turn_at_what_the_stuck_own() -> None:
    view = views([0] * 4)[PEERS[0]]
    view.set_live(frozenset(PEERS))
    fallen = [view.fallen_to(rank) for rank in range(4)]
    assert fallen[0] == view.mine()
    assert fallen[3] == ALL
    assert all(less & more == less for less, more in pairwise(fallen))


# --- handing on -------------------------------------------------------------------------------


@given(paces, turns)
def test_handing_on_never_loses_or_doubles_a_slot(
    codes: list[int], history: list[tuple[str, PeerId, PeerId, int, bool]]
) -> None:
    shares = views(codes)
    begun = dict.fromkeys(PEERS, 0)
    owed: dict[tuple[PeerId, PeerId], int] = {}  # answers that are still on their way
    for view in shares.values():
        view.set_live(frozenset(PEERS))
    for what, one, other, number, lost in history:
        if what == "begin":
            waiting = list(slots_of(shares[one].mine() & ~begun[one]))
            begun[one] |= sum(1 << slot for slot in waiting[:number])
            continue
        unbegun = shares[one].mine() & ~begun[one]
        given = shares[one].give(other, unbegun, room=number, part=0.6)
        assert not given & begun[one]
        owed[one, other] = given
        if not lost:
            shares[other].take(given)
            shares[other].take(given)  # a doubled answer changes nothing
    for (one, other), given in owed.items():
        if one != other:
            shares[other].take(given)  # the next answer says all again
    mine = [view.mine() for view in shares.values()]
    assert sum(mine) == ALL
    for peer in PEERS:
        assert not begun[peer] & ~shares[peer].mine()  # nobody hands on what it has begun


@given(paces, st.integers(1, SLOTS), st.floats(0.0, 1.0))
def test_the_last_slots_go_and_no_more_than_there_is_room_for(
    codes: list[int], room: int, part: float
) -> None:
    view = views(codes)[PEERS[0]]
    view.set_live(frozenset(PEERS))
    before = view.mine()
    given = view.give(PEERS[1], before, room=room, part=part)
    assert given.bit_count() == min(room, round(part * before.bit_count()))
    assert given & before == given
    assert given == 0 or before & ~given < (given & -given)
    assert view.mine() == before & ~given


def test_what_a_dead_taker_had_is_its_owners_again() -> None:
    view = views([0] * 4)[PEERS[0]]
    view.set_live(frozenset(PEERS))
    before = view.mine()
    given = view.give(PEERS[1], before, room=SLOTS, part=1.0)
    assert view.mine() == 0
    view.set_live(frozenset(PEERS) - {PEERS[1]})
    assert view.mine() & given == given
    assert view.give(PEERS[1], view.mine(), room=SLOTS, part=1.0) == given  # nothing to the dead


def test_a_taker_hands_nothing_on() -> None:
    view = views([0] * 4)[PEERS[0]]
    view.set_live(frozenset(PEERS))
    theirs = view.owned(PEERS[2])
    view.take(theirs | 1 << SLOTS)  # and a slot that the step does not have
    assert view.mine() & theirs == theirs
    assert view.mine() & ~ALL == 0
    assert view.give(PEERS[1], theirs, room=SLOTS, part=1.0) == 0


def test_the_richest_is_who_has_most_left_for_its_speed() -> None:
    codes = [pace_of(1.0), pace_of(1.0), pace_of(1.0), pace_of(0.1)]
    view = views(codes)[PEERS[0]]
    view.set_live(frozenset(PEERS))
    left = {peer: view.owned(peer) for peer in PEERS}
    fast_done = left[PEERS[1]] | left[PEERS[2]]
    if left[PEERS[3]]:
        assert view.richest(fast_done) == PEERS[3]
    assert view.richest(ALL) is None
    assert view.richest(ALL & ~left[PEERS[1]], but=[PEERS[1]]) is None
