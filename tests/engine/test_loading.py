"""A joiner's state comes from those who serve the stage, and is tried before it is served."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.committing import Committer
from p2ptrain.engine.loading import Loader
from p2ptrain.engine.roster import Roster
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.sim.compute import CostModel, ToyCompute, ToyStage
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.toy import ToyCorpus, mixed_spec, reference, toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.engine.committing import Done
    from p2ptrain.run import RunSpec

SPEC = toy_spec(stages=2, microbatches=6, steps=8)
LATE = PeerPlan(peer=PeerId("late"), starts_at=6.5, speed=0.1)


class Lame(ToyCompute):
    """A device on which no loaded state works, the first ``times``."""

    def __init__(self, *args: Any, times: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self.times = times

    async def open(self, stage: Stage) -> ToyStage:
        seat = await super().open(stage)
        lame = self

        class LameStage(ToyStage):
            async def probe(self) -> None:
                lame.times -= 1
                if lame.times >= 0:
                    raise MisbehaviourError("gives no finite output here")

        seat.__class__ = LameStage
        return seat


def simulate(times: int) -> SwarmResult:
    def make(spec: RunSpec, plan: PeerPlan) -> ToyCompute:
        cost = CostModel(seed=0)
        if plan.peer == "late":
            return Lame(spec, plan.peer, speed=plan.speed, cost=cost, times=times)
        return ToyCompute(spec, plan.peer, speed=plan.speed, cost=cost)

    peers = [*crowd(3, speeds=(0.1,)), LATE]
    return SimWorld(Scenario(spec=SPEC, peers=peers, compute=make)).run()


def of_late(result: SwarmResult, kind: type[ev.AnyEvent]) -> list[Any]:
    return [e.event for e in result.entries if e.peer == "late" and isinstance(e.event, kind)]


def test_a_state_that_fails_the_probe_is_not_served_and_loaded_again() -> None:
    result = simulate(times=2)
    assert result.holds
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    (alarm,) = [a for a in of_late(result, ev.Alarm) if "finite" in a.reason]  # told once
    assert alarm.reason.startswith("no state for stage")
    assert len(of_late(result, ev.StateLoaded)) == 1
    assert len(of_late(result, ev.SeatOpened)) == 1


def test_a_device_on_which_nothing_works_never_serves() -> None:
    result = simulate(times=10**6)
    assert result.weights_digest == reference(SPEC, ToyCorpus(SPEC)).weights_digest
    assert of_late(result, ev.SeatOpened) == []
    assert of_late(result, ev.StepCommitted) == []


def test_a_step_that_ended_while_its_state_was_loaded_is_caught_up_with() -> None:
    """Its sums went out while the joiner had no use for them: it asks, and loads once."""
    result = simulate(times=0)
    assert result.holds
    (loaded,) = of_late(result, ev.StateLoaded)
    commits = of_late(result, ev.StepCommitted)
    assert [commit.step for commit in commits] == list(range(loaded.version, 8))
    assert loaded.version not in {e.step for e in of_late(result, ev.SlotCounted)}
    assert of_late(result, ev.SeatClosed) == []


@pytest.mark.parametrize("mixed", [True, False])
def test_where_a_step_can_have_two_names_a_newcomer_learns_which_led_to_its_state(
    monkeypatch: pytest.MonkeyPatch, *, mixed: bool
) -> None:
    """It may soon be the only one of its stage: who missed the step, or took it otherwise, asks."""
    found: list[tuple[Position, Done]] = []
    learn = Committer.learn

    def listen(self: Committer, at: Position, sums: tuple[Sum, ...]) -> None:
        learn(self, at, sums)
        if self.last is not None:  # nobody says anything of the beginning
            found.append((at, self.last))

    monkeypatch.setattr(Committer, "learn", listen)
    spec = mixed_spec(SPEC, canonical_steps=8) if mixed else SPEC
    result = SimWorld(Scenario(spec=spec, peers=[*crowd(3, speeds=(0.1,)), LATE])).run()
    (loaded,) = of_late(result, ev.StateLoaded)
    assert loaded.version > 0
    told = [(at.step, last.chain == at.chain, len(last.sums)) for at, last in found]
    assert told == ([(loaded.version, True, 2)] if mixed else [])


def test_where_the_run_stands_is_heard_from_peers_not_read_in_old_records() -> None:
    roster = Roster(PeerId("me"))
    root = SimpleNamespace(step=Step(0))
    node: Any = SimpleNamespace(roster=roster, seats={}, lineage=SimpleNamespace(root=root))
    roster.list(
        [
            SeatView(peer=PeerId(peer), stage=Stage(0), state="serving", rate=1.0, version=Step(0))
            for peer in ("old", "older")
        ]
    )
    assert Loader(node).foremost() == 0  # nothing better is known
    status = m.SeatStatus(
        stage=Stage(2), state="serving", version=Step(4), rate=1.0, queue=0, parked=0
    )
    roster.hear(PeerId("heard"), [status])
    assert Loader(node).foremost() == 4


def at(version: int, state: Any = "serving") -> m.SeatStatus:
    return m.SeatStatus(
        stage=Stage(0), state=state, version=Step(version), rate=1.0, queue=0, parked=0
    )


def loader_of(roster: Roster, root: int = 0) -> Loader:
    """Of a newcomer without a seat."""

    async def restore(stage: Stage, _version: Step) -> None:
        raise LinkError(f"nobody holds stage {stage}")

    node: Any = SimpleNamespace(
        me=PeerId("me"),
        roster=roster,
        seats={},
        emit=lambda _event: None,
        lineage=SimpleNamespace(root=SimpleNamespace(step=Step(root))),
        holdings=SimpleNamespace(restore=restore),
        resumption=SimpleNamespace(origin=None, anew=False),
        spec=SimpleNamespace(cut=SimpleNamespace(stages=3)),
    )
    return Loader(node)


LAST = PeerId("last")
WAYS: dict[str, Callable[[Roster], object]] = {
    "lost for good": lambda roster: (roster.lost(LAST), roster.forget(LAST)),
    "out of sight": lambda roster: roster.out_of_sight(LAST),
    "gone with its seats": lambda roster: roster.left(LAST),
    "drained": lambda roster: (roster.hear(LAST, []), roster.left(LAST)),
    "restarted": lambda roster: roster.incarnated(LAST, 2),
    "loading again": lambda roster: (
        roster.hear(LAST, []),
        roster.hear(LAST, [at(0, "joining")]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_where_the_run_stood_is_not_forgotten_when_nobody_is_left_to_say_it(way: str) -> None:
    roster = Roster(PeerId("me"))
    assert loader_of(roster, root=2).foremost() == 2
    roster.incarnated(LAST, 1)
    roster.hear(LAST, [at(42)])
    WAYS[way](roster)
    assert [view for view in roster.views() if view.state != "joining"] == []
    loader = loader_of(roster)
    assert loader.foremost() == 42
    assert asyncio.run(loader.state(Stage(1), cast("Any", None), fresh=False)) is None


def test_one_who_lies_does_not_say_where_the_run_stood() -> None:
    roster = Roster(PeerId("me"))
    honest = [PeerId(f"p{number}") for number in range(5)]
    for peer in honest:
        roster.hear(peer, [at(1)])
    roster.hear(PeerId("liar"), [at(10**6)])
    assert loader_of(roster).foremost() == 1
    for peer in (PeerId("liar"), *honest):
        roster.left(peer)
    assert loader_of(roster).foremost() == 1
