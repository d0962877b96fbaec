"""The driver does what the machine says: all of it, in order, one job at a time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core import rounds as r
from p2ptrain.core.agreement import Ballot, Plan, Position, Share, Sum, Tallies
from p2ptrain.core.chain import genesis_chain
from p2ptrain.engine.driving import FETCH_SECONDS, Driver, step_limits
from p2ptrain.engine.loans import Loans
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.units import Digest, PeerId, RunId, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

ME, MATE, OLD = PeerId("me"), PeerId("mate"), PeerId("old")
AT = Position(epoch=0, step=Step(0), chain=genesis_chain(RunId("0" * 32)))
BALLOT = Ballot(round=0, rank=0, digest=Digest(bytes(32)))
PLAN = Plan(
    at=AT,
    stage=Stage(1),
    ballot=BALLOT,
    shares=(
        Share(peer=ME, incarnation=1, seq=1, slots=b"", tallies=Tallies(), start=0, stop=8),
        Share(peer=MATE, incarnation=1, seq=1, slots=b"\x01", tallies=Tallies(), start=8, stop=16),
    ),
)
SUM = Sum(
    at=AT,
    stage=Stage(1),
    digest=Digest(bytes(32)),
    norms=(),
    finite=True,
    tallies=Tallies(),
    cover=(),
    members=(MATE,),
    round=0,
)
LIVE = r.Live(frozenset({ME}))


class Script:
    """A round machine that answers each event from a list, and remembers what it heard."""

    def __init__(self, log: list[Any], answers: list[tuple[r.Action, ...]]) -> None:
        self.at, self.round, self.leader, self.plan = AT, 0, MATE, PLAN
        self.reason, self.phase = "why not", r.Phase.COUNTING
        self._log, self._answers = log, answers

    def handle(self, event: r.Event, *, now: float) -> tuple[r.Action, ...]:
        self._log.append(event)
        assert now == asyncio.get_running_loop().time()
        return self._answers.pop(0) if self._answers else ()

    def tick(self, *, now: float) -> tuple[r.Action, ...]:
        self._log.append("tick")
        assert now == asyncio.get_running_loop().time()
        self.round += 1
        return ()


class Rig:
    """A driver of a seat of stage 1 with a scripted machine; ``log``: what happened, in order."""

    def __init__(self, post: Any, group: asyncio.TaskGroup, *answers: tuple[r.Action, ...]) -> None:
        self.post, self.log = post, post.told
        self.tasks: list[asyncio.Task[None]] = []
        self.committed: list[tuple[Sum, ...]] = []
        self.pipeline: Any = SimpleNamespace(
            frozen=False,
            passing=False,
            quiet=True,
            on_change=lambda: self.log.append("change"),
            on_count=lambda: self.log.append("count"),
            counted_items=lambda _mask: [],
            loans=Loans(),
            shelf=SimpleNamespace(borrowed=0),
        )
        self.gossip: Any = SimpleNamespace(
            due_at=1.0, tell=lambda leader: self.log.append(f"bitmap to {leader}")
        )
        self.events: list[ev.AnyEvent] = []
        self.machine: Any = Script(self.log, list(answers))
        committer: Any = SimpleNamespace(quiet=lambda: None, commit=self.commit)
        compute: Any = SimpleNamespace(stage=Stage(1), elements=16)

        def spawn(job: Coroutine[None, None, None]) -> asyncio.Task[None]:
            self.tasks.append(group.create_task(job))
            return self.tasks[-1]

        self.driver = Driver(
            ME,
            self.pipeline,
            compute,
            self.gossip,
            committer,
            post=post,
            emit=self.events.append,
            spawn=spawn,
        )
        self.driver.begin(self.machine, frozenset({MATE, OLD}))

    async def commit(self, at: Position, sums: tuple[Sum, ...]) -> None:
        assert at == AT
        self.committed.append(sums)

    def feed(self, event: r.Event | None = LIVE) -> None:
        self.driver.feed(event, now())

    def heard(self) -> list[type]:
        """The kinds of events that the machine was fed."""
        return [type(entry) for entry in self.log if isinstance(entry, r.Event)]


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.fixture
def play(post: Any) -> Callable[..., None]:
    """Run a scene with a rig whose machine gives these answers, in virtual time."""

    def run(scene: Callable[[Rig], Coroutine[None, None, None]], *answers: Any) -> None:
        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                rig = Rig(post, group, *answers)
                await scene(rig)
                rig.driver.close()

        loop.run(main(), ceiling_seconds=1000.0)

    return run


def test_all_actions_of_an_event_are_done_before_what_they_cause_is_fed(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        assert rig.log == [LIVE, (MATE, PLAN), r.Quiet()]

    play(scene, (r.Freeze(), r.Send((MATE,), PLAN)))


def test_quiet_is_said_once_when_what_computes_has_ended(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.pipeline.quiet = False
        rig.feed()
        rig.driver.quiet(now())
        assert rig.pipeline.frozen
        assert rig.heard() == [r.Live]
        rig.pipeline.quiet = True
        rig.driver.quiet(now())
        rig.driver.quiet(now())
        assert rig.heard() == [r.Live, r.Quiet]

    play(scene, (r.Freeze(),))


def test_an_unfrozen_machine_is_owed_no_quiet(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.pipeline.quiet = False
        rig.feed()
        rig.feed()
        rig.pipeline.quiet = True
        rig.driver.quiet(now())
        assert not rig.pipeline.frozen
        assert rig.log == [LIVE, LIVE, "change"]

    play(scene, (r.Freeze(),), (r.Unfreeze(),))


def test_there_is_one_job_and_a_new_one_ends_the_last(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        for _ in range(3):
            rig.feed()
            await asyncio.sleep(1.0)
        reduction, fetch = rig.tasks
        assert reduction.cancelled()
        assert fetch.cancelled()
        assert rig.heard() == [r.Live] * 3

    play(scene, (r.Reduce(PLAN),), (r.FetchSum(MATE, SUM),), (r.AbortReduce(BALLOT),))


@pytest.mark.parametrize(("refuses", "reason"), [(True, "no such sum"), (False, "no answer")])
def test_a_fetch_that_fails_is_told_and_may_be_followed_by_another(
    play: Any, *, refuses: bool, reason: str
) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        await asyncio.sleep(1.0)
        assert (MATE, m.PullSum(at=AT, stage=Stage(1))) in rig.log
        if refuses:
            rig.driver.reducer.refused(MATE)
        await asyncio.sleep(0.1 if refuses else FETCH_SECONDS)
        (failed,) = [entry for entry in rig.log if isinstance(entry, r.FetchFailed)]
        assert failed.holder == MATE
        assert reason in failed.reason
        assert not rig.tasks[0].cancelled()  # the job that says so is not ended by what follows
        assert not rig.tasks[1].done()

    play(scene, (r.FetchSum(MATE, SUM),), (r.FetchSum(OLD, SUM),))


def test_a_commit_ends_gossip_and_is_the_job(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        assert rig.gossip.due_at is None
        await asyncio.sleep(0.1)
        assert rig.committed == [(SUM,)]

    play(scene, (r.Commit((SUM,)),))


def test_what_is_subtracted_is_counted_anew(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        await asyncio.sleep(0.1)
        assert rig.log == [LIVE, "count"]

    play(scene, (r.Subtract(0b1),))


def test_a_sum_goes_to_the_last_record_to_its_members_and_to_everybody_known(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        told = {peer for peer, message in rig.log[1:] if message == SUM}
        assert told == {MATE, OLD, *rig.post.everyone()}
        assert [event.stage for event in rig.events] == [1]  # type: ignore[union-attr]

    play(scene, (r.Publish(SUM),))


def test_missing_sums_are_asked_of_their_stages_and_of_ours(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        asked = {peer for peer, message in rig.log[1:] if isinstance(message, m.WantSums)}
        assert asked == {*rig.post.seats(Stage(1)), *rig.post.seats(Stage(2))}
        assert PeerId("below") not in asked

    play(scene, (r.WantSums((Stage(2),)),))


def test_a_new_round_is_news_and_its_leader_gets_our_bitmap(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        assert rig.events == []
        rig.feed(None)
        (began,) = rig.events
        assert isinstance(began, ev.RoundBegan)
        assert (began.round, began.leader, began.reason) == (1, MATE, "why not")
        assert rig.log == [LIVE, "tick", "bitmap to mate"]

    play(scene)


def test_an_alarm_is_an_event(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.feed()
        assert rig.events == [ev.Alarm(reason="two sums")]

    play(scene, (r.Alarm("two sums"),))


def test_a_seat_that_closes_in_the_midst_hears_and_does_nothing_more(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.pipeline.on_change = rig.driver.close  # as a commit does that gives the seat away
        rig.feed()
        rig.feed()
        assert rig.driver.machine is None
        assert rig.log == [LIVE]

    play(scene, (r.Unfreeze(),))


def test_what_was_fed_while_nobody_listened_is_no_matter_later(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        machine = rig.driver.machine
        rig.driver.close()
        rig.feed()
        assert machine is not None
        rig.driver.begin(machine, frozenset({ME, MATE}))
        rig.feed()
        assert rig.log == [LIVE]

    play(scene)


def test_a_larger_stage_gets_longer_for_its_sum_and_no_longer_for_its_plan() -> None:
    small, large = step_limits(1 << 20), step_limits(1 << 30)
    assert large.reduce_seconds > 100 * (small.reduce_seconds - 15.0)
    assert (large.plan_seconds, large.ack_seconds) == (small.plan_seconds, small.ack_seconds)
