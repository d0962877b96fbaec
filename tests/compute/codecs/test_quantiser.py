"""Bounds of the error, unbiased noise, and what happens to bytes that nobody encoded."""

import hashlib
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils._python_dispatch import TorchDispatchMode

from p2ptrain.compute.codecs import CodecContext, Quantiser, decoded, encoded
from p2ptrain.compute.codecs.quantiser import channel_means
from p2ptrain.core.sizes import Direction
from p2ptrain.errors import MisbehaviourError
from p2ptrain.run import Bits, Composition
from p2ptrain.run.codecs import BUILT_IN
from p2ptrain.run.frames import encoded_bytes
from p2ptrain.units import Slot, Step

CPU = torch.device("cpu")
LATENT = Composition(name="x", mean=True)
ALL_BITS: tuple[Bits, ...] = (8, 4, 3, 2)
BITS = pytest.mark.parametrize("bits", ALL_BITS)
STEPS = {8: 254, 4: 14, 3: 7, 2: 3}
"""Steps of the grid from the least to the greatest value under a scale."""

EXAMPLES = 10_000
"""For each decoder of a preset; of the others for each composition, all bits together."""

OF_PRESETS = ((BUILT_IN["int8"], 8), (BUILT_IN["int4"], 4), *((LATENT, bits) for bits in (8, 4)))


def sent(codec: Quantiser, x_rk: torch.Tensor, context: CodecContext) -> torch.Tensor:
    rows, width = x_rk.shape
    return decoded(codec, encoded(codec, x_rk, context), rows, width, CPU)


def steps_of(composition: Composition, bits: Bits, x_rk: torch.Tensor) -> torch.Tensor:
    """An upper bound of the grid's step for every value, rotation and rounding up counted."""
    if composition.mean:
        x_rk = x_rk - channel_means(x_rk, float(x_rk.abs().amax())).float()
    group = x_rk.shape[1] if composition.scale == "token" else 64
    x_ng = x_rk.reshape(-1, group)
    peak_n = x_ng.norm(dim=1) if composition.hadamard else x_ng.abs().amax(1)
    step_n = 2 * peak_n * 2 ** (1 / 8) / STEPS[bits]
    if composition.hadamard:  # errors of all values under the scale come together in one
        step_n *= math.sqrt(group)
    return step_n[:, None].expand(-1, group).reshape(x_rk.shape)


@BITS
def test_the_error_of_a_value_is_at_most_half_a_step_there_and_a_step_back(
    composition: Composition,
    bits: Bits,
    x_rk: torch.Tensor,
    forward: CodecContext,
    backward: CodecContext,
) -> None:
    codec = Quantiser(composition, bits)
    step_rk = steps_of(composition, bits, x_rk) * (1 + 1e-4)
    assert bool(((sent(codec, x_rk, forward) - x_rk).abs() <= step_rk / 2 + 1e-4).all())
    assert bool(((sent(codec, x_rk, backward) - x_rk).abs() <= step_rk + 1e-4).all())


@BITS
def test_sizes_are_those_that_were_promised(
    composition: Composition, bits: Bits, forward: CodecContext
) -> None:
    codec = Quantiser(composition, bits)
    for rows, width in ((1, 1), (3, 8), (5, 16), (7, 64), (2, 128)):
        blob = encoded(codec, torch.ones(rows, width), forward)
        assert len(blob) == encoded_bytes(composition, bits, rows, width)
        there_rk = decoded(codec, blob, rows, width, CPU)
        assert there_rk.shape == (rows, width)
        torch.testing.assert_close(there_rk, torch.ones(rows, width), rtol=0.1, atol=0.1)


@BITS
def test_gradients_are_right_on_average(
    composition: Composition, bits: Bits, x_rk: torch.Tensor, backward: CodecContext
) -> None:
    """The mean of 400 draws lies within 6 sigma of every value."""
    codec, draws = Quantiser(composition, bits), 400
    total = torch.zeros(x_rk.shape, dtype=torch.float64)
    for slot in range(draws):
        context = CodecContext(
            seed=backward.seed,
            step=backward.step,
            slot=Slot(slot),
            boundary=backward.boundary,
            direction="backward",
        )
        total += sent(codec, x_rk, context)
    group = x_rk.shape[1] if composition.scale == "token" else 64
    step_rk = steps_of(composition, bits, x_rk)
    if composition.hadamard:  # errors of a row add as independent ones do
        step_rk = step_rk / math.sqrt(group)
    sigma = step_rk / 2 / math.sqrt(draws)
    assert bool(((total / draws - x_rk).abs() <= 6 * sigma + 1e-3).all())


@given(
    bits=st.sampled_from(ALL_BITS),
    composition=st.builds(
        Composition,
        name=st.just("x"),
        mean=st.booleans(),
        hadamard=st.booleans(),
        scale=st.sampled_from(["token", "block"]),
    ),
    values=hnp.arrays("float32", (4, 8), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
)
def test_whatever_is_finite_arrives_finite_and_within_its_scale(
    bits: Bits, composition: Composition, values: object
) -> None:
    codec = Quantiser(composition, bits)
    x_rk = torch.from_numpy(values)  # type: ignore[arg-type]
    context = CodecContext(seed=0, step=0, slot=0, boundary=0, direction="backward")  # type: ignore[arg-type]
    there_rk = sent(codec, x_rk, context)
    assert bool(torch.isfinite(there_rk).all())
    assert float(there_rk.abs().max()) <= 20 * float(x_rk.abs().max()) + 1e-29


@BITS
@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30, 1e30, 1e-45])
def test_extreme_constants(
    composition: Composition, bits: Bits, value: float, forward: CodecContext
) -> None:
    x_rk = torch.full((8, 16), value)
    there_rk = sent(Quantiser(composition, bits), x_rk, forward)
    torch.testing.assert_close(there_rk, x_rk, rtol=0.1, atol=3e-29)


@BITS
def test_one_hot_channel_costs_the_others_their_digits_but_not_their_lives(
    composition: Composition, bits: Bits, forward: CodecContext
) -> None:
    x_rk = torch.zeros(8, 64)
    x_rk[:, 5] = torch.linspace(-1e30, 1e30, 8)
    there_rk = sent(Quantiser(composition, bits), x_rk, forward)
    assert bool(torch.isfinite(there_rk).all())
    assert float((there_rk - x_rk).abs().max()) <= 1e30


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_not_finite_spoils_the_whole_message(
    composition: Composition, value: float, x_rk: torch.Tensor, backward: CodecContext
) -> None:
    codec = Quantiser(composition, 4)
    x_rk[7, 3] = value
    blob = encoded(codec, x_rk, backward)
    assert len(blob) == encoded_bytes(composition, 4, *x_rk.shape)
    assert bool(torch.isnan(decoded(codec, blob, *x_rk.shape, CPU)).all())
    with pytest.raises(MisbehaviourError, match="spoilt"):
        decoded(codec, bytes(blob[:-1]) + b"x", *x_rk.shape, CPU)


@BITS
def test_zeros_stay_zeros(composition: Composition, bits: Bits, backward: CodecContext) -> None:
    """A microbatch without weight has a gradient of zeros, and must keep it."""
    assert not bool(sent(Quantiser(composition, bits), torch.zeros(4, 16), backward).any())


@BITS
def test_any_bytes_are_refused_or_decode_to_finite_values(
    composition: Composition, bits: Bits, backward: CodecContext
) -> None:
    rng, codec = random.Random(bits), Quantiser(composition, bits)
    x_rk = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    honest = encoded(codec, x_rk, backward)
    refused = 0
    examples = EXAMPLES if (composition, bits) in OF_PRESETS else EXAMPLES // len(ALL_BITS)
    for _ in range(examples):
        blob = bytearray(honest)
        match rng.randrange(4):
            case 0:
                blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
            case 1:
                blob[rng.randrange(min(len(blob), 48))] = rng.randrange(256)
            case 2:
                del blob[rng.randrange(len(blob)) :]
            case _:
                blob[:] = rng.randbytes(len(blob) + rng.randrange(2))
        try:
            there_rk = decoded(codec, blob, 4, 16, CPU)
        except MisbehaviourError:
            refused += 1
            continue
        assert there_rk.shape == (4, 16)
        assert bool(torch.isfinite(there_rk).all())
    assert 0.2 * examples < refused < 0.9 * examples


@BITS
def test_threads_do_not_show_in_the_bytes(
    composition: Composition, bits: Bits, forward: CodecContext, backward: CodecContext
) -> None:
    """Large enough that torch does share the work out (32,768 values and more a thread)."""
    x_rk = torch.randn(4096, 64, generator=torch.Generator().manual_seed(1)) + 3
    codec = Quantiser(composition, bits)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        blobs = [encoded(codec, x_rk, context) for context in (forward, backward)]
        there = [decoded(codec, blob, *x_rk.shape, CPU).numpy().tobytes() for blob in blobs]
        found.append((blobs, there))
    torch.set_num_threads(1)
    assert found[0] == found[1]


def test_the_bytes_do_not_depend_on_layout_or_grad(forward: CodecContext) -> None:
    codec = Quantiser(Composition(name="x", mean=True), 4)
    x_rk = torch.randn(16, 9, generator=torch.Generator().manual_seed(2))
    strided = x_rk.t().contiguous().t().requires_grad_()
    assert encoded(codec, strided, forward) == encoded(codec, x_rk, forward)


class NoDoubles(TorchDispatchMode):
    """Refuses what some accelerators (mps) do not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, func
        return found


@BITS
def test_no_device_needs_doubles(
    composition: Composition, bits: Bits, x_rk: torch.Tensor, backward: CodecContext
) -> None:
    codec = Quantiser(composition, bits)
    blob = encoded(codec, x_rk, backward)
    with NoDoubles():
        assert encoded(codec, x_rk, backward) == blob
        decoded(codec, blob, *x_rk.shape, CPU)


def test_a_mean_is_exact_in_any_order() -> None:
    x_rk = torch.randn(5000, 3, generator=torch.Generator().manual_seed(3)) * 1e-9 + 1.0
    mean_k = channel_means(x_rk, 1.1)
    assert torch.equal(channel_means(x_rk.flip(0), 1.1), mean_k)
    torch.testing.assert_close(mean_k.float(), x_rk.mean(0), rtol=2**-8, atol=0)


GOLDEN = {
    (8, "forward"): "c9eecb1e6c9e45e0",
    (8, "backward"): "b4b0245d6330a3b0",
    (4, "forward"): "d4716bed9f223504",
    (4, "backward"): "e8e9a7d6d8322ecf",
    (3, "backward"): "5813772503f4279c",
    (2, "backward"): "a3849e7177dccca3",
}


@pytest.mark.parametrize(("bits", "direction"), GOLDEN)
def test_the_bytes_are_these_on_every_machine(bits: Bits, direction: Direction) -> None:
    """Another release of torch, or another device, must not make other ones."""
    x_rk = torch.arange(-160.0, 160.0).view(32, 10) ** 3 * 2.0**-20
    codec = Quantiser(Composition(name="x", mean=True), bits)
    context = CodecContext(seed=1, step=Step(2), slot=Slot(3), boundary=0, direction=direction)
    blob = encoded(codec, x_rk, context)
    assert hashlib.blake2b(blob, digest_size=8).hexdigest() == GOLDEN[bits, direction]


@BITS
def test_slabs_do_not_show_in_the_bytes(
    composition: Composition, bits: Bits, backward: CodecContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU goes through a tensor by slabs, a GPU takes it as a whole."""
    x_rk = torch.randn(129, 16, generator=torch.Generator().manual_seed(4))
    codec = Quantiser(composition, bits)
    found = set()
    for slab_values in (1, 1000, 1 << 30):
        monkeypatch.setattr("p2ptrain.compute.codecs.quantiser.SLAB_VALUES", slab_values)
        blob = bytes(encoded(codec, x_rk, backward))
        found.add((blob, decoded(codec, blob, *x_rk.shape, CPU).numpy().tobytes()))
    assert len(found) == 1
