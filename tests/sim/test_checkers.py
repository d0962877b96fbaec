"""Each checker passes a good stream and fails on each way of doctoring it."""

from collections.abc import Callable

import msgspec
import pytest

from p2ptrain.core.agreement import Counted
from p2ptrain.observe import events as ev
from p2ptrain.sim.checkers import (
    check_bounds,
    check_covers,
    check_digests,
    check_names,
    check_progress,
    judge,
)
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.verdicts import Verdict
from p2ptrain.units import Chain, Digest, PeerId, Slot, Stage, Step

SPEC = toy_spec(stages=2, microbatches=4, steps=3)
A, B = PeerId("a"), PeerId("b")
STAGES, STEPS = (Stage(0), Stage(1)), (Step(0), Step(1), Step(2))

Doctor = Callable[[list[ev.Entry]], list[ev.Entry]]


def entry(at: float, peer: PeerId, event: ev.AnyEvent) -> ev.Entry:
    return ev.Entry(at=at, peer=peer, event=event)


def commit(stage: Stage, step: Step) -> ev.StepCommitted:
    return ev.StepCommitted(
        epoch=0,
        stage=stage,
        step=step,
        chain=Chain(bytes([step]) * 32),
        digest=Digest(bytes([step, stage]) * 16),
        cover=(Counted(peer=A, slots=b"\x03"), Counted(peer=B, slots=b"\x0c")),
        expected=b"\x0f",
        loss=1.0,
        val_loss=None,
        skipped=False,
        tokens=16,
        seconds=1.0,
    )


def bounds(queue: int = 4, parked: int = 8, retained: int = 100, spilled: int = 50) -> ev.Bounds:
    return ev.Bounds(
        stage=Stage(0),
        queue=queue,
        queue_bound=4,
        parked=parked,
        parked_bound=8,
        retained_bytes=retained,
        retained_bound=100,
        spilled_bytes=spilled,
        spilled_bound=50,
    )


def stream() -> list[ev.Entry]:
    """Two peers, each serving both stages, commit three steps, a second each."""
    entries = [
        entry(0.0, peer, ev.SeatOpened(stage=stage, version=Step(0), reason="hole"))
        for peer in (A, B)
        for stage in STAGES
    ]
    for step in STEPS:
        for peer, slots in ((A, (0, 1)), (B, (2, 3))):
            entries += [
                entry(step + 0.5, peer, ev.SlotCounted(stage=stage, step=step, slot=Slot(slot)))
                for stage in STAGES
                for slot in slots
            ]
        entries += [
            entry(step + 1.0, peer, commit(stage, step)) for peer in (A, B) for stage in STAGES
        ]
        entries.append(entry(step + 1.0, A, bounds()))
    entries.append(entry(3.0, A, ev.RunEnded(step=Step(2), reason="done")))
    entries += [entry(4.0, peer, ev.Remains(tasks=0, streams=0, records=0)) for peer in (A, B)]
    return entries


def change(index: int, **fields: object) -> Doctor:
    """Change fields of the commit number ``index``."""

    def doctor(entries: list[ev.Entry]) -> list[ev.Entry]:
        commits = [i for i, e in enumerate(entries) if isinstance(e.event, ev.StepCommitted)]
        place = commits[index]
        event = msgspec.structs.replace(entries[place].event, **fields)
        entries[place] = msgspec.structs.replace(entries[place], event=event)
        return entries

    return doctor


def without(unwanted: Callable[[ev.Entry], bool]) -> Doctor:
    return lambda entries: [e for e in entries if not unwanted(e)]


def is_commit_of(step: int) -> Callable[[ev.Entry], bool]:
    return lambda e: isinstance(e.event, ev.StepCommitted) and e.event.step == step


def is_count_by(peer: PeerId) -> Callable[[ev.Entry], bool]:
    return lambda e: isinstance(e.event, ev.SlotCounted) and e.peer == peer


def counted(*slots: bytes) -> tuple[Counted, ...]:
    return tuple(Counted(peer=peer, slots=part) for peer, part in zip((A, B), slots, strict=True))


def progress(entries: list[ev.Entry]) -> Verdict:
    return check_progress(entries, stages=2, patience_seconds=5.0)


def test_a_good_stream_holds_and_says_on_how_many_facts() -> None:
    sums = {(step, stage): Digest(bytes([step, stage]) * 16) for step in STEPS for stage in STAGES}
    verdicts = judge(stream(), SPEC, patience_seconds=5.0, reference=sums)
    assert [verdict.invariant for verdict in verdicts] == ["I1", "I2", "I3", "I4", "I5"]
    assert all(verdict.holds for verdict in verdicts), verdicts
    assert [verdict.facts for verdict in verdicts] == [12, 12, 7, 12, 2]


@pytest.mark.parametrize(
    ("doctor", "complaint"),
    [
        (change(0, cover=counted(b"\x03", b"\x0e")), "twice"),
        (change(5, cover=counted(b"\x03", b"\x04")), "covers slots 0x7 of 0xf"),
        (change(5, cover=counted(b"\x03", b"\x1c")), "covers slots 0x1f of 0xf"),
        (change(2, expected=b"\x07", cover=counted(b"\x03", b"\x04")), "the step has 0xf"),
        (change(2, cover=counted(b"\x07", b"\x08")), "a never held exactly slots 0x7"),
        (without(is_count_by(B)), "never held exactly"),
        (without(is_commit_of(1)), "step 1 was never committed"),
    ],
)
def test_a_cover_that_is_no_partition_is_seen(doctor: Doctor, complaint: str) -> None:
    verdict = check_covers(doctor(stream()), SPEC)
    assert not verdict.holds
    assert complaint in " ".join(verdict.problems)


@pytest.mark.parametrize(
    ("doctor", "complaint"),
    [
        (change(3, digest=Digest(bytes(32))), "another digest"),
        (change(3, chain=Chain(bytes([9]) * 32)), "another chain"),
    ],
)
def test_replicas_that_differ_are_seen(doctor: Doctor, complaint: str) -> None:
    verdict = check_digests(doctor(stream()))
    assert not verdict.holds
    assert complaint in " ".join(verdict.problems)


def test_replicas_that_agree_on_a_wrong_sum_are_seen() -> None:
    verdict = check_digests(stream(), reference={})
    assert len(verdict.problems) == 9  # eight, and how many more
    assert "reference" in verdict.problems[0]


def test_a_rollback_may_take_another_way() -> None:
    again = change(11, epoch=1, chain=Chain(bytes([9]) * 32), digest=Digest(bytes(32)))
    assert check_digests(again(stream())).holds


def test_a_swarm_that_stops_although_every_stage_lives_is_seen() -> None:
    late = [e if e.at < 3 else msgspec.structs.replace(e, at=e.at + 10) for e in stream()]
    assert not progress(late).holds
    stuck = [e for e in stream() if e.at < 2]
    assert not progress([*stuck, entry(20.0, A, bounds())]).holds


@pytest.mark.parametrize(
    ("begins", "ends"),
    [
        (ev.FaultFired(fault="freeze", target=B), ev.FaultFired(fault="thaw", target=B)),
        (ev.FaultFired(fault="isolate", target=B), ev.FaultFired(fault="mend", target=B)),
        (ev.FaultFired(fault="partition", target=""), ev.FaultFired(fault="heal", target="")),
        (
            ev.FaultFired(fault="kill", target=B),
            ev.SeatOpened(stage=Stage(1), version=Step(1), reason="hole"),
        ),
        (
            ev.SeatClosed(stage=Stage(1), reason="drained"),
            ev.SeatOpened(stage=Stage(1), version=Step(1), reason="hole"),
        ),
        (
            ev.PeerStopped(reason="left"),
            ev.SeatOpened(stage=Stage(1), version=Step(1), reason="hole"),
        ),
    ],
)
def test_patience_counts_only_while_every_stage_lives(
    begins: ev.AnyEvent, ends: ev.AnyEvent
) -> None:
    """Stage 1 has one replica, on B, which is away for a minute."""
    alone = [
        e
        for e in stream()
        if not (isinstance(e.event, ev.SeatOpened) and e.peer == A and e.event.stage == 1)
    ]
    early = [e for e in alone if e.at <= 1.5]
    late = [msgspec.structs.replace(e, at=e.at + 60) for e in alone if e.at > 1.5]
    absence = [entry(1.6, B, begins), entry(61.6, B, ends)]
    assert progress([*early, *absence, *late]).holds
    assert not progress([*early, *late]).holds


@pytest.mark.parametrize("fill", [(5, 0, 0), (0, 9, 0), (0, 0, 101), (0, 0, 0, 51)])
def test_what_overflows_is_seen(fill: tuple[int, ...]) -> None:
    verdict = check_bounds([*stream(), entry(4.0, B, bounds(*fill))])
    assert len(verdict.problems) == 1
    assert "beyond" in verdict.problems[0]


def test_a_spilled_frame_that_is_lost_is_seen_unless_the_disk_was_struck() -> None:
    lost = ev.SpillLost(stage=Stage(0), step=Step(1), slot=Slot(2), what="gradient")
    (problem,) = check_bounds([*stream(), entry(4.0, B, lost)]).problems
    assert "stage 0, step 1: a spilled gradient is lost" in problem
    struck = ev.FaultFired(fault="bad disk", target=B)
    assert check_bounds([entry(0.0, B, struck), entry(4.0, B, lost)]).holds
    assert not check_bounds([entry(0.0, B, struck), entry(4.0, A, lost)]).holds


def test_an_empty_stream_rests_on_no_facts() -> None:
    for verdict in judge([], SPEC, patience_seconds=1.0):
        assert verdict.facts == 0


# --- where arithmetic differs ---------------------------------------------------------------


def adoption(peer: PeerId, root: bytes, at: float = 1.0) -> ev.Entry:
    event = ev.StateAdopted(
        stage=Stage(0),
        version=Step(2),
        chain=Chain(b"c" * 32),
        source=A,
        root=Digest(root * 32),
    )
    return entry(at, peer, event)


def test_where_arithmetic_differs_one_root_is_adopted() -> None:
    assert check_names([adoption(A, b"r"), adoption(B, b"r")]).holds
    assert not check_names([adoption(A, b"r"), adoption(B, b"s")]).holds


def test_who_was_struck_may_stand_alone_with_its_state() -> None:
    kill = entry(1.5, A, ev.FaultFired(fault="kill", target=A))
    assert check_names([adoption(A, b"r"), kill, adoption(B, b"s", at=2.0)]).holds


def test_where_arithmetic_differs_chains_may_part_but_one_chain_has_one_sum() -> None:
    one = commit(Stage(0), Step(0))
    other = msgspec.structs.replace(one, digest=Digest(b"x" * 32))
    parted = msgspec.structs.replace(other, chain=Chain(b"y" * 32))
    assert check_names([entry(1.0, A, one), entry(1.0, B, parted)]).holds
    assert not check_names([entry(1.0, A, one), entry(1.0, B, other)]).holds


def taken(kind: type[ev.DepositTaken | ev.DepositReturned]) -> ev.DepositTaken | ev.DepositReturned:
    return kind(stage=Stage(0), step=Step(0), peer=B, slots=b"\x0c")


def test_what_was_taken_up_is_held_by_who_took_it_until_it_is_returned() -> None:
    """A seat takes over what another had counted: its shares may name those slots."""
    whole = change(0, cover=counted(b"\x0f", b"\x00"))

    def with_deposits(*kinds: type[ev.DepositTaken | ev.DepositReturned]) -> Verdict:
        entries = whole(stream())
        place = next(i for i, e in enumerate(entries) if isinstance(e.event, ev.StepCommitted))
        told = [entry(0.9, A, taken(kind)) for kind in kinds]
        return check_covers([*entries[:place], *told, *entries[place:]], SPEC)

    assert not with_deposits().holds
    assert with_deposits(ev.DepositTaken).holds
    without_it = with_deposits(ev.DepositReturned)
    assert "never held exactly slots 0xf" in " ".join(without_it.problems)
