"""Where a run stands: each stage's latest step, what is counted, what it waits for."""

from p2ptrain.observe import events as ev
from p2ptrain.units import Digest, PeerId, Slot, Stage, Step
from peers.waiting import Waiting

ANN, BOB = PeerId("ann"), PeerId("bob")


def feed(waiting: Waiting, peer: PeerId, *events: ev.AnyEvent) -> None:
    for event in events:
        waiting.feed(ev.Entry(at=0.0, peer=peer, event=event))


def counted(stage: int, step: int, slot: int) -> ev.SlotCounted:
    return ev.SlotCounted(stage=Stage(stage), step=Step(step), slot=Slot(slot))


def test_each_stage_tells_what_it_has_of_its_latest_step() -> None:
    waiting = Waiting(stages=3)
    feed(waiting, ANN, counted(0, 1, 0), counted(0, 2, 0), counted(0, 2, 1), counted(0, 1, 5))
    feed(waiting, BOB, counted(0, 2, 1), counted(1, 2, 0))
    began = ev.RoundBegan(stage=Stage(1), step=Step(2), round=3, leader=ANN, reason="no ack")
    summed = ev.SumPublished(stage=Stage(0), step=Step(2), digest=Digest(b""), round=0)
    feed(waiting, BOB, began, summed)
    assert waiting.line() == (
        "stage 0: step 2, 2 counted, summed; "
        "stage 1: step 2, 1 counted, no sum, round 3: no ack; "
        "stage 2: nothing yet"
    )


def test_what_a_killed_peer_had_counted_is_gone_and_so_is_what_was_taken_out() -> None:
    waiting = Waiting(stages=1)
    feed(waiting, ANN, counted(0, 0, 0), counted(0, 0, 1))
    feed(waiting, BOB, counted(0, 0, 1), counted(0, 0, 2))
    feed(waiting, BOB, ev.Subtracted(stage=Stage(0), step=Step(0), slot=Slot(2)))
    assert "2 counted" in waiting.line()
    feed(waiting, ANN, ev.FaultFired(fault="kill", target=ANN))
    assert "1 counted" in waiting.line()
