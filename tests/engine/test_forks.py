"""A seat that stands apart under another name of the last step finds out, and comes over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.chain import next_chain, step_outcome
from p2ptrain.engine.committing import Done
from p2ptrain.engine.forks import STILL_SECONDS, Forks
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Coroutine

SPEC = mixed_spec(toy_spec(stages=1, microbatches=4, steps=5), canonical_steps=3)
LAST = Position(epoch=0, step=Step(3), chain=Chain(b"c" * 32))
STAGE, MATE = Stage(0), PeerId("mate")


def total(name: bytes) -> Sum:
    return Sum(
        at=LAST,
        stage=STAGE,
        digest=Digest(name * 32),
        norms=(1.0,),
        finite=True,
        tallies=Tallies(tokens=64),
        cover=(),
        members=(MATE,),
        round=0,
    )


def chain_of(whole: Sum) -> Chain:
    return next_chain(LAST.chain, LAST.epoch, LAST.step, (whole,))


ASKED = ((MATE,), m.WantSums(at=LAST, stages=(STAGE,)))
SMALLER, LARGER = sorted((total(name) for name in (b"x", b"y")), key=chain_of)


class Node:
    """A peer with one seat, which has stepped with ``mine`` and counts in the step after."""

    def __init__(self, mine: Sum, *, spec: Any = SPEC) -> None:
        self.spec, self.done = spec, list[Any]()
        self.roster = SimpleNamespace(everyone=lambda: (MATE,))
        self.mail = SimpleNamespace(tell_all=lambda *told: self.done.append(told))
        self.emit = self.done.append
        self.presence = SimpleNamespace(committed=lambda *told: self.done.append(told))
        self.told: tuple[dict[Stage, Sum], ...] = ()
        self.counted, self.too_late = 0, False
        self.tasks: list[asyncio.Task[None]] = []
        outcome = step_outcome((mine,), 4)
        last = Done(at=LAST, sums=(mine,), outcome=outcome, chain=chain_of(mine), kept=True)
        ledger = SimpleNamespace(union=lambda: self.counted)
        at = Position(epoch=0, step=Step(4), chain=last.chain)
        self.seat = SimpleNamespace(
            stage=STAGE,
            version=Step(4),
            state="serving",
            finished=False,
            parting=False,
            adopting=False,
            begin=self.begin,
            stepper=SimpleNamespace(
                last=last,
                machine=SimpleNamespace(at=at, ledger=ledger),
                sums=SimpleNamespace(of_others=lambda: self.told, stand_on=self.stand_on),
            ),
        )
        self.seats: dict[Stage, Any] = {STAGE: self.seat}
        self.forks = Forks(self)  # type: ignore[arg-type]  # what it looks at is here

    def begin(self, *given: Any) -> None:
        self.seat.state = "serving"
        self.done.append(("begin", *given))

    async def stand_on(self, done: Done) -> bool:
        await asyncio.sleep(2.0)  # a microbatch is being computed
        if not self.too_late:
            self.seat.stepper.last = done
        return not self.too_late

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(job))
        return self.tasks[-1]

    def statuses_changed(self) -> None:
        self.done.append("told all")

    async def turns(self) -> list[Any]:
        """What has come of looks at a seat that stands still, in the end."""
        for now in (0.0, STILL_SECONDS, STILL_SECONDS + 1.0):  # one is enough
            self.forks.look(now)
        assert len(self.tasks) <= 1
        await asyncio.wait(self.tasks) if self.tasks else None
        return self.done


def run(node: Node) -> list[Any]:
    return loop.run(node.turns())


def test_who_hears_of_the_name_that_holds_begins_its_step_anew_under_it() -> None:
    node = Node(LARGER)
    node.told = ({STAGE: SMALLER},)
    opened, begun, committed, told = run(node)
    assert opened == ev.SeatOpened(
        stage=STAGE, version=Step(4), reason="another name of the last step holds"
    )
    at = Position(epoch=0, step=Step(4), chain=chain_of(SMALLER))
    assert begun == ("begin", at, ((MATE,),))
    assert committed == (STAGE, node.seat.stepper.last.record())
    assert told == "told all"
    last = node.seat.stepper.last
    assert (last.sums, last.chain, last.kept) == ((SMALLER,), chain_of(SMALLER), True)


@pytest.mark.parametrize("state", ["serving", "draining"])
def test_who_comes_over_leaves_as_it_was_about_to(state: str) -> None:
    node = Node(LARGER)
    node.told, node.seat.state = ({STAGE: SMALLER},), state
    assert run(node)
    assert node.seat.state == state


@pytest.mark.parametrize("holds", [True, False])
def test_two_seats_of_one_peer_that_stand_apart_hear_each_other(*, holds: bool) -> None:
    """To others the peer tells the name that its lower seat knows."""
    node = Node(LARGER if holds else SMALLER)
    other = SMALLER if holds else LARGER
    last = replace(node.seat.stepper.last, sums=(other,), chain=chain_of(other))
    beside = SimpleNamespace(stepper=SimpleNamespace(last=last, machine=None))
    beside.finished = beside.parting = beside.adopting = False
    node.seats[Stage(1)] = beside
    done = run(node)
    assert node.seat.stepper.last.chain == chain_of(SMALLER)
    assert (done == [ASKED]) is not holds


def test_what_a_seat_beside_took_another_step_with_is_no_other_name() -> None:
    node = Node(LARGER)
    elsewhere = msgspec.structs.replace(LAST, step=Step(2))
    last = replace(node.seat.stepper.last, at=elsewhere, sums=(SMALLER,))
    beside = SimpleNamespace(stepper=SimpleNamespace(last=last, machine=None))
    beside.finished = beside.parting = beside.adopting = False
    node.seats[Stage(1)] = beside
    assert run(node) == [ASKED]


def test_who_stands_on_it_stays() -> None:
    node = Node(SMALLER)
    node.told = ({STAGE: LARGER},)
    assert run(node) == [ASKED]


def test_where_something_is_counted_nobody_is_listened_to() -> None:
    """Or one who signs a new name every second would keep the step from ending."""
    node = Node(LARGER)
    node.told = ({STAGE: SMALLER},)
    for second in range(100):
        node.counted = second // 5
        node.forks.look(float(second))
    assert node.tasks == []
    assert node.done == []


def test_a_step_that_is_being_taken_is_taken() -> None:
    node = Node(LARGER)
    node.told, node.too_late = ({STAGE: SMALLER},), True
    assert run(node) == []
    node.too_late = False
    node.tasks.clear()
    assert run(node)  # it is looked at again


@pytest.mark.parametrize("busy", ["finished", "parting", "adopting"])
def test_who_is_between_two_steps_is_left_alone(busy: str) -> None:
    node = Node(LARGER)
    node.told = ({STAGE: SMALLER},)
    setattr(node.seat, busy, True)
    assert run(node) == []


def test_a_seat_that_closes_does_not_come_over() -> None:
    async def scene() -> None:
        node = Node(LARGER)
        node.told = ({STAGE: SMALLER},)
        node.forks.look(0.0)
        node.forks.look(STILL_SECONDS)
        node.forks.closed(STAGE)
        node.forks.closed(STAGE)
        await asyncio.wait(node.tasks)
        assert node.done == []

    loop.run(scene())


def test_where_nothing_is_counted_all_are_asked_what_they_stepped_with() -> None:
    node = Node(LARGER)
    for now in (0.0, STILL_SECONDS - 0.1):
        node.forks.look(now)
        assert node.done == []
    node.counted = 1  # not yet: something moves
    for now in (STILL_SECONDS, 2 * STILL_SECONDS - 0.1):
        node.forks.look(now)
        assert node.done == []
    for now in (2 * STILL_SECONDS, 2 * STILL_SECONDS + 1.0, 3 * STILL_SECONDS):
        node.forks.look(now)
    assert node.done == [ASKED] * 2


def test_in_one_arithmetic_there_is_one_name() -> None:
    sync = msgspec.structs.replace(SPEC.sync, agreement="bitwise")
    node = Node(LARGER, spec=msgspec.structs.replace(SPEC, sync=sync))
    node.told = ({STAGE: SMALLER},)
    node.forks.look(0.0)
    node.forks.look(100.0)
    assert node.done == []
    assert node.tasks == []
