"""Who is behind does not hold the newest state; who is one step behind can still get it."""

from p2ptrain.observe import events as ev
from p2ptrain.sim.bereavement import bereft_stages
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def opened(peer: PeerId, version: int, stage: int = 0) -> ev.Entry:
    event = ev.SeatOpened(stage=Stage(stage), version=Step(version), reason="hole")
    return ev.Entry(at=0.0, peer=peer, event=event)


def committed(peer: PeerId, step: int, stage: int = 0) -> ev.Entry:
    event = ev.StepCommitted(
        epoch=0,
        stage=Stage(stage),
        step=Step(step),
        chain=Chain(bytes(32)),
        digest=Digest(bytes(32)),
        cover=(),
        expected=b"",
        loss=None,
        val_loss=None,
        skipped=False,
        tokens=0,
        seconds=1.0,
    )
    return ev.Entry(at=1.0, peer=peer, event=event)


def killed(peer: PeerId) -> ev.Entry:
    return ev.Entry(at=2.0, peer=peer, event=ev.FaultFired(fault="kill", target=peer))


def test_who_is_behind_does_not_hold_the_newest_state() -> None:
    both = [opened(A, 0), opened(B, 0), committed(A, 0)]
    assert bereft_stages([*both, killed(A)], 1) == [0]
    assert bereft_stages([*both, killed(B)], 1) == []
    assert bereft_stages([*both, committed(B, 0), killed(A)], 1) == []
    assert bereft_stages([*both, killed(A), opened(A, 1)], 1) == []


def test_a_stage_without_anybody_is_lost_once_others_commit() -> None:
    begins = [opened(A, 0), opened(B, 0, stage=1), killed(B)]
    assert bereft_stages(begins, 2) == []  # weights follow from the seed
    assert bereft_stages([*begins, committed(A, 0)], 2) == [1]


def test_two_steps_behind_the_others_is_too_far() -> None:
    begins = [opened(A, 0), opened(B, 0, stage=1), opened(C, 0, stage=1)]
    ahead = [*begins, committed(A, 0), killed(C)]
    assert bereft_stages(ahead, 2) == []
    assert bereft_stages([*ahead, committed(A, 1)], 2) == [1]
