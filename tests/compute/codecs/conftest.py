"""The compositions that the tests of this folder go through, and a context for each way."""

import pytest
import torch

from p2ptrain.compute.codecs import CodecContext
from p2ptrain.core.sizes import Direction
from p2ptrain.run import Composition
from p2ptrain.run.codecs import BUILT_IN
from p2ptrain.units import Slot, Step

COMPOSITIONS = {
    "int8": BUILT_IN["int8"],
    "int4": BUILT_IN["int4"],
    "blocks, mean, rotated": Composition(name="x", scale="block", mean=True, hadamard=True),
    "tokens": Composition(name="x"),
    "tokens, mean": Composition(name="x", mean=True),
    "tokens, mean, rotated": Composition(name="x", mean=True, hadamard=True),
}


@pytest.fixture(params=COMPOSITIONS.values(), ids=COMPOSITIONS)
def composition(request: pytest.FixtureRequest) -> Composition:
    found: Composition = request.param
    return found


def context_of(direction: Direction, *, step: int = 2, slot: int = 3) -> CodecContext:
    return CodecContext(seed=1, step=Step(step), slot=Slot(slot), boundary=0, direction=direction)


@pytest.fixture
def forward() -> CodecContext:
    return context_of("forward")


@pytest.fixture
def backward() -> CodecContext:
    return context_of("backward")


@pytest.fixture
def x_rk() -> torch.Tensor:
    """Values like a latent's: channels with means, tokens of unequal size."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(48, 16, generator=generator)
    sizes = torch.rand(48, 1, generator=generator).mul(4).exp()
    return values * sizes + 20 * torch.randn(16, generator=generator)
