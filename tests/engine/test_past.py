"""What is kept of a step that has been committed, and for how long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from p2ptrain.core.agreement import Counted, Position, Sum, Tallies
from p2ptrain.core.chain import StepOutcome
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.core.schedule import step_slots
from p2ptrain.engine.committing import Done
from p2ptrain.engine.past import Past, let_go
from p2ptrain.engine.roster import Roster
from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Digest, Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

ME, MATE = PeerId("me"), PeerId("mate")
ABOVE, OTHER, BELOW = PeerId("above"), PeerId("other"), PeerId("below")
LAST = PeerId("last")
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))
WORK, PARKED = Microbatch(AT.step, Slot(0)), Microbatch(AT.step, Slot(1))


def whole(stage: int, cover: dict[PeerId, int]) -> Sum:
    return Sum(
        at=AT,
        stage=Stage(stage),
        digest=Digest(bytes(32)),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=tuple(Counted(peer, mask_to_bytes(mask, 2)) for peer, mask in cover.items()),
        members=tuple(cover),
        round=0,
    )


class Scene:
    """A seat of stage 1 that has committed step 3; slot 0 was counted above by ABOVE.

    ``parks``: it has slot 1 as well, which MATE counted, from a seat below that counts again.
    """

    def __init__(self, bench: Any, *, parks: bool = False) -> None:
        self.bench = bench(stage=1)
        self.post, self.roster = self.bench.post, Roster(ME)
        for peer, stage in ((BELOW, 0), (ME, 1), (MATE, 1), (ABOVE, 2), (OTHER, 2)):
            self.at(peer, stage, 3)
        self.post.serving = {0: (BELOW,), 1: (ME, MATE), 2: (ABOVE, OTHER)}
        self.bench.router.set_seats({OTHER: 1.0})
        pipeline = self.bench.pipeline
        pipeline.begin(AT, step_slots(self.bench.spec, Step(0)), parked_bound=8)
        custodian = pipeline.custodian
        custodian.open_forward(WORK, (BELOW, ME), replay=False, returns=True, now=0.0)
        custodian.forward_ready(WORK, (b"tokens", b"activations"), 0.0)
        custodian.send_gradient(WORK, BELOW, b"gradient", 0.0)
        if parks:
            self.park(pipeline)
        sums = (whole(0, {BELOW: 3}), whole(1, {ME: 1, MATE: 2}), whole(2, {ABOVE: 1, OTHER: 2}))
        self.over = pipeline.leave(passing=True)
        self.custodian = self.over.custodian
        self.settled: list[bool] = []
        self.past = Past(done(sums), self.over, self.roster)
        self.past.settled_now = lambda: self.settled.append(True)
        self.past.begin(1.0)
        self.post.told.clear()

    def park(self, pipeline: Any) -> None:
        """Compute the forward of PARKED, and hear that OTHER had counted it above."""
        pipeline.frozen = pipeline.passing = True
        pipeline.forward(BELOW, parked_frame(), memoryview(bytes(100)), 0.0)
        item = pipeline.next_job()
        path, custodian = (*item.path, ME), pipeline.custodian
        pipeline.book.started(item.work)
        custodian.open_forward(item.work, path, replay=True, returns=True, now=0.0)
        pipeline.book.computed(item.work)
        item.state = "parked"
        custodian.forward_ready(item.work, (b"tokens", b"activations"), 0.0)
        custodian.tallied("forward", 1 << PARKED.slot, 0.0)

    def at(self, peer: PeerId, stage: int, version: int, *, beyond: int | None = None) -> None:
        """``beyond``: how far all further stages are, on both sides, it says."""
        least = Step(version if beyond is None else beyond)
        status = m.SeatStatus(
            stage=Stage(stage),
            state="serving",
            version=Step(version),
            rate=1.0,
            queue=0,
            parked=0,
            least_above=least,
            least_below=least,
        )
        self.roster.hear(peer, [status])


def parked_frame() -> m.Forward:
    return m.Forward(at=AT, slot=PARKED.slot, stage=Stage(1), attempt=0, replay=True, path=(BELOW,))


def done(sums: tuple[Sum, ...]) -> Done:
    outcome = StepOutcome(
        tokens=1, loss=0.0, val_tokens=0, val_loss=None, poisoned=0, norms=(), skip=False
    )
    return Done(at=AT, sums=sums, outcome=outcome, chain=AT.chain, kept=True)


@pytest.fixture
def scene(bench: Any) -> Scene:
    return Scene(bench)


def test_frames_are_kept_until_every_live_seat_of_the_receiving_stage_is_through(
    scene: Scene,
) -> None:
    scene.at(BELOW, 0, 4)
    scene.at(ABOVE, 2, 4)
    scene.past.refresh(2.0)
    assert scene.past.retained_bytes == len(b"tokens" + b"activations")
    assert not scene.past.settled
    scene.at(OTHER, 2, 4)
    scene.past.refresh(3.0)
    assert (scene.past.retained_bytes, scene.past.settled) == (0, True)
    assert scene.settled == [True]
    scene.past.refresh(4.0)
    assert scene.settled == [True]  # said once


def test_whom_a_seat_cannot_help_to_count_its_last_step_again(scene: Scene) -> None:
    last = done((whole(0, {}), whole(1, {}), whole(2, {})))

    def gone(past: Past | None) -> list[int]:
        assert all(one.at == AT for one in let_go(Stage(1), last, past))
        return [one.stage for one in let_go(Stage(1), last, past)]

    assert gone(scene.past) == []
    scene.at(BELOW, 0, 4)
    scene.past.refresh(2.0)
    assert gone(scene.past) == [0]
    assert gone(None) == [0, 2]
    assert let_go(Stage(1), None, None) == []  # it took no step
    assert [one.stage for one in let_go(Stage(2), last, None)] == [1]
    assert let_go(Stage(2), replace(last, learned=True), None) == []  # nor did it here


def test_a_newcomer_that_is_behind_is_waited_for_as_well(scene: Scene) -> None:
    for peer, stage in ((BELOW, 0), (ABOVE, 2), (OTHER, 2)):
        scene.at(peer, stage, 4)
    scene.at(PeerId("newcomer"), 2, 3)
    scene.past.refresh(2.0)
    assert not scene.past.settled


@pytest.mark.parametrize(("peer", "stage", "kept"), [(ABOVE, 2, b"forward"), (BELOW, 0, b"back")])
def test_stages_beyond_those_beside_are_waited_for_each_way_on_its_own(
    scene: Scene, peer: PeerId, stage: int, kept: bytes
) -> None:
    for other, there in ((BELOW, 0), (ABOVE, 2), (OTHER, 2)):
        scene.at(other, there, 4, beyond=3 if there == stage else 4)
    scene.past.refresh(2.0)
    sizes = {b"forward": len(b"tokens" + b"activations"), b"back": len(b"gradient")}
    assert scene.past.retained_bytes == sizes[kept]
    assert not scene.past.settled
    scene.at(peer, stage, 4)
    scene.past.refresh(3.0)
    assert scene.past.settled


def test_it_passes_what_a_stage_mate_had_counted_and_adds_nothing(scene: Scene) -> None:
    scene.over.forward(BELOW, parked_frame(), memoryview(bytes(100)), 2.0)
    item = scene.over.next_job()
    assert item is not None
    assert (item.work, scene.over.sign(PARKED)) == (PARKED, 0)
    scene.past.stop()
    assert scene.over.next_job() is None  # the weights go


def test_once_settled_nothing_more_is_computed(scene: Scene, post: Any) -> None:
    for peer, stage in ((BELOW, 0), (ABOVE, 2), (OTHER, 2)):
        scene.at(peer, stage, 4)
    scene.past.refresh(2.0)
    ask = m.Ask(at=AT, slot=Slot(1), stage=Stage(1), attempt=0, replay=True)
    scene.over.ask(BELOW, ask, 3.0)
    assert post.last(m.Busy).reason == "draining"


def test_a_gradient_that_is_asked_for_is_sent_though_its_counter_lives(
    scene: Scene, post: Any
) -> None:
    """Who replays has not counted it, whatever the SUM says: it may have taken it out again."""
    before = len(post.sent)
    scene.custodian.repath(BELOW, WORK, 2.0)
    assert [type(sent.message) for sent in post.sent[before:]] == [m.Gradient]


def test_what_a_seat_below_waits_for_when_the_step_ends_here_is_looked_for_on(bench: Any) -> None:
    """The seats beside have not stepped: nobody but us will ask for that gradient."""
    scene = Scene(bench, parks=True)
    scene.past.tick(20.0)
    where = m.Where(at=AT, slot=PARKED.slot, stage=Stage(2))
    assert scene.post.told == [(ABOVE, where), (OTHER, where)]
    said = m.Whereabouts(at=AT, slot=PARKED.slot, stage=Stage(2), state="counted")
    scene.custodian.hear(OTHER, said, 20.0)
    assert scene.post.told[-1] == (OTHER, m.Repath(at=AT, slot=PARKED.slot, stage=Stage(1)))


def test_what_a_lost_member_had_counted_is_offered_to_another(scene: Scene, post: Any) -> None:
    scene.roster.lost(ABOVE)
    scene.past.lost(ABOVE, 2.0)
    assert post.last(m.Ask).at == AT
    assert {peer for peer, message in post.told if isinstance(message, m.Ask)} == {OTHER}


def test_a_loss_costs_nothing_once_somebody_else_is_through(scene: Scene, post: Any) -> None:
    scene.at(OTHER, 2, 4)
    scene.at(ABOVE, 2, 4)
    scene.past.refresh(2.0)
    scene.roster.lost(ABOVE)
    scene.past.lost(ABOVE, 3.0)
    assert post.told == []


def test_a_gradient_waits_to_be_told_who_replays(scene: Scene, post: Any) -> None:
    scene.roster.lost(BELOW)
    scene.past.lost(BELOW, 2.0)
    before = len(post.sent)
    scene.custodian.repath(PeerId("heir"), WORK, 3.0)
    assert [(sent.peer, type(sent.message)) for sent in post.sent[before:]] == [
        (PeerId("heir"), m.Gradient)
    ]


def test_it_is_handed_over_when_a_mate_is_through(scene: Scene) -> None:
    scene.at(ME, 1, 4)
    assert not scene.past.handed_over(ME)
    scene.at(MATE, 1, 4)
    assert scene.past.handed_over(ME)


# --- at stage 0: from the data ----------------------------------------------------------------


class Source:
    """A seat of stage 0 beside MATE; ABOVE has counted slots 0 and 2 above, OTHER 1 and 3."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench(stage=0)
        pipeline = self.bench.pipeline
        pipeline.begin(AT, step_slots(self.bench.spec, Step(0)), parked_bound=8)
        self.roster = Roster(ME)
        for peer, stage in ((ME, 0), (MATE, 0), (ABOVE, 1), (OTHER, 1), (LAST, 2)):
            status = m.SeatStatus(
                stage=Stage(stage), state="serving", version=AT.step, rate=1.0, queue=0, parked=0
            )
            self.roster.hear(peer, [status])
        sums = (whole(0, {ME: 3, MATE: 12}), whole(1, {ABOVE: 5, OTHER: 10}), whole(2, {LAST: 15}))
        over = pipeline.leave(passing=True)
        self.past = Past(done(sums), over, self.roster)
        self.past.begin(1.0)

    def lose(self, peer: PeerId, now: float) -> None:
        self.roster.lost(peer)
        self.past.lost(peer, now)

    def sourced(self) -> list[int]:
        return [e.slot for e in self.bench.events if isinstance(e, ev.Sourced)]


def test_what_neither_its_sender_nor_its_counter_has_is_taken_from_the_data_again(
    bench: Any,
) -> None:
    source = Source(bench)
    source.lose(MATE, 2.0)
    assert source.sourced() == []  # those that counted it live
    source.lose(OTHER, 3.0)
    assert source.sourced() == [3]
    assert {e.order for e in source.bench.events if isinstance(e, ev.Sourced)} == {1}
    source.lose(ABOVE, 4.0)
    assert source.sourced() == [3, 2]


def test_what_finds_no_room_is_taken_when_there_is_some(bench: Any) -> None:
    source = Source(bench)
    source.lose(MATE, 2.0)
    book = source.past.pipeline.book
    book.set_parked_bound(1)
    blocking = Microbatch(AT.step, Slot(7))
    assert book.source(blocking)
    source.lose(OTHER, 3.0)
    assert source.sourced() == []
    book.forget(blocking)
    source.past.changed()
    assert source.sourced() == [3]
