"""A few bits of the way are enough for all to meet, and what they leave out is not lost."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from p2ptrain.compute.difference import BITS, Difference
from p2ptrain.compute.optimizers import StageOptimizer
from p2ptrain.core.adoption import GENESIS
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.run import Optimizer, RunSpec, Sync
from p2ptrain.run.codecs import BUILT_IN
from p2ptrain.run.frames import BLOCK_VALUES, encoded_bytes
from p2ptrain.units import DIGEST_BYTES, Digest

NAME = Digest(b"a root".ljust(DIGEST_BYTES))
KINDS = pytest.mark.parametrize("kind", BITS)
EXAMPLES = 5000
"""For each kind, so 10,000 in all."""

SHAPES = {"embed.weight": (5, 8), "layers.0.q_proj.weight": (12, 8), "norm.weight": (9,)}
ELEMENTS = 40 + 96 + 9
BY_ADAMW = 40 + 9


class Seat:
    """Weights, optimizer state and their difference."""

    def __init__(self, kind: str, number: int = 0) -> None:
        self._number = number
        random_ = torch.Generator().manual_seed(7)
        self.weights = {
            name: torch.randn(shape, generator=random_).requires_grad_()
            for name, shape in SHAPES.items()
        }
        self.optimizer = StageOptimizer(Optimizer(), self.weights)
        self.difference = Difference(kind, self.weights, self.optimizer)

    @torch.no_grad()
    def learns(self, seed: int, drift: float = 0.0) -> None:
        """Moves as others of the same ``seed`` do, but for ``drift``, each number's own."""
        same, own = (torch.Generator().manual_seed(seed) for _ in range(2))
        own.manual_seed(10**6 + self._number)
        gradients = {}
        for name, weight in self.weights.items():
            gradient = torch.randn(weight.shape, generator=same)
            gradients[name] = gradient + drift * torch.randn(weight.shape, generator=own)
        self.optimizer.step(gradients, seed)

    @property
    def held(self) -> Tensor:
        """All that an adoption changes."""
        return torch.cat([tensor.reshape(-1).double() for tensor in self.state().values()])

    @property
    def flat(self) -> Tensor:
        return torch.cat([weight.detach().reshape(-1) for weight in self.weights.values()])

    @torch.no_grad()
    def moves(self, way_e: Tensor) -> None:
        sizes = [weight.numel() for weight in self.weights.values()]
        for weight, way in zip(self.weights.values(), torch.split(way_e, sizes), strict=True):
            weight.add_(way.view_as(weight))

    @torch.no_grad()
    def loads(self, other: Seat) -> None:
        for weight, its in zip(self.weights.values(), other.weights.values(), strict=True):
            weight.copy_(its)
        self.optimizer.load(other.optimizer.state())
        self.difference.loaded()

    def state(self) -> dict[str, Tensor]:
        held = {**self.weights, **self.optimizer.state()}
        return {name: tensor.detach().clone() for name, tensor in held.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def meet(sender: Seat, *others: Seat) -> bytes:
    """An adoption."""
    blob = sender.difference.make()
    assert blob is not None
    sender.difference.mark(NAME)
    for other in others:
        other.difference.adopt(blob)
        other.difference.mark(NAME)
    return blob


@KINDS
def test_who_drifted_apart_meets_in_every_bit_whoever_sends(kind: str) -> None:
    seats = [Seat(kind, number) for number in range(3)]
    for step in range(6):
        for seat in seats:
            seat.learns(step, drift=1e-3)
        assert not same(seats[0].state(), seats[1].state())
        meet(seats[step % 3], *(seats[: step % 3] + seats[step % 3 + 1 :]))
        assert same(seats[0].state(), seats[1].state())
        assert same(seats[0].state(), seats[2].state())


@KINDS
def test_a_difference_has_one_size_and_few_bits(kind: str) -> None:
    seat = Seat(kind)
    seat.learns(0)
    blob = seat.difference.make()
    assert blob is not None
    by_blocks = encoded_bytes(BUILT_IN[kind], BITS[kind], 1, ELEMENTS)
    assert len(blob) == seat.difference.size_bytes == 2 * by_blocks + 2 * BY_ADAMW


@KINDS
def test_where_all_meet_is_near_the_sender_and_moments_are_near_its(kind: str) -> None:
    seat = Seat(kind)
    began = seat.flat
    for step in range(3):
        seat.learns(step)
    before, stood = seat.state(), seat.flat
    meet(seat)
    most = float((stood - began).abs().max()) / (2 ** (BITS[kind] - 1) - 1)
    assert 0 < float((seat.flat - stood).abs().max()) <= most
    for name, now in seat.optimizer.state().items():
        most = float(before[name].abs().max()) / (2 ** (BITS[kind] - 1) - 1)
        if name.startswith("square/"):
            torch.testing.assert_close(now, before[name], rtol=2**-8, atol=0)
        else:
            assert float((now - before[name]).abs().max()) <= most
    assert torch.equal(seat.optimizer.state()["updates"], torch.tensor(3))


def lag(kind: str, *, senders: int, adoptions: int, feedback: bool = True) -> list[float]:
    """How far behind all are after each adoption, if of each block one weight moves much.

    What the little ones move is less than half of an integer's worth, so nearest rounding
    leaves out all of it, every time.
    """
    seats = [Seat(kind, number) for number in range(senders)]
    way_e = torch.full((ELEMENTS,), 0.4 / (2 ** (BITS[kind] - 1)))
    way_e[::BLOCK_VALUES] = 1.0
    should_e, found = seats[0].flat, []
    for number in range(adoptions):
        for seat in seats:
            if not feedback:
                seat.difference.loaded()
                seat.difference.mark(NAME)
            seat.moves(way_e)
        should_e = should_e + way_e
        sender = seats[number % senders]
        meet(sender, *(seat for seat in seats if seat is not sender))
        found.append(float((seats[0].flat - should_e).abs().max()))
    return found


@KINDS
@pytest.mark.parametrize("senders", [1, 3], ids=["one sender", "three in turn"])
def test_what_is_left_out_stays_bounded_over_many_adoptions(kind: str, senders: int) -> None:
    """With feedback: at most half of an integer's worth, of a block whose greatest moves by one."""
    half = 0.5 / (2 ** (BITS[kind] - 1) - 1) * (1 + 2**-6)
    assert max(lag(kind, senders=senders, adoptions=200)) <= half


@KINDS
def test_without_feedback_it_grows_with_every_adoption(kind: str) -> None:
    """The control: what the test above bounds is there."""
    found = lag(kind, senders=1, adoptions=200, feedback=False)
    assert all(later > sooner for sooner, later in pairwise(found))
    assert found[-1] > 199 * found[0] > 0.3 / (2 ** (BITS[kind] - 1)) * 199


@KINDS
def test_what_a_receiver_has_drifted_is_not_owed(kind: str) -> None:
    """Else it would come back when that seat sends, and adopting would take no drift away."""
    sender, other = Seat(kind), Seat(kind, 1)
    sender.moves(torch.full((ELEMENTS,), 0.1))
    other.moves(torch.full((ELEMENTS,), 0.3))
    meet(sender, other)
    meet(other, sender)
    way = sender.flat - Seat(kind).flat
    assert float(way.abs().max()) < 0.1 * (1 + 1 / (2 ** (BITS[kind] - 1) - 2))


@KINDS
def test_who_took_over_a_whole_state_shares_it_once_it_has_a_name(kind: str) -> None:
    sender, joiner = Seat(kind), Seat(kind, 1)
    assert joiner.difference.base == GENESIS
    sender.learns(0)
    joiner.loads(sender)
    assert joiner.difference.base is None
    assert joiner.difference.make() is None
    with pytest.raises(InternalError, match="not adopted here"):
        joiner.difference.adopt(bytes(joiner.difference.size_bytes))
    for seat in (sender, joiner):
        seat.difference.mark(NAME)
    assert joiner.difference.base == NAME
    for seat in (sender, joiner):
        seat.learns(2, drift=1e-3)
    meet(sender, joiner)
    assert same(sender.state(), joiner.state())


@KINDS
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_state_that_is_not_finite_is_not_given_so(kind: str, value: float) -> None:
    seat = Seat(kind)
    seat.moves(torch.full((ELEMENTS,), value))
    before = seat.flat
    assert seat.difference.make() is None
    torch.testing.assert_close(seat.flat, before, rtol=0, atol=0, equal_nan=True)
    assert seat.difference.base == GENESIS


@KINDS
def test_bytes_that_nobody_sent_are_refused_or_lead_to_finite_values(kind: str) -> None:
    random_, refused = random.Random(f"hostile {kind}"), 0
    maker = Seat(kind)
    for step in range(3):
        maker.learns(step)
    good = maker.difference.make()
    assert good is not None
    victim = Seat(kind)
    for number in range(EXAMPLES):
        blob, before = damaged(good, random_), victim.held
        try:
            victim.difference.adopt(blob)
        except MisbehaviourError:
            refused += 1
            assert torch.equal(victim.held, before)
        else:
            victim.difference.mark(NAME)
            assert bool(torch.isfinite(victim.held).all())
        if number % 50 == 0:
            victim = Seat(kind)  # scales of 2^110 add up
    assert 0.2 * EXAMPLES < refused < 0.9 * EXAMPLES


def damaged(good: bytes, random_: random.Random) -> bytes:
    """Bits turned, bytes of noise, cut short, made longer, or all noise."""
    blob = bytearray(good)
    match random_.randrange(5):
        case 0:
            for _ in range(random_.choice((1, 1, 2, 8))):
                blob[random_.randrange(len(blob))] ^= 1 << random_.randrange(8)
        case 1:
            start = random_.randrange(len(blob))
            noise = random_.randbytes(random_.randint(1, 8))
            blob[start : start + len(noise)] = noise[: len(blob) - start]
        case 2:
            del blob[random_.randrange(len(blob)) :]
        case 3:
            blob += random_.randbytes(random_.randint(1, 64))
        case _:
            blob[:] = random_.randbytes(len(blob))
    return bytes(blob)


def test_second_moments_below_zero_are_refused() -> None:
    seat = Seat("int8")
    seat.learns(0)
    good = seat.difference.make()
    assert good is not None
    other = Seat("int8")
    with pytest.raises(MisbehaviourError, match="not sound"):
        other.difference.adopt(good[:-1] + bytes([good[-1] | 0x80]))


def test_a_run_that_adopts_whole_states_keeps_nothing_for_it() -> None:
    seat = Seat("int8")
    assert Difference.of(RunSpec(), seat.weights, seat.optimizer) is None
    lossy = RunSpec(sync=Sync(agreement="canonical", adoption="int8"))
    assert Difference.of(lossy, seat.weights, seat.optimizer) is not None
