"""What a seat keeps, tells and gives of SUMs that are not its present step's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.chain import step_outcome, sum_bytes
from p2ptrain.core.plans import make_plan
from p2ptrain.core.rounds import Phase
from p2ptrain.engine.committing import Done
from p2ptrain.engine.distrust import Distrust
from p2ptrain.engine.sums import STARTS_MOST, TAKEN_BYTES, Sums
from p2ptrain.sim import loop
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

ME, MATE = PeerId("me"), PeerId("mate")
LAST = Position(epoch=0, step=Step(4), chain=Chain(b"l" * 32))
AT = Position(epoch=0, step=Step(5), chain=Chain(b"p" * 32))
NEXT = Position(epoch=0, step=Step(6), chain=Chain(b"n" * 32))


def total(at: Position, digest: bytes = b"a", *, round_: int = 0) -> Sum:
    return Sum(
        at=at,
        stage=Stage(0),
        digest=Digest(digest * 32),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(MATE,),
        round=round_,
    )


class Machine:
    def __init__(self) -> None:
        self.at, self.sums, self.held = AT, {Stage(0): total(AT)}, True

    def told(self) -> dict[Stage, Sum]:
        return self.sums

    def holds(self, _total: Sum) -> bool:
        return self.held


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def learned() -> list[Any]:
    """Each position of which the committer was told what led there, with that."""
    return []


@pytest.fixture
def committer(learned: list[Any]) -> Any:
    whole = (total(LAST),)
    last = Done(at=LAST, sums=whole, outcome=step_outcome(whole, 4), chain=AT.chain)
    kept: Any = SimpleNamespace(last=last)

    async def stand_on(done: Done) -> None:
        await asyncio.sleep(1.0)  # all that compute holds goes meanwhile
        kept.last = done

    kept.stand_on = stand_on
    kept.learn = lambda *told: learned.append(told)
    return kept


@pytest.fixture
def sums(machine: Machine, post: Any, committer: Any) -> Sums:
    driver: Any = SimpleNamespace(machine=machine)
    driver.close = lambda: setattr(driver, "machine", None)
    made = Sums(
        Stage(0),
        driver,
        committer,
        post,
        signer=SimSigner(ME),
        incarnation=3,
        distrust=Distrust(lambda _event: None),
    )
    made.begin(AT, canonical=True)
    return made


def test_of_the_next_step_the_sum_that_counts_is_kept_until_it_is_taken_up(sums: Sums) -> None:
    first, later = total(NEXT, round_=1), total(NEXT, b"b", round_=2)
    for heard in (later, first, later):
        sums.elsewhere(MATE, heard)
    assert sums.begin(AT, canonical=True) == [(MATE, first)]
    assert sums.begin(AT, canonical=True) == []


def test_who_tells_another_sum_of_the_last_step_is_told_what_was_stepped_with(
    sums: Sums, post: Any
) -> None:
    sums.elsewhere(MATE, total(LAST))
    assert post.told == []
    sums.elsewhere(MATE, total(LAST, b"b"))
    ((peer, told),) = post.told
    assert (peer, told.digest, told.final) == (MATE, total(LAST).digest, True)
    sums.elsewhere(MATE, msgspec.structs.replace(total(LAST, b"b"), final=True))
    assert len(post.told) == 1  # a fork: no name gives way


def test_what_others_stepped_with_is_kept_until_the_next_step(sums: Sums, post: Any) -> None:
    final = msgspec.structs.replace(total(LAST, b"z"), final=True)
    sums.elsewhere(MATE, final)
    sums.elsewhere(PeerId("other"), msgspec.structs.replace(total(LAST), final=True))
    assert sums.of_others()[0] == {Stage(0): final}
    assert len(sums.of_others()) == 2
    assert post.told == []
    sums.begin(NEXT, canonical=True)
    assert sums.of_others() == ()


def test_another_name_is_stood_on_unless_the_step_after_it_is_being_taken(
    sums: Sums, machine: Any
) -> None:
    other = (total(LAST, b"z"),)
    done = Done(at=LAST, sums=other, outcome=step_outcome(other, 4), chain=NEXT.chain)
    machine.phase = Phase.COMMITTED
    assert not loop.run(sums.stand_on(done))
    machine.phase = Phase.COUNTING
    assert loop.run(sums.stand_on(done))
    assert sums.known(LAST)[Stage(0)].digest == other[0].digest
    assert not loop.run(sums.stand_on(done))  # the round is over: there is none to leave


def test_who_comes_over_to_another_name_gives_no_sum_meanwhile(sums: Sums, machine: Any) -> None:
    """Compute forgets it, and would be asked for what it has no more."""
    other = (total(LAST, b"z"),)
    done = Done(at=LAST, sums=other, outcome=step_outcome(other, 4), chain=NEXT.chain)
    machine.phase = Phase.COUNTING

    async def scene() -> None:
        assert sums.held(LAST) == total(LAST)
        async with asyncio.TaskGroup() as group:
            group.create_task(sums.stand_on(done))
            await asyncio.sleep(0.5)
            assert sums.held(LAST) is None
        assert sums.held(LAST) is None

    loop.run(scene())


def test_in_one_arithmetic_nobody_is_contradicted(sums: Sums, post: Any) -> None:
    sums.begin(AT, canonical=False)
    sums.elsewhere(MATE, total(LAST, b"b"))
    assert post.told == []
    assert not sums.known(LAST)[Stage(0)].final


def test_a_late_plan_is_answered_with_the_sum(sums: Sums, post: Any) -> None:
    sums.late(MATE, make_plan(NEXT, Stage(0), (0, 0), (), ()))
    assert post.told == []
    sums.late(MATE, make_plan(LAST, Stage(0), (0, 0), (), ()))
    assert [told.digest for _, told in post.told] == [total(LAST).digest]


def test_what_is_known_is_told_of_this_step_and_the_last(sums: Sums) -> None:
    assert sums.known(AT) == {Stage(0): total(AT)}
    assert sums.known(LAST)[Stage(0)].final
    assert sums.known(NEXT) == {}


def test_integers_are_given_only_while_they_are_held(sums: Sums, machine: Machine) -> None:
    assert sums.held(AT) == total(AT)
    assert sums.held(LAST) == total(LAST)
    machine.held = False
    assert sums.held(AT) is None
    sums.begin(AT, canonical=True)  # the step went with what a load had taken away
    assert sums.held(LAST) is None


def test_what_led_to_a_state_is_given_along_with_it_where_names_can_part(sums: Sums) -> None:
    assert sums.taken(AT) == (total(LAST),)
    assert sums.taken(NEXT) == ()  # it stands elsewhere by now
    sums.begin(AT, canonical=False)
    assert sums.taken(AT) == ()


def test_what_would_fill_a_manifest_stays_behind(sums: Sums, committer: Any) -> None:
    many = (msgspec.structs.replace(total(LAST), norms=(1.0,) * (TAKEN_BYTES // 9)),)
    committer.last = replace(committer.last, sums=many)
    assert sums.taken(AT) == ()


@pytest.mark.parametrize(("canonical", "spoilt"), [(True, False), (True, True), (False, False)])
def test_what_came_with_the_state_is_learned_if_every_signature_is_right(
    sums: Sums, learned: list[Any], *, canonical: bool, spoilt: bool
) -> None:
    sums.begin(AT, canonical=canonical)
    whole = signed(LAST, 1)
    other = msgspec.structs.replace(whole, round=7) if spoilt else whole
    sums.learn(AT, (whole, other))
    assert learned == ([(AT, (whole, other))] if canonical and not spoilt else [])


def test_what_is_sealed_is_admitted_by_others_whatever_its_teller_adds(
    sums: Sums, post: Any
) -> None:
    whole = sums.seal(total(AT))
    assert (whole.publisher, whole.incarnation) == (ME, 3)
    assert sums.admits(MATE, whole, ((ME,),))
    assert sums.admits(MATE, msgspec.structs.replace(whole, final=True), ((ME,),))
    post.serving = {}
    assert not sums.admits(MATE, whole, ((MATE,),))


def signed(at: Position, incarnation: int) -> Sum:
    """By a mate, as its start number ``incarnation``."""
    named = msgspec.structs.replace(total(at), publisher=MATE, incarnation=incarnation)
    signature = SimSigner(MATE).sign(sum_bytes(named))
    return msgspec.structs.replace(named, signature=signature)


@pytest.mark.parametrize("at", [LAST, AT, NEXT])
def test_of_one_peer_no_more_sums_are_remembered_than_it_can_have_started(
    sums: Sums, at: Position
) -> None:
    """Each start may sign one sum: who lies of it would fill the memory, name after name."""
    chains = [Chain(bytes([n]) * 32) for n in range(STARTS_MOST)]
    known = [signed(msgspec.structs.replace(at, chain=chain), 1) for chain in chains]
    assert all(sums.admits(MATE, whole, ((MATE,),)) for whole in known)
    assert not sums.admits(MATE, signed(at, 2), ((MATE,),))
    assert not sums.admits(MATE, signed(at, 1), ((MATE,),))
    assert all(sums.admits(MATE, whole, ((MATE,),)) for whole in known)
    assert not sums.distrusts(MATE)


@pytest.mark.parametrize("steps", [-2, 2, 1 << 40])
def test_a_sum_of_a_step_that_nobody_here_is_near_is_not_looked_at(sums: Sums, steps: int) -> None:
    far = msgspec.structs.replace(AT, step=Step(max(0, AT.step + steps)))
    assert not sums.admits(MATE, signed(far, 1), ((MATE,),))
    assert sums.admits(MATE, signed(AT, 1), ((MATE,),))
