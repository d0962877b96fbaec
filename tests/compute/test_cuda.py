"""What must hold on a GPU as on a processor. Skipped where there is none."""

from pathlib import Path

import msgspec
import pytest
import torch

from p2ptrain.compute.codecs import CodecContext, codec_at, decoded, encoded
from p2ptrain.compute.device import make_deterministic
from p2ptrain.compute.reference import Training
from p2ptrain.data import corpus_from_bytes
from p2ptrain.run import (
    Arithmetic,
    Batch,
    Codec,
    Composition,
    Cut,
    Data,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
)
from p2ptrain.units import Slot, Step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")

TEXT = Path(__file__).read_bytes() * 8
CPU = torch.device("cpu")
LATENT = Composition(
    name="latent", width=5, anchor_order=3, mean=True, forward=((0, 4),), backward=((0, 4),)
)
SPEC = RunSpec(
    model=Model(d_model=128, n_layers=4, n_heads=2, n_kv_heads=1, d_ff=256, context=64),
    cut=Cut(stages=4),
    batch=Batch(sequences=8, microbatches=2),
    optimizer=Optimizer(steps=6, warmup_steps=2),
    codec=Codec(name="latent", compositions=(LATENT,)),
    data=Data(source="text"),
    arithmetic=Arithmetic(dtype="bfloat16"),
    evaluation=Evaluation(every_steps=0, microbatches=2),
)


@pytest.fixture
def gpu() -> torch.device:
    device = torch.device("cuda")
    make_deterministic(device, 1)
    return device


def trained(spec: RunSpec, steps: int = 6) -> tuple[str, list[float]]:
    training = Training(spec, corpus_from_bytes(spec, TEXT), device="cuda")
    losses = [training.step().loss for _ in range(steps)]
    return training.weights_digest(), [loss for loss in losses if loss is not None]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scale", ["token", "block"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("hadamard", [False, True])
def test_a_codec_gives_a_processors_bytes(
    gpu: torch.device, bits: int, scale: str, direction: str, *, hadamard: bool
) -> None:
    composition = msgspec.convert(
        {
            "name": "mine",
            "mean": True,
            "hadamard": hadamard,
            "scale": scale,
            "forward": [[0, bits]],
            "backward": [[0, bits]],
        },
        Composition,
    )
    codec = codec_at(composition, direction, Step(3))  # type: ignore[arg-type]
    context = CodecContext(
        seed=7,
        step=Step(3),
        slot=Slot(5),
        boundary=1,
        direction=direction,  # type: ignore[arg-type]
    )
    x_rk = torch.randn(1000, 64, generator=torch.Generator().manual_seed(bits)).mul(3).add(1)
    blob = encoded(codec, x_rk, context)
    assert encoded(codec, x_rk.to(gpu), context) == blob
    there = decoded(codec, blob, 1000, 64, gpu).cpu()
    assert torch.equal(there, decoded(codec, blob, 1000, 64, CPU))


@pytest.mark.usefixtures("gpu")
def test_a_run_ends_with_the_same_bits_every_time() -> None:
    assert trained(SPEC) == trained(SPEC)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cut_changes_no_bit(dtype: str) -> None:
    arithmetic = msgspec.convert({"dtype": dtype}, Arithmetic)
    spec = msgspec.structs.replace(SPEC, codec=Codec(name="none"), arithmetic=arithmetic)
    pieces = {trained(msgspec.structs.replace(spec, cut=Cut(stages=n)))[0] for n in (1, 2, 4)}
    assert len(pieces) == 1


@pytest.mark.usefixtures("gpu")
def test_it_learns_as_on_a_processor() -> None:
    here = Training(SPEC, corpus_from_bytes(SPEC, TEXT), device="cpu")
    losses = [here.step().loss for _ in range(6)]
    assert trained(SPEC)[1] == pytest.approx(losses, rel=0.02)
