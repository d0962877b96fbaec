"""What is kept of a step that has been committed, and for how long."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2ptrain.core.agreement import Counted, Position, Sum, Tallies
from p2ptrain.core.chain import StepOutcome
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.core.routing import Router
from p2ptrain.engine.committing import Done
from p2ptrain.engine.custodian import Custodian
from p2ptrain.engine.past import Past
from p2ptrain.engine.roster import Roster
from p2ptrain.units import Chain, Digest, Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

ME, MATE = PeerId("me"), PeerId("mate")
ABOVE, OTHER, BELOW = PeerId("above"), PeerId("other"), PeerId("below")
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))
WORK = Microbatch(AT.step, Slot(0))


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
    """A seat of stage 1 that has committed step 3; slot 0 was counted above by ABOVE."""

    def __init__(self, post: Any) -> None:
        self.post, self.roster = post, Roster(ME)
        for peer, stage in ((BELOW, 0), (ME, 1), (MATE, 1), (ABOVE, 2), (OTHER, 2)):
            self.at(peer, stage, 3)
        post.serving = {0: (BELOW,), 1: (ME, MATE), 2: (ABOVE, OTHER)}
        router = Router(random.Random(0))
        router.set_seats({OTHER: 1.0})
        self.custodian = Custodian(Stage(1), router, post, lambda _: None)
        self.custodian.begin(AT)
        self.custodian.open_forward(WORK, (BELOW, ME), replay=False, returns=True, now=0.0)
        self.custodian.forward_ready(WORK, (b"tokens", b"activations"), 0.0)
        self.custodian.send_gradient(WORK, BELOW, b"gradient", 0.0)
        sums = (whole(0, {BELOW: 3}), whole(1, {ME: 1, MATE: 2}), whole(2, {ABOVE: 1, OTHER: 2}))
        outcome = StepOutcome(
            tokens=1, loss=0.0, val_tokens=0, val_loss=None, poisoned=0, norms=(), skip=False
        )
        done = Done(at=AT, sums=sums, outcome=outcome, chain=AT.chain)
        self.past = Past(done, self.custodian, 1, self.roster)
        self.past.begin(1.0)
        post.told.clear()

    def at(self, peer: PeerId, stage: int, version: int) -> None:
        status = m.SeatStatus(
            stage=Stage(stage), state="serving", version=Step(version), rate=1.0, queue=0, parked=0
        )
        self.roster.hear(peer, [status])


@pytest.fixture
def scene(post: Any) -> Scene:
    return Scene(post)


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


def test_a_newcomer_that_is_behind_is_waited_for_as_well(scene: Scene) -> None:
    for peer, stage in ((BELOW, 0), (ABOVE, 2), (OTHER, 2)):
        scene.at(peer, stage, 4)
    scene.at(PeerId("newcomer"), 2, 3)
    scene.past.refresh(2.0)
    assert not scene.past.settled


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
