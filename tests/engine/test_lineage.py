"""A rollback is taken over when it is signed and beats ours, told on, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.assignment import SeatView
from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.lineage import LEAP_MOST, Rollback, rollback_bytes
from p2ptrain.engine.lineage import PAST_MOST, Lineage
from p2ptrain.engine.roster import Roster
from p2ptrain.errors import MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import Chain, PeerId, RunId, Stage, Step
from p2ptrain.wire.messages import Heartbeat, SeatStatus

RUN = RunId("a" * 32)
ME, ANN, BOB = PeerId("me"), PeerId("ann"), PeerId("bob")


def at(epoch: int, step: int, chain: bytes = b"c") -> Position:
    return Position(epoch=epoch, step=Step(step), chain=Chain(chain * 32))


def rollback(where: Position, by: PeerId = ANN, run: RunId = RUN) -> Rollback:
    unsigned = Rollback(at=where, peer=by, signature=b"")
    signature = SimSigner(by, seed=0).sign(rollback_bytes(run, unsigned))
    return msgspec.structs.replace(unsigned, signature=signature)


def status(epoch: int, stage: int = 0) -> SeatStatus:
    return SeatStatus(
        stage=Stage(stage),
        state="serving",
        version=Step(5),
        rate=1.0,
        queue=0,
        parked=0,
        epoch=epoch,
    )


class Ended:
    def __init__(self) -> None:
        self.over = False

    def is_set(self) -> bool:
        return self.over


class Seated:
    position = at(0, 5, b"o")


@dataclass
class Node:
    """What a lineage sees of its node, in a run whose stage 1 is lost.

    It remembers how often the run began anew.
    """

    events: list[ev.AnyEvent] = field(default_factory=list)
    said: list[tuple[PeerId, Any]] = field(default_factory=list)
    begun: int = 0

    def __post_init__(self) -> None:
        self.run_id, self.me = RUN, ME
        self.spec = SimpleNamespace(
            cut=SimpleNamespace(stages=2), sync=SimpleNamespace(agreement="bitwise")
        )
        self.world = self.mail = self.links = self
        self.signer = SimSigner(ME, seed=0)
        self.roster = Roster(ME)
        self.roster.hear(ANN, [status(0)])
        self.seats: dict[Stage, Seated] = {Stage(0): Seated()}
        self.ended = Ended()
        self.emit = self.events.append
        self.lineage = Lineage(self)  # type: ignore[arg-type]  # what it uses

    def peers(self) -> tuple[PeerId, ...]:
        return (ANN, BOB)

    def tell(self, peer: PeerId, message: Any) -> None:
        self.said.append((peer, message))

    def tell_all(self, peers: tuple[PeerId, ...], message: Any) -> None:
        for peer in peers:
            self.tell(peer, message)

    def begin_anew(self) -> None:
        self.begun += 1
        self.roster.begin_anew(self.lineage.root.epoch)

    @property
    def alarms(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, ev.Alarm)]


def test_what_is_declared_is_signed_told_to_all_and_names_what_is_discarded() -> None:
    node = Node()
    node.lineage.declare(at(1, 3), "a stage is lost")
    assert node.said == [(peer, rollback(at(1, 3), ME)) for peer in (ANN, BOB)]
    assert (node.lineage.root, node.begun) == (at(1, 3), 1)
    (event,) = node.events
    assert isinstance(event, ev.RolledBack)
    assert (event.epoch, event.version, event.reason) == (1, 3, "a stage is lost")
    discarded = (event.discarded_epoch, event.discarded_version, event.discarded_chain)
    assert discarded == (0, 5, b"o" * 32)


def test_what_beats_ours_is_taken_over_and_told_on_once() -> None:
    node = Node()
    for where in (at(1, 3), at(1, 3), at(1, 2), at(1, 3, b"d"), at(2, 1), at(1, 9)):
        node.lineage.heard(ANN, rollback(where, BOB))
    assert node.lineage.root == at(2, 1)
    assert node.begun == 2
    assert [message.at for peer, message in node.said if peer == BOB] == [at(1, 3), at(2, 1)]


@pytest.mark.parametrize(
    "lie",
    [
        msgspec.structs.replace(rollback(at(1, 3)), peer=BOB),
        msgspec.structs.replace(rollback(at(1, 3)), at=at(1, 4)),
        msgspec.structs.replace(rollback(at(1, 3)), signature=b""),
        rollback(at(1, 3), run=RunId("b" * 32)),
        rollback(at(LEAP_MOST + 1, 3)),
    ],
)
def test_what_is_not_signed_or_leaps_is_refused(lie: Rollback) -> None:
    node = Node()
    with pytest.raises(MisbehaviourError, match="rollback"):
        node.lineage.heard(ANN, lie)
    assert (node.begun, node.said) == (0, [])


def test_a_stranger_and_who_comes_after_the_end_move_nothing() -> None:
    node = Node()
    node.lineage.heard(BOB, rollback(at(1, 3), BOB))
    assert node.begun == 0
    node.ended.over = True
    node.lineage.heard(ANN, rollback(at(1, 3)))
    assert node.begun == 0
    newcomer = Node()
    newcomer.seats.clear()
    newcomer.lineage.heard(BOB, rollback(at(1, 3), BOB))  # it knows nobody yet
    assert newcomer.begun == 1


def test_who_missed_it_is_told_when_its_link_or_its_heartbeat_comes() -> None:
    node = Node()
    old = Heartbeat(count=1, lag_seconds=0.0, seats=(status(0),))
    new = Heartbeat(count=1, lag_seconds=0.0, seats=(status(1),))
    node.lineage.up(BOB)
    node.lineage.told(BOB, old)
    assert node.said == []
    node.lineage.heard(ANN, rollback(at(1, 3)))
    node.said.clear()
    node.lineage.up(BOB)
    node.lineage.told(BOB, old)
    node.lineage.told(BOB, new)
    assert node.said == [(BOB, rollback(at(1, 3)))] * 2


def test_a_state_is_admitted_by_where_the_lineage_begins() -> None:
    node = Node()
    node.lineage.heard(ANN, rollback(at(1, 3)))
    assert node.lineage.begins(at(0, 3))
    assert node.lineage.admits(at(1, 4))
    assert not node.lineage.admits(at(0, 4))


def test_who_sees_every_stage_served_follows_nobody_and_says_so_once() -> None:
    """One whose own lines are bad, or who lies, takes no run back in which nothing is lost."""
    node = Node()
    node.roster.hear(BOB, [status(0, stage=1)])
    for where in (at(1, 3), at(1, 3), at(1, 4), at(2, 0)):
        node.lineage.heard(ANN, rollback(where))
    assert (node.begun, node.said) == (0, [])
    (alarm,) = node.alarms
    assert alarm == "ann has the run begin again at step 3; we go on: every stage is served here"
    node.lineage.heard(BOB, rollback(at(1, 5), BOB))  # a doubted one hides no other
    node.lineage.look()
    assert (node.begun, len(node.alarms)) == (0, 1)
    node.roster.lost(BOB)
    node.lineage.look()
    assert (node.begun, node.lineage.root) == (1, at(2, 0))
    node.lineage.look()
    assert node.begun == 1


def test_a_newcomer_follows_nobody_either_while_the_run_that_it_came_to_is_whole() -> None:
    node = Node()
    node.seats.clear()
    node.roster.hear(BOB, [status(0, stage=1)])
    node.lineage.heard(ANN, rollback(at(1, 3)))
    assert node.begun == 0
    node.roster.hear(PeerId("cat"), [status(1)])
    node.roster.hear(PeerId("dan"), [status(1)])  # of the other stage there is nobody
    node.lineage.look()
    assert node.begun == 0
    node.roster.hear(PeerId("dan"), [status(1, stage=1)])
    node.lineage.look()
    assert node.begun == 1


def test_where_the_others_are_whole_we_follow_though_nothing_is_lost_here() -> None:
    """Both sides of a partition may be whole: only of two peers and all stages is it believed."""
    node = Node()
    cat, dan = PeerId("cat"), PeerId("dan")
    node.roster.hear(BOB, [status(0, stage=1)])
    node.roster.hear(cat, [status(1), status(1, stage=1)])
    node.lineage.heard(ANN, rollback(at(1, 3)))
    node.roster.hear(cat, [status(1)])
    far = SeatView(peer=dan, stage=Stage(1), state="serving", rate=1.0, version=Step(5), epoch=1)
    node.roster.list([far])  # anybody may write there
    node.lineage.heard(ANN, rollback(at(1, 3)))
    assert node.begun == 0
    node.roster.hear(dan, [status(1, stage=1)])
    node.lineage.heard(ANN, rollback(at(1, 3)))
    assert node.begun == 1


def test_a_step_that_we_have_been_through_is_gone_back_to_on_our_own_chain_only() -> None:
    """An invented position would be one that nobody can load: the run would end there."""
    node = Node()
    for step in range(1, 6):
        node.lineage.stepped(at(0, step))
    for lie in (at(1, 3, b"x"), at(1, 0, b"x")):
        node.lineage.heard(ANN, rollback(lie))
    assert node.begun == 0
    (alarm,) = node.alarms
    assert alarm.endswith("at step 3; we go on: it names another history than ours")
    node.lineage.heard(ANN, rollback(at(1, 4)))
    node.lineage.stepped(at(1, 5, b"n"))
    node.lineage.heard(ANN, rollback(at(2, 5)))
    assert node.lineage.root == at(1, 4)
    node.lineage.heard(ANN, rollback(at(2, 5, b"n")))
    node.lineage.heard(ANN, rollback(at(3, 0, genesis_chain(RUN)[:1])))
    node.lineage.heard(ANN, rollback(Position(epoch=3, step=Step(0), chain=genesis_chain(RUN))))
    assert (node.begun, node.lineage.root.epoch) == (3, 3)


def test_what_is_two_epochs_on_or_canonical_may_have_a_chain_of_its_own() -> None:
    for where, agreement in ((at(2, 3, b"x"), "bitwise"), (at(1, 3, b"x"), "canonical")):
        node = Node()
        node.spec.sync.agreement = agreement
        node.lineage.stepped(at(0, 3))
        node.lineage.heard(ANN, rollback(where))
        assert node.lineage.root == where


def test_of_the_steps_behind_us_only_the_last_are_remembered() -> None:
    node = Node()
    for step in range(1, PAST_MOST + 2):
        node.lineage.stepped(at(0, step))
    node.lineage.heard(ANN, rollback(at(1, 1, b"x")))
    assert node.lineage.root == at(1, 1, b"x")
