"""Real arithmetic on virtual time: any swarm, any cut, gives what one process gives, bit for bit.

And the control: one flipped bit of one gradient sum, and it does not.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2ptrain.compute import reference
from p2ptrain.compute.executor import TorchCompute
from p2ptrain.core.digest import combine_digests
from p2ptrain.core.sizes import boundary_bytes, microbatch_token_bytes
from p2ptrain.data import load_corpus, pin
from p2ptrain.observe import events as ev
from p2ptrain.observe.traffic import wire_of
from p2ptrain.ports import Corpus
from p2ptrain.run import (
    Batch,
    Codec,
    Composition,
    Cut,
    Data,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
    Sync,
    validate,
)
from p2ptrain.run.codecs import composition_of
from p2ptrain.run.frames import most_frame_bytes
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage

Play = Callable[..., SwarmResult]
MakeCue = Callable[..., Any]

HERE = Path(__file__).parent
STEPS = 3


def spec_of(
    *, stages: int, replicas: int, seed: int = 0, codec: str | Composition = "fp32"
) -> RunSpec:
    if isinstance(codec, Composition):
        chosen = Codec(name=codec.name, compositions=(codec,))
    else:
        chosen = Codec(name=codec)
    spec = RunSpec(
        name="small enough for a test",
        seed=seed,
        model=Model(d_model=16, n_layers=4, n_heads=2, n_kv_heads=1, d_ff=32, context=16),
        cut=Cut(stages=stages),
        batch=Batch(sequences=2, microbatches=8),
        optimizer=Optimizer(steps=STEPS, warmup_steps=1),
        sync=Sync(start_replicas=replicas),
        codec=chosen,
        data=Data(source="text"),
        evaluation=Evaluation(every_steps=2, microbatches=2),
    )
    return validate(pin(spec, HERE))


def latent(name: str, bits: int, *, rank: int = 0) -> Composition:
    """A learned bottleneck of 4 values a token, and how they cross."""
    return Composition(
        name=name,
        width=4,
        anchor_order=2,
        anchor_rank=rank,
        mean=bits < 16,  # of integers alone
        forward=((0, bits),),
        backward=((0, bits),),
    )


WARMING = Composition(
    name="warming",
    width=4,
    anchor_order=2,
    mean=True,
    hadamard=True,
    forward=((0, 8), (2, 4)),
    backward=((0, 16), (1, 3), (2, 2)),
)

BOTTLENECKS = [
    latent("bf16-latents", 16),
    latent("factorised", 32, rank=3),
    latent("int8-latents", 8),
    latent("int4-latents", 4),
    latent("int2-latents", 2),
    WARMING,
]


@cache
def corpus_of(spec: RunSpec) -> Corpus:
    return load_corpus(spec, HERE)


def alone(spec: RunSpec) -> str:
    return reference.train(spec, corpus_of(spec), device="cpu").weights_digest


@dataclass
class Tampered:
    """Hands out stages one of which flips a bit worth 2^-8 in the first sum part it gives.

    A bit of 2^-40 may vanish in the rounding of the weights, as the data (this folder) has it.
    """

    flipped: int = 0
    made: list[TorchCompute] = field(default_factory=list)

    def make(self, spec: RunSpec, plan: PeerPlan) -> TorchCompute:
        compute = TorchCompute(spec, device="cpu", inline=True, memory_bytes=1 << 30)
        if plan.peer == "peer-0000":
            opened = compute.open

            async def open_tampered(stage):
                seat = await opened(stage)
                honest = seat.read_own

                async def read_own(start, stop):
                    part = bytearray(await honest(start, stop))
                    if not self.flipped and any(part):
                        part[4] ^= 1
                        self.flipped += 1
                    return bytes(part)

                seat.read_own = read_own
                return seat

            compute.open = open_tampered
        self.made.append(compute)
        return compute


def honest(spec: RunSpec, plan: PeerPlan) -> TorchCompute:
    return TorchCompute(spec, device="cpu", inline=True, memory_bytes=1 << 30)


def slowly(spec: RunSpec, plan: PeerPlan) -> TorchCompute:
    """Every call takes virtual time, so that a step has a middle."""

    def cost(_stage: Stage, _kind: str) -> float:
        return 0.05

    return TorchCompute(spec, device="cpu", inline=True, cost=cost, memory_bytes=1 << 30)


def train(spec: RunSpec, peers: int, compute=honest) -> dict[str, str]:
    scenario = Scenario(
        spec=spec,
        peers=crowd(peers, interval_seconds=0.1),
        seed=spec.seed,
        compute=compute,
        corpus=corpus_of(spec),
        verify=False,
        stall_seconds=120.0,
    )
    result = SimWorld(scenario).run()
    assert result.holds, result.verdicts
    return dict(result.tensors)


def swarm(spec: RunSpec, peers: int, compute=honest) -> str:
    return combine_digests(train(spec, peers, compute))


@pytest.mark.parametrize(("stages", "replicas"), [(2, 1), (2, 2), (2, 4), (4, 1)])
def test_the_weights_are_those_of_one_process(stages: int, replicas: int) -> None:
    spec = spec_of(stages=stages, replicas=replicas)
    assert swarm(spec, stages * replicas) == alone(spec)


def test_the_cut_does_not_matter() -> None:
    digests = {alone(spec_of(stages=stages, replicas=1)) for stages in (1, 2, 3, 4)}
    assert len(digests) == 1
    assert swarm(spec_of(stages=3, replicas=1), 3) in digests


@pytest.mark.parametrize(("seed", "codec"), [(1, "bf16"), (2, "bf16"), (3, "int8"), (4, "int4")])
def test_other_seeds_and_codecs_that_round(seed: int, codec: str) -> None:
    spec = spec_of(stages=2, replicas=2, seed=seed, codec=codec)
    assert swarm(spec, 4) == alone(spec)


@pytest.mark.parametrize("codec", ["bf16", "int8", WARMING], ids=["bf16", "int8", "warming"])
def test_frames_have_the_length_that_the_codec_promised(codec: str | Composition) -> None:
    """Ids in a simulation are shorter than real ones, and so are paths."""
    spec = spec_of(stages=3, replicas=2, codec=codec)
    scenario = Scenario(
        spec=spec, peers=crowd(6), compute=honest, corpus=corpus_of(spec), verify=False
    )
    result = SimWorld(scenario).run()
    directions = {"forward": ("forward", 1), "gradient": ("backward", 0)}
    seen = set()
    for entry in result.entries:
        frame = entry.event
        if not isinstance(frame, ev.FrameSent) or frame.what not in directions:
            continue
        direction, above = directions[frame.what]
        boundary = frame.stage - above
        exact = boundary_bytes(spec, boundary, direction, frame.step)
        exact += microbatch_token_bytes(spec) if direction == "forward" else 0
        bound = most_frame_bytes(spec, composition_of(spec, boundary), boundary, direction)
        assert exact < frame.frame_bytes <= bound
        assert frame.frame_bytes - exact < 150 + 20 * frame.stage
        seen.add((direction, boundary, frame.step))
    assert len(seen) >= 2 * 2 * STEPS
    wire = wire_of(result.entries)
    assert wire.forward_ratio_vs_bf16 is not None
    assert wire.control_bytes > 0


@pytest.mark.asyncio
async def test_every_tensor_of_every_stage_has_learnt() -> None:
    spec = spec_of(stages=4, replicas=1)
    compute = honest(spec, PeerPlan(peer=PeerId("nobody")))
    before = {}
    for stage in range(4):
        before.update(await (await compute.open(Stage(stage))).tensor_digests())
    after = await asyncio.to_thread(train, spec, 4)
    assert before.keys() == after.keys()
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize("codec", BOTTLENECKS, ids=lambda codec: codec.name)
def test_a_bottleneck_at_every_boundary_gives_what_one_process_gives(codec: Composition) -> None:
    spec = spec_of(stages=4, replicas=1, codec=codec)
    assert swarm(spec, 4) == alone(spec)


def test_every_boundary_may_have_a_codec_of_its_own() -> None:
    boundaries = ("int4", WARMING.name, "bf16")
    codec = Codec(name="bf16", boundaries=boundaries, compositions=(WARMING,))
    spec = validate(msgspec.structs.replace(spec_of(stages=4, replicas=1), codec=codec))
    assert swarm(spec, 4) == alone(spec)


@pytest.mark.parametrize("codec", BOTTLENECKS, ids=lambda codec: codec.name)
def test_a_bottleneck_replays_to_the_bit(codec: Composition, play: Play, cue: MakeCue) -> None:
    spec = spec_of(stages=3, replicas=2, codec=codec)
    victim = PeerId("s1-1")
    counted = []

    def in_mid_step(entry: ev.Entry) -> bool:
        event = entry.event
        if isinstance(event, ev.SlotCounted) and (entry.peer, event.step) == (victim, 1):
            counted.append(event.slot)
        return len(counted) == 2

    def kill(world: SimWorld, _: ev.Entry) -> PeerId:
        world.kill(victim)
        return victim

    peers = [
        PeerPlan(peer=PeerId(f"s{stage}-{number}"), stage=Stage(stage))
        for stage in range(3)
        for number in range(2)
    ]
    scenario = Scenario(
        spec=spec, peers=peers, compute=slowly, corpus=corpus_of(spec), verify=False
    )
    result = play(scenario, cue("kill", in_mid_step, kill))
    assert combine_digests(dict(result.tensors)) == alone(spec)
    assert [e for e in result.entries if isinstance(e.event, ev.Replayed)]


def test_one_peer_alone_trains_the_whole_model() -> None:
    spec = spec_of(stages=2, replicas=1)
    assert swarm(spec, 1) == alone(spec)


def test_one_flipped_bit_is_seen() -> None:
    spec = spec_of(stages=2, replicas=2)
    tampered = Tampered()
    assert swarm(spec, 4, tampered.make) != alone(spec)
    assert tampered.flipped == 1
