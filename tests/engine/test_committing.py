"""A step is taken in quiet, once, with the sums that are told; its record says what was done."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.chain import genesis_chain, next_chain
from p2ptrain.core.health import BoundaryReading
from p2ptrain.engine.committing import Committer, Done
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Digest, PeerId, RunId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.ports import Update

SPEC = toy_spec(stages=2, microbatches=4, steps=3)
AT = Position(epoch=0, step=Step(0), chain=genesis_chain(RunId("0" * 32)))
NEXT = msgspec.structs.replace(AT, step=Step(1))


def sums(*, finite: bool = True) -> tuple[Sum, ...]:
    whole = Sum(
        at=AT,
        stage=Stage(0),
        digest=Digest(b"0" * 32),
        norms=(1.0,),
        finite=finite,
        tallies=Tallies(),
        cover=(),
        members=(PeerId("me"),),
        round=0,
    )
    tallies = Tallies(loss=1 << 40, tokens=64)
    last = msgspec.structs.replace(whole, stage=Stage(1), norms=(2.0,), tallies=tallies)
    return whole, last


class Bench:
    """A committer of stage 0 of 2, whose compute takes two seconds to step."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, Update]] = []
        self.events: list[ev.AnyEvent] = []
        self.done: list[Done] = []
        self.pipeline: Any = SimpleNamespace(
            frozen=False,
            still=True,
            past=None,
            forget_past=lambda: setattr(self.pipeline, "past", None),
            pace=SimpleNamespace(computing_seconds=1.5),
            answers=SimpleNamespace(offers=3, busies=1),
        )
        self.compute: Any = SimpleNamespace(stage=Stage(0), step=self.step, reading=None)
        self.others: tuple[PeerId, ...] = ()
        post: Any = SimpleNamespace(everyone=lambda: self.others)
        self.kept: list[bool] = []
        self.committer = Committer(
            SPEC,
            self.pipeline,
            self.compute,
            post,
            emit=self.events.append,
            committed=self.done.append,
        )

    async def step(self, update: Update, *, keep: bool) -> None:
        assert self.pipeline.frozen
        assert self.pipeline.still
        assert self.pipeline.past is None
        self.kept.append(keep)
        self.updates.append((now(), update))
        await asyncio.sleep(2.0)

    def play(self, scene: Callable[[], Coroutine[None, None, None]]) -> None:
        loop.run(scene(), ceiling_seconds=1000.0)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_it_steps_with_what_all_stages_say_and_the_chain_grows_by_it() -> None:
    bench = Bench()

    async def scene() -> None:
        bench.committer.begin(now())
        await bench.committer.commit(AT, sums())

    bench.play(scene)
    ((_, update),) = bench.updates
    assert (update.step, update.tokens, update.norms, update.skip) == (0, 64, (1.0, 2.0), False)
    (done,) = bench.done
    assert bench.committer.last is done
    assert done.chain == next_chain(AT.chain, 0, Step(0), sums())
    record = done.record()
    assert (record.step, record.chain, record.loss) == (0, done.chain, done.outcome.loss)


def test_a_sum_that_is_not_finite_skips_the_update_and_says_so() -> None:
    bench = Bench()

    async def scene() -> None:
        bench.committer.begin(now())
        await bench.committer.commit(AT, sums(finite=False))

    bench.play(scene)
    assert [update.skip for _, update in bench.updates] == [True]
    assert [e.skipped for e in bench.events if isinstance(e, ev.StepCommitted)] == [True]


def test_another_name_of_the_last_step_is_stood_on_when_nothing_computes() -> None:
    """What was counted after it goes; its own weights, and what is past, stay as they are."""
    bench = Bench()
    cleared: list[float] = []

    async def clear() -> None:
        cleared.append(now())

    async def scene() -> None:
        bench.compute.clear = clear
        bench.committer.begin(now())
        await bench.committer.commit(AT, sums())
        assert bench.committer.last is not None
        other = replace(bench.committer.last, chain=NEXT.chain)
        bench.pipeline.frozen, bench.pipeline.quiet, bench.pipeline.past = False, False, "kept"
        bench.pipeline.passing = True  # its own sum was known, and it computed for those beside
        async with asyncio.TaskGroup() as group:
            group.create_task(bench.committer.stand_on(other))
            await asyncio.sleep(1.0)
            bench.committer.quiet()
            await asyncio.sleep(1.0)
            assert (bench.pipeline.frozen, bench.pipeline.passing) == (True, False)
            assert bench.committer.last is not other
            bench.pipeline.quiet = True
            bench.committer.quiet()
        assert bench.committer.last is other
        assert cleared == [now()]
        assert bench.pipeline.past == "kept"

    bench.play(scene)
    assert len(bench.updates) == 1


def test_it_waits_until_nothing_computes_however_often_it_is_woken() -> None:
    bench = Bench()

    async def scene() -> None:
        bench.committer.begin(now())
        bench.pipeline.still = False
        async with asyncio.TaskGroup() as group:
            group.create_task(bench.committer.commit(AT, sums()))
            await asyncio.sleep(1.0)
            bench.committer.quiet()  # and busy again before the committer could look
            await asyncio.sleep(1.0)
            assert bench.pipeline.frozen
            assert bench.updates == []
            bench.pipeline.still = True
            bench.committer.quiet()

    bench.play(scene)
    assert [began for began, _ in bench.updates] == [2.0]


@pytest.mark.parametrize("others", [(), (PeerId("other"),)])
def test_the_weights_before_are_kept_while_there_are_others_and_done_says_so(
    others: tuple[PeerId, ...],
) -> None:
    bench = Bench()
    bench.others = others
    bench.play(lambda: bench.committer.commit(AT, sums()))
    assert bench.kept == [bool(others)]
    assert bench.done[0].kept is bool(others)


def test_what_is_kept_of_the_step_before_that_ends_when_the_next_is_taken() -> None:
    bench = Bench()
    stopped: list[float] = []
    bench.pipeline.past = SimpleNamespace(stop=lambda: stopped.append(now()))
    bench.pipeline.still = False

    async def scene() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(bench.committer.commit(AT, sums()))
            await asyncio.sleep(1.0)
            assert bench.pipeline.past is not None  # what it computes now ends first
            bench.pipeline.still = True
            bench.committer.quiet()

    bench.play(scene)
    assert stopped == [0.0]
    assert [began for began, _ in bench.updates] == [1.0]


def test_a_seat_that_closes_meanwhile_has_not_stepped() -> None:
    bench = Bench()

    async def scene() -> None:
        bench.committer.begin(now())
        for still in (False, True):  # cancelled while it waits, and while compute steps
            bench.pipeline.still = still
            async with asyncio.TaskGroup() as group:
                task = group.create_task(bench.committer.commit(AT, sums()))
                await asyncio.sleep(1.0)
                task.cancel()
        assert len(bench.updates) == 1

    bench.play(scene)
    assert (bench.done, bench.events, bench.committer.last) == ([], [], None)


def test_a_step_lasts_from_commit_to_commit_and_the_first_from_its_beginning() -> None:
    bench = Bench()

    async def scene() -> None:
        await asyncio.sleep(5.0)
        bench.committer.begin(now())
        await asyncio.sleep(10.0)
        await bench.committer.commit(AT, sums())
        await asyncio.sleep(1.0)
        bench.committer.begin(now())
        await asyncio.sleep(3.0)
        await bench.committer.commit(NEXT, sums())

    bench.play(scene)
    commits = [event for event in bench.events if isinstance(event, ev.StepCommitted)]
    assert [(event.step, event.seconds) for event in commits] == [(0, 12.0), (1, 6.0)]
    spent = [event for event in bench.events if isinstance(event, ev.Activity)]
    assert [(event.seconds, event.computing_seconds) for event in spent] == [
        (12.0, 1.5),
        (6.0, 1.5),
    ]
    assert {(event.offers, event.busy) for event in spent} == {(3, 1)}


def test_what_is_said_to_have_led_to_a_state_counts_only_if_it_did() -> None:
    bench = Bench()
    chain = next_chain(AT.chain, AT.epoch, AT.step, sums())
    bench.committer.learn(NEXT, sums())
    assert bench.committer.last is None
    bench.committer.learn(msgspec.structs.replace(NEXT, chain=chain), sums())
    done = bench.committer.last
    assert done is not None
    assert (done.at, done.sums, done.chain, done.learned) == (AT, sums(), chain, True)
    assert not bench.events  # nothing was committed here


WELL = BoundaryReading(
    boundary=0,
    magnitude=2.0,
    deviation=1.0,
    least_deviation=0.5,
    saturation=0.01,
    error=0.1,
    gradient_norm=1e-4,
)
DEAD = replace(WELL, gradient_norm=0.0)


def test_what_crossed_the_boundary_above_is_told_and_an_alarm_once_until_it_has_passed() -> None:
    bench = Bench()
    readings = [None, WELL, DEAD, DEAD, WELL, DEAD]

    async def scene() -> None:
        for reading in readings:
            bench.compute.reading = reading
            await bench.committer.commit(AT, sums())

    bench.play(scene)
    told = [e for e in bench.events if isinstance(e, ev.BoundaryRead)]
    assert [e.gradient_norm for e in told] == [1e-4, 0.0, 0.0, 1e-4, 0.0]
    assert {(e.boundary, e.step, e.deviation, e.error) for e in told} == {(0, 0, 1.0, 0.1)}
    alarms = [e.reason for e in bench.events if isinstance(e, ev.Alarm)]
    assert len(alarms) == 2
    assert "boundary 0" in alarms[0]
