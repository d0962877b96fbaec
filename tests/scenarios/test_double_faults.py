"""What died with the seat that kept it, after its stage had stepped, is computed once more.

One seat alone holds its stage's sum of a step, everybody has heard of that sum, and it dies:
its mate must count again what the dead one had counted. Meanwhile the stages beside commit,
and a seat dies there that kept what the mate needs. Nobody holds that frame any more, and all
who could make it have stepped: they make it with the weights that the step began with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.schedule import last_step, leaders
from p2ptrain.observe import events as ev
from p2ptrain.run import digest
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage, Step

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.world import SimWorld

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

STAGES, STEPS, REPLICAS = range(3), 2, 2
SLOW = Link(latency_seconds=0.02, rate_bytes_per_second=200_000.0)  # a sum is on its way for long


def name(stage: int, number: int) -> PeerId:
    return PeerId(f"s{stage}-{number}")


PEERS = [
    PeerPlan(peer=name(stage, number), stage=Stage(stage), speed=0.2)
    for stage in STAGES
    for number in range(REPLICAS)
]


def alone_with_the_sum(step: int) -> RunSpec:
    """A run in whose ``step`` every leader, who publishes, is the first to have the sum.

    The sum is small, so the first member alone adds it up; then the others get it.
    """
    seeds = (toy_spec(stages=3, microbatches=12, steps=STEPS, seed=seed) for seed in range(100))
    members = [tuple(name(stage, number) for number in range(REPLICAS)) for stage in STAGES]
    return next(
        spec
        for spec in seeds
        if all(
            leaders(digest(spec), Step(step), Stage(stage), 0, there)[0] == there[0]
            for stage, there in enumerate(members)
        )
    )


def publishes(stage: int, step: int) -> Callable[[ev.Entry], bool]:
    return lambda entry: (
        isinstance(entry.event, ev.SumPublished)
        and (entry.event.stage, entry.event.step) == (stage, step)
    )


def commits(stage: int, step: int) -> Callable[[ev.Entry], bool]:
    return lambda entry: (
        isinstance(entry.event, ev.StepCommitted)
        and (entry.event.stage, entry.event.step) == (stage, step)
    )


def kill_it(world: SimWorld, entry: ev.Entry) -> PeerId:
    world.kill(entry.peer)
    return entry.peer


class Holder:
    """Whoever is first to have its stage's sum: its mate does not get it, and then it dies."""

    peer: PeerId
    mate: PeerId

    def cut_off(self, world: SimWorld, entry: ev.Entry) -> PeerId:
        self.peer = entry.peer
        (stage,) = world.hosts[self.peer].stages
        replicas = {host.peer for host in world.harm.replicas()[stage]}
        (self.mate,) = replicas - {self.peer}
        world.network.cut(self.peer, self.mate)
        return self.peer

    def kill(self, world: SimWorld, _: ev.Entry) -> PeerId:
        world.kill(self.peer)
        return self.peer


def counted(result: SwarmResult, peer: PeerId, step: int) -> set[int]:
    return {
        e.event.slot
        for e in result.entries
        if e.peer == peer and isinstance(e.event, ev.SlotCounted) and e.event.step == step
    }


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize(
    ("lost", "keepers"),
    [
        (0, (1,)),  # gradients, made again from those that the stage above has
        (0, (1, 2)),  # ... and from the loss
        (2, (1,)),  # inputs, made again from those that the stage below has
        (2, (1, 0)),  # ... and from the data
        (1, (0,)),
        (1, (2,)),
        (1, (0, 2)),
    ],
)
def test_frames_that_died_with_their_keepers_are_made_again_after_the_step(
    play: Play, cue: MakeCue, lost: int, keepers: tuple[int, ...], step: int
) -> None:
    holder, spec = Holder(), alone_with_the_sum(step)
    assert last_step(spec) == STEPS - 1
    result = play(
        Scenario(spec=spec, peers=PEERS, link=SLOW),
        cue("cut", publishes(lost, step), holder.cut_off),
        *(cue("kill", commits(keeper, step), kill_it) for keeper in keepers),
        cue("kill", commits(keepers[-1], step), holder.kill, 0.1),
    )
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest
    kills = [e for e in result.entries if isinstance(e.event, ev.FaultFired)]
    mate = next(e.at for e in result.entries if e.peer == holder.mate and commits(lost, step)(e))
    assert mate > max(e.at for e in kills)
    for dead in {PeerId(e.event.target) for e in kills} - {holder.peer}:
        assert counted(result, holder.peer, step) & counted(result, dead, step)


def test_nothing_is_computed_again_where_nobody_has_died(play: Play) -> None:
    spec = toy_spec(stages=3, microbatches=12, steps=3)
    result = play(Scenario(spec=spec, peers=PEERS, link=SLOW))
    kinds = {type(entry.event) for entry in result.entries}
    assert not kinds & {ev.Replayed, ev.Recalled}
