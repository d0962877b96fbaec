"""What a seat had left with a mate outlives it, and nobody computes that again without need.

In the middle of a long step a seat dies. Its mate holds a copy of its accumulator and of its
bitmap, and counts on from both. When seats die of the stages beside as well, what they need of
the slots that came so is made once more: the mate had never seen a frame of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.custody import Custody
from p2ptrain.core.deposits import mate
from p2ptrain.engine import depositing
from p2ptrain.engine.pipeline import Pipeline
from p2ptrain.engine.wanting import Wanting
from p2ptrain.observe import events as ev
from p2ptrain.run import digest, validate
from p2ptrain.sim.compute import ToyStage
from p2ptrain.sim.drawing import draw_deposit
from p2ptrain.sim.loop import StalledError
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.swarms import run
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage, Step

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

STAGES, REPLICAS, EVERY, SLOTS = 3, 3, 3, 36
MIDDLE = Stage(1)
LATE = 20
"""So many of the slots must a stage have counted before a seat of it dies."""


def name(stage: int, number: int) -> PeerId:
    return PeerId(f"s{stage}-{number}")


SEATS = {s: tuple(name(s, number) for number in range(REPLICAS)) for s in range(STAGES)}


def scenario(seed: int, *, every: int = EVERY) -> Scenario:
    spec = toy_spec(stages=STAGES, microbatches=SLOTS, steps=2, seed=seed)
    sync = msgspec.structs.replace(spec.sync, deposit_every=every, start_replicas=REPLICAS)
    spec = validate(msgspec.structs.replace(spec, sync=sync))
    peers = [
        PeerPlan(peer=peer, stage=Stage(stage), speed=0.1)
        for stage, there in SEATS.items()
        for peer in there
    ]
    return Scenario(spec=spec, peers=peers, seed=seed, stall_seconds=90.0, patience_seconds=80.0)


class Late:
    """A stage has counted enough, and this seat of it has just made a deposit."""

    def __init__(self, stage: Stage = MIDDLE, late: int = LATE) -> None:
        self.stage, self.late = stage, late
        self.counted: set[int] = set()
        self.taken: ev.DepositTaken | None = None

    def deposited(self, entry: ev.Entry) -> bool:
        event = entry.event
        if isinstance(event, ev.SlotCounted) and (event.stage, event.step) == (self.stage, 0):
            self.counted.add(event.slot)
        there = isinstance(event, ev.Deposited) and (event.stage, event.step) == (self.stage, 0)
        return there and len(self.counted) >= self.late

    def took(self, entry: ev.Entry) -> bool:
        event = entry.event
        if isinstance(event, ev.DepositTaken) and event.stage == self.stage and not self.taken:
            self.taken = event
        return event is self.taken


def kill_it(world: SimWorld, entry: ev.Entry) -> PeerId:
    world.kill(entry.peer)
    return entry.peer


def pair(spec: RunSpec, stage: int) -> tuple[PeerId, PeerId]:
    """Two of three seats: one that leaves its deposits with the other."""
    first = SEATS[stage][0]
    others = dict.fromkeys(SEATS[stage][1:], 0.0)
    second = mate(digest(spec), Step(0), Stage(stage), first, others)
    assert second is not None
    return first, second


def kill(peer: PeerId) -> Callable[[SimWorld, ev.Entry], PeerId]:
    def act(world: SimWorld, _: ev.Entry) -> PeerId:
        world.kill(peer)
        return peer

    return act


def counts(result: SwarmResult, stage: Stage, step: int) -> list[int]:
    events = (entry.event for entry in result.entries)
    return [
        event.slot
        for event in events
        if isinstance(event, ev.SlotCounted) and (event.stage, event.step) == (stage, step)
    ]


def mask_of(event: ev.DepositTaken) -> int:
    return int.from_bytes(event.slots, "little")


def struck(
    play: Play,
    cue: MakeCue,
    seed: int,
    stage: int | None,
    *,
    of: Stage = MIDDLE,
    late: int = LATE,
) -> tuple[SwarmResult, Late]:
    """A seat of a stage dies late, and then two of ``stage``."""
    seen, told = Late(of, late), scenario(seed)
    cues = [cue("kill", seen.deposited, kill_it)]
    if stage is not None:
        cues += [cue("kill", seen.took, kill(peer)) for peer in pair(told.spec, stage)]
    result = play(told, *cues)
    assert result.weights_digest == reference(told.spec, ToyCorpus(told.spec)).weights_digest
    return result, seen


@pytest.mark.parametrize("seed", range(3))
def test_what_was_deposited_is_not_counted_again(play: Play, cue: MakeCue, seed: int) -> None:
    result, _ = struck(play, cue, seed, None)
    (taken,) = (e.event for e in result.entries if isinstance(e.event, ev.DepositTaken))
    slots = [slot for slot in range(SLOTS) if mask_of(taken) >> slot & 1]
    assert len(slots) >= EVERY
    counted = counts(result, MIDDLE, 0)
    assert [slot for slot in slots if counted.count(slot) > 1] == []
    assert not any(isinstance(e.event, ev.DepositReturned) for e in result.entries)


def test_without_deposits_it_is(play: Play, cue: MakeCue) -> None:
    died, told = Late(), scenario(0, every=0)

    def enough(entry: ev.Entry) -> bool:
        died.deposited(entry)
        counted = isinstance(entry.event, ev.SlotCounted) and entry.event.stage == MIDDLE
        return counted and len(died.counted) >= LATE

    result = play(told, cue("kill", enough, kill_it))
    assert len(counts(result, MIDDLE, 0)) > SLOTS + EVERY
    assert not any(isinstance(e.event, ev.Deposited | ev.DepositTaken) for e in result.entries)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stage", [0, 2])
def test_what_a_neighbour_lacks_of_it_is_made_again_and_added_to_nothing(
    play: Play, cue: MakeCue, seed: int, stage: int
) -> None:
    _, late = struck(play, cue, seed, stage)
    assert late.taken is not None


def freeze_it(world: SimWorld, entry: ev.Entry) -> PeerId:
    world.clock.freeze(entry.peer)
    return entry.peer


def returned(play: Play, cue: MakeCue) -> SwarmResult:
    """A seat is taken for dead, its deposit is taken up, and then it is there again."""
    late, told = Late(), scenario(0)
    frozen: list[PeerId] = []

    def freeze(world: SimWorld, entry: ev.Entry) -> PeerId:
        frozen.append(entry.peer)
        return freeze_it(world, entry)

    def thaw(world: SimWorld, _: ev.Entry) -> PeerId:
        world.clock.thaw(frozen[0])
        return frozen[0]

    result = play(
        told, cue("freeze", late.deposited, freeze), cue("thaw", late.took, thaw, after=0.2)
    )
    assert result.weights_digest == reference(told.spec, ToyCorpus(told.spec)).weights_digest
    return result


def test_who_was_only_away_has_its_own_back(play: Play, cue: MakeCue) -> None:
    result = returned(play, cue)
    assert any(isinstance(e.event, ev.DepositReturned) for e in result.entries)


@pytest.mark.parametrize("seed", range(8))
def test_random_swarms_that_leave_deposits_train(seed: int) -> None:
    outcome = run(draw_deposit(seed))
    assert not outcome.failed, outcome.reason


# --- deliberate bugs ------------------------------------------------------------------------


def nothing_is_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Wanting, "_ask", lambda *_: None)


def no_frame_is_sent_to_who_has_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Custody, "_located_bare", lambda *_, **__: ())


def a_deposit_is_added_twice(patch: pytest.MonkeyPatch) -> None:
    add = ToyStage.add

    async def twice(self: Any, pieces: Any, sign: Any) -> None:
        await add(self, pieces, sign)
        await add(self, pieces, sign)

    patch.setattr(ToyStage, "add", twice)


def its_tallies_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(depositing, "sum_tallies", lambda tallies: tallies[0])


def what_is_bare_is_added_when_it_is_made_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pipeline, "sign", lambda self, _work: 0 if self.passing else 1)


def a_returned_deposit_stays_in_the_sum(patch: pytest.MonkeyPatch) -> None:
    add = ToyStage.add

    async def only_add(self: Any, pieces: Any, sign: Any) -> None:
        if sign > 0:
            await add(self, pieces, sign)

    patch.setattr(ToyStage, "add", only_add)


def above_dies(play: Play, cue: MakeCue) -> None:
    struck(play, cue, 0, 2)


def below_dies(play: Play, cue: MakeCue) -> None:
    struck(play, cue, 1, 0)


def above_dies_early(play: Play, cue: MakeCue) -> None:
    """While the stage of the taker still counts."""
    struck(play, cue, 1, 2, late=14)


def last_dies(play: Play, cue: MakeCue) -> None:
    struck(play, cue, 0, None, of=Stage(2))


BUGS: dict[Callable[[pytest.MonkeyPatch], None], Callable[[Play, MakeCue], object]] = {
    nothing_is_asked_for: above_dies,
    no_frame_is_sent_to_who_has_none: below_dies,
    a_deposit_is_added_twice: last_dies,
    its_tallies_are_forgotten: last_dies,
    what_is_bare_is_added_when_it_is_made_again: above_dies_early,
    a_returned_deposit_stays_in_the_sum: returned,
}


@pytest.mark.parametrize("story", [below_dies, last_dies, above_dies_early])
def test_unbroken_they_train(
    play: Play, cue: MakeCue, story: Callable[[Play, MakeCue], object]
) -> None:
    story(play, cue)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_each_bug_is_caught(
    play: Play, cue: MakeCue, monkeypatch: pytest.MonkeyPatch, bug: Any
) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, StalledError, ExceptionGroup)):
        BUGS[bug](play, cue)
