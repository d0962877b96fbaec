"""One seat's part in agreement: what it signs, whom it believes, and how it falls silent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.agreement import Ack, Bitmap, Go, Plan, Position, Sum, Tallies
from p2ptrain.core.chain import genesis_chain, sum_bytes
from p2ptrain.core.ledger import bitmap_bytes, mask_to_bytes
from p2ptrain.core.offers import OfferBook
from p2ptrain.core.rounds import Phase
from p2ptrain.core.routing import Router
from p2ptrain.core.schedule import step_slots
from p2ptrain.engine.custodian import Custodian
from p2ptrain.engine.distrust import Distrust
from p2ptrain.engine.items import Place
from p2ptrain.engine.pipeline import Pipeline
from p2ptrain.engine.stepping import Stepper
from p2ptrain.engine.sums import PULLS_MOST
from p2ptrain.engine.worker import perform
from p2ptrain.errors import MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.compute import ToyCompute
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import Chain, Digest, Microbatch, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from p2ptrain.engine.committing import Done

ME, MATE, LIAR, ABOVE = PeerId("me"), PeerId("mate"), PeerId("liar"), PeerId("above")
RUN = RunId("0" * 32)
SPEC = toy_spec(stages=1, microbatches=4, steps=3)
AT = Position(epoch=0, step=Step(0), chain=genesis_chain(RUN))
NEXT = msgspec.structs.replace(AT, step=Step(1))


class Rig:
    """A stepper of the only stage, with toy compute; ``live`` is who counts beside us."""

    def __init__(self, post: Any, group: asyncio.TaskGroup) -> None:
        self.post, self.group = post, group
        self.events: list[ev.AnyEvent] = []
        self.done: list[Done] = []
        self.live = frozenset({ME})
        self.sequence = 0
        self.distrust = Distrust(self.see)
        post.serving = {0: (MATE, ME), 1: (ABOVE,)}

    async def open(self) -> Rig:
        self.compute = await ToyCompute(SPEC, ME).open(Stage(0))
        custodian = Custodian(Stage(0), Router(random.Random(0)), self.post, self.see)
        place = Place(
            me=ME,
            stage=Stage(0),
            is_last=True,
            token_bytes=5,
            retained_bytes_each=0,
            retained_bound=1,
        )
        self.pipeline = Pipeline(
            place,
            OfferBook(SPEC.limits, parked_bound=4),
            custodian,
            post=self.post,
            emit=self.see,
            backlog=lambda: 0.0,
        )
        self.pipeline.corpus = ToyCorpus(SPEC)
        self.stepper = Stepper(
            run=RUN,
            spec=SPEC,
            incarnation=1,
            signer=SimSigner(ME),
            pipeline=self.pipeline,
            compute=self.compute,
            post=self.post,
            emit=self.see,
            spawn=self.spawn,
            live=lambda _stage, _at, _members: self.live,
            committed=self.done.append,
            next_seq=self.next_seq,
            distrust=self.distrust,
        )
        self.pipeline.on_change = lambda: self.stepper.quiet(now())
        self.pipeline.on_count = lambda: self.stepper.counted(now())
        self.begin(AT)
        return self

    def see(self, event: ev.AnyEvent) -> None:
        self.events.append(event)

    def next_seq(self) -> int:
        self.sequence += 1
        return self.sequence

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return self.group.create_task(job)

    def begin(self, at: Position) -> None:
        self.pipeline.begin(at, step_slots(SPEC, at.step), parked_bound=4)
        self.stepper.begin(at, ((ME, MATE),), now())

    async def count(self, *slots: int) -> None:
        for slot in slots:
            assert self.pipeline.source(Microbatch(self.stepper.at.step, Slot(slot)), replay=False)
        while (item := self.pipeline.next_job()) is not None:
            await perform(self.pipeline, self.compute, item)


def now() -> float:
    return asyncio.get_running_loop().time()


def bitmap(peer: PeerId, mask: int, *, at: Position = AT, seq: int = 1) -> Bitmap:
    unsigned = Bitmap(
        peer=peer,
        incarnation=1,
        at=at,
        stage=Stage(0),
        seq=seq,
        slots=mask_to_bytes(mask, 4),
        tallies=Tallies(),
        signature=b"",
    )
    return msgspec.structs.replace(unsigned, signature=SimSigner(peer).sign(bitmap_bytes(unsigned)))


def forged(peer: PeerId, mask: int, *, at: Position = AT) -> Bitmap:
    return msgspec.structs.replace(bitmap(peer, mask, at=at), signature=b"x" * 32)


def a_sum(at: Position, *, digest: bytes = b"d") -> Sum:
    return Sum(
        at=at,
        stage=Stage(0),
        digest=Digest(digest * 32),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(MATE,),
        round=0,
    )


def signed(whole: Sum, by: PeerId) -> Sum:
    named = msgspec.structs.replace(whole, publisher=by, incarnation=1)
    return msgspec.structs.replace(named, signature=SimSigner(by).sign(sum_bytes(named)))


Scene = Callable[[Rig], Coroutine[None, None, None]]


@pytest.fixture
def play(post: Any) -> Callable[[Scene], None]:
    """Run a scene with a rig in virtual time."""

    def run(scene: Scene) -> None:
        async def main() -> None:
            async with asyncio.TaskGroup() as group:
                rig = await Rig(post, group).open()
                await scene(rig)
                rig.stepper.close()

        loop.run(main(), ceiling_seconds=1000.0)

    return run


def test_alone_it_counts_sums_and_commits_like_the_reference(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        await rig.count(0, 1, 2, 3)
        await asyncio.sleep(1.0)
        (done,) = rig.done
        assert done.sums[0].digest == reference(SPEC, ToyCorpus(SPEC)).sums[Step(0), Stage(0)]
        committed = [event for event in rig.events if isinstance(event, ev.StepCommitted)]
        assert [event.step for event in committed] == [0]
        assert rig.stepper.known_sums(AT) == {0: done.sums[0]}
        rig.begin(NEXT)
        assert rig.stepper.known_sums(AT) == {0: done.sums[0]}
        assert rig.stepper.known_sums(NEXT) == {}

    play(scene)


def test_a_forged_bitmap_is_misbehaviour_now_or_early_and_leaves_nothing(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        for at in (AT, NEXT):
            with pytest.raises(MisbehaviourError):
                rig.stepper.bitmap(forged(MATE, 0b1, at=at), now())
        rig.begin(NEXT)
        assert rig.stepper.machine is not None
        assert rig.stepper.machine.ledger.get(MATE) is None

    play(scene)


def test_a_bitmap_of_the_next_step_waits_for_us_the_newest_of_each(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        for seq, mask in ((2, 0b11), (1, 0b1)):
            rig.stepper.bitmap(bitmap(MATE, mask, at=NEXT, seq=seq), now())
        rig.begin(NEXT)
        assert rig.stepper.machine is not None
        kept = rig.stepper.machine.ledger.get(MATE)
        assert kept is not None
        assert kept.seq == 2

    play(scene)


def test_a_bitmap_of_another_history_is_nothing(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        foreign = msgspec.structs.replace(AT, chain=Chain(bytes(32)))
        rig.stepper.bitmap(bitmap(MATE, 0b1, at=foreign), now())
        assert rig.stepper.machine is not None
        assert rig.stepper.machine.ledger.get(MATE) is None

    play(scene)


def test_what_mates_counted_is_dropped_here(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.live = frozenset({ME, MATE})
        rig.stepper.refresh_live(now())
        rig.pipeline.source(Microbatch(Step(0), Slot(2)), replay=False)
        rig.stepper.bitmap(bitmap(MATE, 0b100), now())
        assert not rig.pipeline.holds(Microbatch(Step(0), Slot(2)))

    play(scene)


def test_a_restarted_mate_has_counted_nothing(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.live = frozenset({ME, MATE})
        rig.stepper.refresh_live(now())
        rig.stepper.bitmap(bitmap(MATE, 0b100), now())
        rig.stepper.restarted(MATE)
        assert rig.stepper.machine is not None
        assert rig.stepper.machine.ledger.union() == 0

    play(scene)


def test_bitmaps_go_on_counting_over_steps(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        await rig.count(0)
        rig.stepper.tick(now() + 10.0)
        first = rig.stepper.machine and rig.stepper.machine.ledger.get(ME)
        assert first is not None
        rig.begin(NEXT)
        second = rig.stepper.machine and rig.stepper.machine.ledger.get(ME)
        assert second is not None
        assert second.seq > first.seq
        assert SimSigner(MATE).verify(ME, bitmap_bytes(second), second.signature)

    play(scene)


def test_a_sum_that_comes_a_step_early_is_not_lost(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        early = signed(a_sum(NEXT), MATE)
        rig.stepper.received(MATE, early, now())
        rig.begin(NEXT)
        await asyncio.sleep(0.1)
        assert (MATE, m.PullSum(at=NEXT, stage=Stage(0))) in rig.post.told

    play(scene)


def test_a_sum_is_passed_on_as_it_was_signed_and_believed_from_anybody_with_a_seat(
    play: Any,
) -> None:
    async def scene(rig: Rig) -> None:
        whole = signed(a_sum(AT), MATE)
        rig.live = frozenset({ME, MATE})
        rig.stepper.refresh_live(now())
        rig.stepper.received(ABOVE, whole, now())
        await asyncio.sleep(0.1)
        assert (MATE, m.PullSum(at=AT, stage=Stage(0))) in rig.post.told

    play(scene)


def test_a_sum_with_a_wrong_signature_costs_its_teller_the_link(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        honest = signed(a_sum(AT), MATE)
        for wrong in (
            msgspec.structs.replace(honest, digest=Digest(b"x" * 32)),
            msgspec.structs.replace(honest, members=(MATE, ABOVE)),
            msgspec.structs.replace(honest, incarnation=2),
            msgspec.structs.replace(honest, signature=b""),
        ):
            with pytest.raises(MisbehaviourError, match="wrong signature") as caught:
                rig.stepper.received(ABOVE, wrong, now())
            assert caught.value.peer == ABOVE
        assert rig.stepper.known_sums(AT) == {}

    play(scene)


def test_a_sum_of_somebody_without_a_seat_of_its_stage_is_not_heard(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.stepper.received(MATE, signed(a_sum(AT), ABOVE), now())
        rig.stepper.received(MATE, a_sum(AT), now())
        await asyncio.sleep(0.1)
        assert rig.post.all(m.PullSum) == []

    play(scene)


def test_who_signs_two_sums_is_named_and_not_believed_any_more(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.stepper.received(MATE, signed(a_sum(AT), MATE), now())
        rig.stepper.received(ABOVE, signed(a_sum(AT, digest=b"e"), MATE), now())
        (alarm,) = [event.reason for event in rig.events if isinstance(event, ev.Alarm)]
        assert alarm.startswith(f"{MATE} has signed two SUMs for stage 0 of step 0")
        assert MATE in rig.distrust
        machine = rig.stepper.machine
        assert machine is not None
        assert not machine.alarmed
        rig.stepper.received(ABOVE, signed(a_sum(AT), MATE), now())
        assert machine.sums == {}

    play(scene)


def test_a_peer_that_restarted_may_sign_another_sum(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.stepper.received(MATE, signed(a_sum(AT), MATE), now())
        named = msgspec.structs.replace(a_sum(AT), publisher=MATE, incarnation=2)
        again = msgspec.structs.replace(named, signature=SimSigner(MATE).sign(sum_bytes(named)))
        rig.stepper.received(MATE, again, now())
        assert MATE not in rig.distrust

    play(scene)


def test_a_sum_is_given_to_one_peer_a_few_times_only(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        await rig.count(0, 1, 2, 3)
        await asyncio.sleep(1.0)
        assert rig.done
        for _ in range(PULLS_MOST):
            rig.stepper.pull_sum(MATE, m.PullSum(at=AT, stage=Stage(0)))
        await asyncio.sleep(1.0)
        assert len(rig.post.sent) == PULLS_MOST
        assert rig.post.all(m.NoSuch) == []
        rig.stepper.pull_sum(MATE, m.PullSum(at=AT, stage=Stage(0)))
        assert rig.post.last(m.NoSuch).what == "sum"
        rig.stepper.pull_sum(ABOVE, m.PullSum(at=AT, stage=Stage(0)))
        await asyncio.sleep(1.0)
        assert len(rig.post.sent) == PULLS_MOST + 1

    play(scene)


def test_without_a_sum_a_pull_is_answered_so(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.stepper.pull_sum(MATE, m.PullSum(at=AT, stage=Stage(0)))
        assert rig.post.last(m.NoSuch).what == "sum"

    play(scene)


def test_a_reduction_whose_parts_do_not_go_out_gives_way_to_another_round(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        rig.live = frozenset({ME, MATE})
        rig.stepper.refresh_live(now())
        rig.stepper.bitmap(bitmap(MATE, 0b1100), now())
        await rig.count(0, 1)
        machine = rig.stepper.machine
        assert machine is not None
        for _ in range(200):  # until the rounds make us the leader
            await asyncio.sleep(1.0)
            rig.stepper.tick(now())
            if plans := rig.post.all(Plan):
                break
        plan = plans[-1]
        rig.stepper.received(MATE, Ack(at=AT, stage=Stage(0), ballot=plan.ballot), now())
        assert machine.phase is Phase.REDUCING
        assert rig.post.all(Go)
        await asyncio.sleep(0.1)
        began = machine.round
        (part,) = [sent for sent in rig.post.sent if sent.message.what == "own"]
        part.failed(now())
        await asyncio.sleep(60.0)
        rig.stepper.tick(now())
        assert machine.round > began
        assert "no part reaches mate" in machine.reason

    play(scene)


def test_a_closed_seat_says_and_does_nothing_more(play: Any) -> None:
    async def scene(rig: Rig) -> None:
        await rig.count(0)
        rig.stepper.close()
        said = len(rig.post.told)
        rig.stepper.bitmap(forged(LIAR, 1), now())
        rig.stepper.counted(now())
        rig.stepper.tick(now() + 100.0)
        rig.stepper.greet(MATE)
        rig.stepper.refresh_live(now())
        assert rig.stepper.due_at is None
        assert len(rig.post.told) == said

    play(scene)
