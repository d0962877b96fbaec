"""Recovery runs from the fault to the next sign of progress without its victim."""

from p2ptrain.observe import events as ev
from p2ptrain.observe.recovery import recovery_seconds
from p2ptrain.units import Chain, Digest, PeerId, RunId, Slot, Stage, Step

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")


def at(time: float, peer: PeerId, event: ev.AnyEvent) -> ev.Entry:
    return ev.Entry(at=time, peer=peer, event=event)


def opened(peer: PeerId, stage: int) -> ev.Entry:
    return at(0.0, peer, ev.SeatOpened(stage=Stage(stage), version=Step(0), reason=""))


def counted(time: float, peer: PeerId, stage: int) -> ev.Entry:
    return at(time, peer, ev.SlotCounted(stage=Stage(stage), step=Step(0), slot=Slot(0)))


def fault(time: float, what: str, target: str) -> ev.Entry:
    return at(time, PeerId(""), ev.FaultFired(fault=what, target=target))


def started(time: float, peer: PeerId) -> ev.Entry:
    return at(time, peer, ev.PeerStarted(run=RunId("r"), addresses=()))


def committed(time: float, stage: int, peer: PeerId = ANN) -> ev.Entry:
    event = ev.StepCommitted(
        epoch=0,
        stage=Stage(stage),
        step=Step(0),
        chain=Chain(b""),
        digest=Digest(b""),
        cover=(),
        expected=b"",
        loss=None,
        val_loss=None,
        skipped=False,
        tokens=0,
        seconds=1.0,
    )
    return at(time, peer, event)


def test_of_a_replica_another_seat_of_its_stage_counts() -> None:
    entries = [
        opened(ANN, 0),
        opened(BOB, 0),
        opened(EVE, 1),
        fault(10.0, "kill", ANN),
        counted(10.5, ANN, 0),  # its own last words, read late
        counted(11.0, EVE, 1),
        counted(12.0, BOB, 0),
    ]
    assert recovery_seconds(entries) == [2.0]


def test_of_a_peer_with_two_seats_the_slower_stage_counts() -> None:
    entries = [
        opened(ANN, 0),
        opened(ANN, 1),
        fault(10.0, "freeze", ANN),
        counted(11.0, BOB, 0),
        counted(15.0, EVE, 1),
    ]
    assert recovery_seconds(entries) == [5.0]
    assert recovery_seconds(entries[:-1]) == []


def test_a_seat_that_was_closed_before_is_not_missed() -> None:
    closed = at(5.0, ANN, ev.SeatClosed(stage=Stage(1), reason=""))
    entries = [
        opened(ANN, 0),
        opened(ANN, 1),
        closed,
        fault(10.0, "kill", ANN),
        counted(11.0, BOB, 0),
    ]
    assert recovery_seconds(entries) == [1.0]


def test_of_a_stage_its_next_commit_counts_and_of_a_partition_any() -> None:
    entries = [
        fault(10.0, "stage-loss", "stage 1"),
        fault(11.0, "partition", "ann,bob"),
        committed(12.0, 0),
        committed(20.0, 1),
        fault(21.0, "heal", ""),
    ]
    assert recovery_seconds(entries) == [10.0, 1.0]


def test_a_stage_whose_replicas_die_in_turn_is_lost_with_the_last_of_them() -> None:
    """While one of them lives it commits, and nobody has anything to recover from."""
    entries = [
        opened(ANN, 1),
        opened(BOB, 1),
        opened(EVE, 0),
        fault(10.0, "last-replica", "stage 1"),
        fault(10.0, "kill", ANN),
        committed(10.01, 1, ANN),  # before the signal reached it
        committed(11.0, 1, BOB),
        fault(12.0, "kill", BOB),
        committed(12.01, 1, BOB),
        committed(13.0, 0, EVE),
        counted(20.0, EVE, 1),
        committed(21.0, 1, EVE),
        fault(30.0, "kill", EVE),  # has nothing to do with it
        counted(31.0, ANN, 0),
    ]
    assert recovery_seconds(entries) == [9.0, 1.0]
    assert recovery_seconds(entries[:-3]) == []  # the deaths of a loss are no faults of their own


def test_a_whole_swarm_recovers_when_somebody_who_came_back_commits() -> None:
    entries = [
        opened(ANN, 0),
        opened(BOB, 1),
        fault(10.0, "swarm-death", ""),
        fault(10.0, "kill", ANN),
        counted(10.1, BOB, 0),
        fault(10.5, "kill", BOB),
        committed(10.6, 1, BOB),  # its last words
        started(13.0, ANN),
        started(13.5, BOB),
        committed(20.5, 0, ANN),
        fault(30.0, "kill", BOB),
        counted(30.5, ANN, 1),
    ]
    assert recovery_seconds(entries) == [10.0, 0.5]
