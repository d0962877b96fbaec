"""What died with the seat that kept it, after its stage had stepped, is computed once more.

One seat alone holds its stage's sum of a step, everybody has heard of that sum, and it dies:
its mate must count again what the dead one had counted. Meanwhile the stages beside commit,
and a seat dies there that kept what the mate needs. Nobody holds that frame any more, and all
who could make it have stepped: they make it with the weights that the step began with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.compute import reference as one_process
from p2ptrain.compute.executor import TorchCompute
from p2ptrain.compute.stage import StageState
from p2ptrain.core.digest import combine_digests
from p2ptrain.core.schedule import last_step, leaders
from p2ptrain.data import load_corpus, pin
from p2ptrain.observe import events as ev
from p2ptrain.run import (
    Batch,
    Codec,
    Composition,
    Cut,
    Data,
    Model,
    Optimizer,
    RunSpec,
    digest,
    validate,
)
from p2ptrain.sim.arithmetic import ToyState
from p2ptrain.sim.loop import StalledError
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.toy import ToyCorpus, reference, toy_spec
from p2ptrain.units import PeerId, Stage, Step

if TYPE_CHECKING:
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


def toy(seed: int) -> RunSpec:
    return toy_spec(stages=3, microbatches=12, steps=STEPS, seed=seed)


def real(seed: int) -> RunSpec:
    """Torch, with frames that are rounded at random and a bottleneck at every boundary."""
    codec = Composition(
        name="narrow", width=4, anchor_order=1, forward=((0, 4),), backward=((0, 4),)
    )
    spec = RunSpec(
        name="small enough for a test",
        seed=seed,
        model=Model(d_model=16, n_layers=3, n_heads=2, n_kv_heads=1, d_ff=32, context=16),
        cut=Cut(stages=3),
        batch=Batch(sequences=2, microbatches=12),
        optimizer=Optimizer(steps=STEPS, warmup_steps=1),
        codec=Codec(name=codec.name, compositions=(codec,)),
        data=Data(source="text"),
    )
    return validate(pin(spec, Path(__file__).parent))


def on_torch(spec: RunSpec, _: PeerPlan) -> TorchCompute:
    return TorchCompute(
        spec, device="cpu", inline=True, cost=lambda _stage, _kind: 0.05, memory_bytes=1 << 30
    )


def toy_scenario(spec: RunSpec) -> Scenario:
    return Scenario(spec=spec, peers=PEERS, link=SLOW, stall_seconds=120.0)


def torch_scenario(spec: RunSpec) -> Scenario:
    return Scenario(
        spec=spec,
        peers=PEERS,
        link=SLOW,
        compute=on_torch,
        corpus=load_corpus(spec, Path(__file__).parent),
        verify=False,
        stall_seconds=120.0,
    )


def alone_with_the_sum(step: int, make: Callable[[int], RunSpec] = toy) -> RunSpec:
    """A run in whose ``step`` every leader, who publishes, is the first to have the sum.

    The sum is small, so the first member alone adds it up; then the others get it.
    """
    seeds = (make(seed) for seed in range(100))
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
    spec = alone_with_the_sum(step)
    assert last_step(spec) == STEPS - 1
    result = struck(play, cue, toy_scenario(spec), lost, keepers, step)
    assert result.weights_digest == reference(spec, ToyCorpus(spec)).weights_digest


@pytest.mark.parametrize(("lost", "keepers"), [(0, (1, 2)), (2, (1, 0))])
def test_on_real_tensors_they_are_made_again_to_the_bit(
    play: Play, cue: MakeCue, lost: int, keepers: tuple[int, ...]
) -> None:
    step = STEPS - 1
    spec = alone_with_the_sum(step, real)
    result = struck(play, cue, torch_scenario(spec), lost, keepers, step)
    corpus = load_corpus(spec, Path(__file__).parent)
    alone = one_process.train(spec, corpus, device="cpu").weights_digest
    assert combine_digests(dict(result.tensors)) == alone


def with_present_weights(self: Any, kind: str, work: Any, *inputs: Any) -> bytes:
    """In the place of ``ToyState._seed``."""
    self._before = self.held
    return toy_seed(self, kind, work, *inputs)


toy_seed = ToyState._seed


def test_made_again_with_the_weights_after_the_step_they_are_seen(
    play: Play, cue: MakeCue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deliberate bug: what the mate adds up then is another sum than all others stepped with."""
    monkeypatch.setattr(ToyState, "_seed", with_present_weights)
    step = STEPS - 1
    scenario = toy_scenario(alone_with_the_sum(step))
    with pytest.raises(AssertionError, match=r"'I2'.*another chain in the same epoch"):
        struck(play, cue, scenario, 0, (1, 2), step)


def test_on_real_tensors_they_are_seen_too(
    play: Play, cue: MakeCue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without weights of its own for what is past: nobody takes part in such a sum."""
    monkeypatch.setattr(StageState, "_passes_of", lambda self, _work: self._passes)
    step = STEPS - 1
    with pytest.raises(StalledError):
        struck(play, cue, torch_scenario(alone_with_the_sum(step, real)), 0, (1, 2), step)


def struck(
    play: Play,
    cue: MakeCue,
    scenario: Scenario,
    lost: int,
    keepers: tuple[int, ...],
    step: int,
) -> SwarmResult:
    """Let one holder of the sum of ``lost`` die, and who kept what its mate then needs."""
    holder = Holder()
    result = play(
        scenario,
        cue("cut", publishes(lost, step), holder.cut_off),
        # each once its own SUM has reached the others: it may have been the last of all
        *(cue("kill", commits(keeper, step), kill_it, 0.1) for keeper in keepers),
        cue("kill", commits(keepers[-1], step), holder.kill, 0.1),
    )
    kills = [e for e in result.entries if isinstance(e.event, ev.FaultFired)]
    mate = next(e.at for e in result.entries if e.peer == holder.mate and commits(lost, step)(e))
    assert mate > max(e.at for e in kills)
    for dead in {PeerId(e.event.target) for e in kills} - {holder.peer}:
        assert counted(result, holder.peer, step) & counted(result, dead, step)
    return result


def test_nothing_is_computed_again_where_nobody_has_died(play: Play) -> None:
    spec = toy_spec(stages=3, microbatches=12, steps=3)
    result = play(Scenario(spec=spec, peers=PEERS, link=SLOW))
    kinds = {type(entry.event) for entry in result.entries}
    assert not kinds & {ev.Replayed, ev.Recalled}
