"""A state is adopted from whoever comes first and can give; what cannot be had stays away.

Whole swarms that adopt are in tests/scenarios/test_mixed.py; here one seat does, among mates
that give, deny or die.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.adoption import GENESIS, adoption_order
from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.download import ANSWER_SECONDS
from p2ptrain.core.merkle import leaf_digest, merkle_root
from p2ptrain.engine.adopting import TRIES, Adoption
from p2ptrain.engine.pulling import Base, Pulled
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.sim.loop import run
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

STAGE = Stage(0)
AT = Position(epoch=0, step=Step(2), chain=Chain(b"c" * 32))
FIRST, SECOND, THIRD = adoption_order(AT, STAGE, [PeerId("x"), PeerId("y"), PeerId("z")])
PLAIN = toy_spec(stages=1, microbatches=4, steps=6)
SPEC = mixed_spec(PLAIN, canonical_steps=2)
LOSSY = mixed_spec(PLAIN, canonical_steps=2, adoption="int8")
LED = Sum(
    at=Position(epoch=0, step=Step(1), chain=Chain(b"b" * 32)),
    stage=STAGE,
    digest=Digest(bytes(32)),
    norms=(),
    finite=True,
    tallies=Tallies(),
    cover=(),
    members=(),
    round=0,
)
MET = merkle_root([leaf_digest(b"met")])


class Seat:
    """A seat that has come to step 2; as compute it keeps what is loaded."""

    def __init__(self, difference: Difference | None = None) -> None:
        self.stage, self.version, self.adopting = STAGE, AT.step, False
        self.stepper, self.sums, self.compute = self, self, self
        self.difference = difference
        if difference is not None:
            difference.seat = self
        self.ahead: frozenset[PeerId] = frozenset()
        self.state: bytes | bytearray = b"own"
        self.forgot = False

    def standing(self) -> tuple[Position, tuple[tuple[PeerId, ...], ...]]:
        return AT, ((FIRST, SECOND, THIRD),)

    def forget(self) -> None:
        self.forgot = True

    def taken(self, at: Position) -> tuple[Sum, ...]:
        return (LED,) if at == AT else ()

    async def save(self) -> bytes:
        return bytes(self.state)

    async def load(self, blob: bytes | bytearray, *, keep: bool = False) -> None:
        assert keep, "others may still need what the step before was computed with"
        assert self.forgot, "a sum could still be given that the load takes away"
        self.state = blob


class Difference:
    """``leads``: whereto, here; None: the bytes do not fit. ``result``: whereto, by its sender.

    ``whole``: whether who takes none of it is given the state.
    """

    def __init__(
        self,
        base: Digest | None = GENESIS,
        *,
        leads: bytes | None = None,
        result: Digest | None = None,
        whole: bool = True,
    ) -> None:
        self.base, self.size_bytes, self.result, self.whole = base, 10, result, whole
        self.seat: Seat
        self._leads = leads

    async def make(self) -> bytes | None:
        if self.base is None:
            return None
        self.seat.state, self.base = b"met", None
        return b"way"

    async def adopt(self, _blob: bytes | bytearray) -> None:
        if self._leads is None:
            raise MisbehaviourError("does not fit")
        self.base = None
        self.seat.state = self._leads

    async def mark(self, base: Digest) -> None:
        self.base = base


class Node:
    """``gives``: what each peer answers; a peer without an answer never does."""

    def __init__(self, me: PeerId, gives: dict[PeerId, bytes | None], group: Any) -> None:
        self.me, self.gives, self.spec = me, gives, SPEC
        self.roster = self.snapshots = self.admission = self
        self.denied = self.breaks = 0
        self.seconds = 0.0  # until an answer comes, or none
        self.live = {FIRST, SECOND, THIRD}
        self.spawn: Callable[[Coroutine[None, None, None]], Any] = group.create_task
        self.events: list[ev.AnyEvent] = []
        self.emit = self.events.append
        self.asked: list[tuple[PeerId, ...]] = []
        self.bases: list[Digest | None] = []
        self.led: list[tuple[bytes, tuple[Digest, Digest]]] = []
        self.result: Digest | None = None  # of what is given to who has the base
        self.whole = True  # who has none, or wants no difference, is given a state
        self.offered: bytes | None = None
        self.went_on = asyncio.Event()
        self.gone: dict[PeerId, asyncio.Event] = {peer: asyncio.Event() for peer in self.live}

    def present(self, _stage: Stage) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(peer=peer, version=Step(2)) for peer in sorted(self.live))

    async def pull(
        self,
        stage: Stage,
        donors: Sequence[PeerId],
        *,
        version: Step,
        owners: int,
        base: Base | None = None,
    ) -> Pulled:
        assert (stage, version, owners) == (STAGE, AT.step, 1)
        self.asked.append(tuple(donors))
        self.bases.append(None if base is None else base.root)
        await asyncio.sleep(self.seconds)
        if len(self.asked) <= self.breaks:
            raise LinkError("the link broke", peer=donors[0])
        for peer in donors:
            if peer not in self.gives:
                await self.gone[peer].wait()
                raise LinkError("is suspected", peer=peer)
            blob = self.gives[peer] if self.whole or base is not None else None
            if blob is not None:
                root, result = Digest(blob.ljust(32)), self.result if base is not None else None
                return Pulled(
                    at=AT, members=((),), blob=blob, sources=(peer,), root=root, result=result
                )
        raise LinkError("nobody has it", peer=donors[0])

    def lost(self, peer: PeerId) -> None:
        self.gone[peer].set()

    async def offer(
        self,
        _stage: Stage,
        _at: Position,
        _members: Any,
        blob: bytes,
        *,
        leads: tuple[Digest, Digest] | None = None,
        taken: tuple[Sum, ...] = (),
    ) -> Digest:
        assert taken == (() if leads else (LED,)), "whoever joins from it does not know its step"
        if leads is not None:
            self.led.append((blob, leads))
            return Digest(b"of the way".ljust(32))
        self.offered = blob
        return Digest(blob.ljust(32))

    def deny(self, _seat: Seat) -> None:
        self.denied += 1

    def go_on(self, seat: Seat) -> None:
        assert not seat.adopting

    def stands(self, _seat: Seat) -> None:
        self.went_on.set()


def adopted(
    me: PeerId,
    gives: dict[PeerId, bytes | None],
    *,
    ahead: frozenset[PeerId] = frozenset(),
    breaks: int = 0,
    seconds: float = 0.0,
    difference: Difference | None = None,
) -> tuple[Node, Seat]:
    async def main() -> tuple[Node, Seat]:
        async with asyncio.TaskGroup() as group:
            node, seat = Node(me, gives, group), Seat(difference)
            if difference is not None:
                node.spec, node.result = LOSSY, difference.result
                node.whole = difference.whole
            seat.ahead, node.breaks, node.seconds = ahead, breaks, seconds
            adoption = Adoption(node)  # type: ignore[arg-type]  # what it uses
            assert adoption.due(seat)  # type: ignore[arg-type]
            adoption.begin(seat)  # type: ignore[arg-type]
            while not node.went_on.is_set():
                await asyncio.sleep(1.0)
                node.live -= {peer for peer in node.live if peer not in gives and peer != me}
                adoption.look()
        return node, seat

    return run(main())


def told(node: Node) -> list[ev.StateAdopted]:
    return [event for event in node.events if isinstance(event, ev.StateAdopted)]


def test_the_first_offers_its_own_and_asks_nobody() -> None:
    node, seat = adopted(FIRST, {})
    assert (node.offered, seat.state, node.asked) == (b"own", b"own", [])
    assert [event.source for event in told(node)] == [FIRST]


def test_the_others_take_the_firsts() -> None:
    node, seat = adopted(THIRD, {FIRST: b"first"})
    assert (seat.state, node.asked, node.offered) == (b"first", [(FIRST,)], None)
    assert [(event.source, event.version) for event in told(node)] == [(FIRST, AT.step)]


def test_who_falls_silent_is_waited_for_until_it_is_suspected() -> None:
    node, seat = adopted(THIRD, {SECOND: b"second"})
    assert seat.state == b"second"
    assert node.asked == [(FIRST,), (SECOND,)]
    assert any("is suspected" in e.reason for e in node.events if isinstance(e, ev.Alarm))


def test_a_line_that_breaks_is_no_reason_to_pass_over_who_lives() -> None:
    node, seat = adopted(SECOND, {FIRST: b"first", THIRD: None}, breaks=TRIES - 1)
    assert (seat.state, node.offered) == (b"first", None)
    assert node.asked == [(FIRST,)] * TRIES


def test_who_lives_and_gives_nothing_is_passed_over_in_the_end() -> None:
    node, seat = adopted(THIRD, {FIRST: None, SECOND: b"second"})
    assert seat.state == b"second"
    assert node.asked == [(FIRST,)] * TRIES + [(SECOND,)]


def test_who_lives_and_never_answers_is_asked_once() -> None:
    node, seat = adopted(THIRD, {FIRST: None, SECOND: b"second"}, seconds=ANSWER_SECONDS)
    assert seat.state == b"second"
    assert node.asked == [(FIRST,), (SECOND,)]


def test_whose_turn_comes_late_takes_what_a_mate_has_adopted_from_the_dead() -> None:
    node, seat = adopted(SECOND, {THIRD: b"first"})
    assert (seat.state, node.offered) == (b"first", None)


def test_whose_turn_comes_late_and_finds_no_mate_with_a_state_offers_its_own() -> None:
    node, seat = adopted(SECOND, {THIRD: None})
    assert (seat.state, node.offered) == (b"own", b"own")


def test_the_first_that_comes_when_mates_count_already_takes_theirs() -> None:
    node, seat = adopted(FIRST, {SECOND: b"second"}, ahead=frozenset({SECOND}))
    assert (seat.state, node.offered) == (b"second", None)


def test_while_adopting_those_before_are_denied_and_those_after_wait() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            node, seat = Node(SECOND, {FIRST: b"first"}, group), Seat()
            adoption: Any = Adoption(node)  # type: ignore[arg-type]
            assert not adoption.denies(seat, FIRST)
            adoption.begin(seat)
            assert adoption.denies(seat, FIRST)
            assert not adoption.denies(seat, THIRD)
            assert not adoption.denies(seat, PeerId("a joiner, or a buddy"))

    run(main())


def test_who_comes_later_than_whom_we_ask_waits_for_what_we_get() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            node, seat = Node(THIRD, {}, group), Seat()
            adoption: Any = Adoption(node)  # type: ignore[arg-type]
            adoption.begin(seat)
            await asyncio.sleep(1.0)
            assert node.asked == [(FIRST,)]
            assert not adoption.denies(seat, SECOND)
            node.live.discard(FIRST)
            adoption.look()
            await asyncio.sleep(1.0)
            assert node.asked == [(FIRST,), (SECOND,)]
            assert adoption.denies(seat, SECOND)  # it is asked itself now
            assert node.denied == 2
            adoption.closed(STAGE)

    run(main())


def test_a_later_mate_whom_we_ask_and_who_asks_us_waits() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            node, seat = Node(SECOND, {FIRST: None}, group), Seat()
            adoption: Any = Adoption(node)  # type: ignore[arg-type]
            adoption.begin(seat)
            await asyncio.sleep(1.0)
            assert THIRD in node.asked[-1]
            assert not adoption.denies(seat, THIRD)
            adoption.closed(STAGE)

    run(main())


def test_a_seat_that_is_given_up_meanwhile_does_not_go_on() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            node, seat = Node(THIRD, {}, group), Seat()
            adoption: Any = Adoption(node)  # type: ignore[arg-type]
            adoption.begin(seat)
            await asyncio.sleep(1.0)
            adoption.closed(STAGE)
            await asyncio.sleep(1.0)
            assert not node.went_on.is_set()

    run(main())


def test_the_first_offers_a_difference_and_where_it_leads_and_adopts_that() -> None:
    difference = Difference()
    node, seat = adopted(FIRST, {}, difference=difference)
    met = Digest(b"met".ljust(32))
    assert (seat.state, node.offered, node.led) == (b"met", b"met", [(b"way", (GENESIS, met))])
    assert difference.base == met
    assert [event.root for event in told(node)] == [met]


def test_the_first_that_shares_nothing_offers_its_whole_state_which_all_share_then() -> None:
    difference = Difference(base=None)
    node, _ = adopted(FIRST, {}, difference=difference)
    assert (node.offered, node.led, difference.base) == (b"own", [], Digest(b"own".ljust(32)))


def test_the_others_ask_for_the_difference_to_their_base_and_come_to_where_it_leads() -> None:
    difference = Difference(leads=b"met", result=MET)
    node, seat = adopted(THIRD, {FIRST: b"way"}, difference=difference)
    assert (node.asked, node.bases) == ([(FIRST,)], [GENESIS])
    assert (seat.state, difference.base) == (b"met", MET)
    assert [(event.source, event.root) for event in told(node)] == [(FIRST, MET)]


@pytest.mark.parametrize("leads", [None, b"elsewhere"], ids=["does not fit", "leads elsewhere"])
def test_whom_the_difference_does_not_help_takes_the_whole_state(leads: bytes | None) -> None:
    difference = Difference(leads=leads, result=MET)
    node, seat = adopted(THIRD, {FIRST: b"first"}, difference=difference)
    assert (node.asked, node.bases) == ([(FIRST,)] * 2, [GENESIS, None])
    assert (seat.state, difference.base) == (b"first", Digest(b"first".ljust(32)))
    assert len([event for event in node.events if isinstance(event, ev.Alarm)]) == 1


def test_a_difference_that_leads_elsewhere_is_undone_where_nobody_gives_a_whole_state() -> None:
    difference = Difference(leads=b"elsewhere", result=MET, whole=False)
    gives = {FIRST: b"first", SECOND: None}
    node, seat = adopted(THIRD, gives, difference=difference)
    assert (seat.state, node.offered) == (b"own", b"own")
    alarms = [event.reason for event in node.events if isinstance(event, ev.Alarm)]
    assert any("leads elsewhere" in reason and FIRST in reason for reason in alarms)


def test_who_shares_nothing_asks_for_no_difference() -> None:
    difference = Difference(base=None)
    node, seat = adopted(THIRD, {FIRST: b"first"}, difference=difference)
    assert (seat.state, node.bases) == (b"first", [None])


def test_of_a_mate_that_has_adopted_the_whole_state_is_taken() -> None:
    """The difference died with whom it came from."""
    node, seat = adopted(SECOND, {THIRD: b"first"}, difference=Difference())
    assert seat.state == b"first"
    assert node.bases == [GENESIS, None]
