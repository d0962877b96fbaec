"""A state as its difference to the last one that was adopted: what all share, and what is owed.

    sender     owed + weights - shared  ->  integers by blocks  ->  bytes
    everybody  shared + decoded         ->  weights = shared    (the sender too)
               owed + weights before - weights now              ->  owed

Replicas of a stage stand between two steps, each with weights that rounding has drawn a little
apart. What they took over the last time they hold bit for bit. So few bits of the way from there
to where the sender stands are enough for all to meet in one place, and it matters little that
this is not quite where the sender stood: what is missing is *owed* (error feedback), and goes
along the next time.

The sender changes from time to time, and nobody hears what another owes. Nor need they: all
have come the same way but for rounding, so all owe nearly the same, and each keeps its own. That
is at most half of what one integer stands for, for so far nearest rounding may be away; what a
receiver would owe beyond is drift, which adopting takes away: it is dropped. What drift there is
below that stays owed, and so is bounded. Who has taken over a whole state owes nothing.

Moments go themselves, no differences, and owe nothing, for they are forgotten within tens of
steps: first ones as the same integers (left as they were, the loss of four seeds was .27% lower
in the mean, and rows of one seed differ by more: benchmarks.adoption), second ones as bf16 (by
blocks the small ones would be zero, and what is divided by their root would not be small). How
many updates there were is known to all.

Invariants:
    * equal states that are shared, and equal bytes, give equal states: a product and a sum
      of IEEE an element;
    * bytes have the one size that the stage gives, hold finite numbers and lead to finite ones,
      or are refused, and nothing has changed;
    * what is owed of a weight is at most half of an integer's worth (of four bits: .58), whoever
      sent how often.

Refused: to quantise the state itself. Its error is of the size of weights, each time; that of a
difference is of the size of fifty updates, and shrinks as the learning rate does.

Legend: e all elements of the stage's parameters in name order, n blocks, g values in one.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from p2ptrain.compute.codecs import BFloat16Codec, CodecContext, Quantiser, decoded, encoded
from p2ptrain.compute.codecs.contract import check_size
from p2ptrain.core.adoption import GENESIS
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.run.codecs import BUILT_IN
from p2ptrain.run.frames import BLOCK_VALUES, encoded_bytes
from p2ptrain.units import Slot, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from p2ptrain.compute.optimizers import StageOptimizer
    from p2ptrain.ports import Buffer
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Digest

BITS: dict[str, Literal[8, 4]] = {"int8": 8, "int4": 4}

FIRST, SECOND = ("momentum/", "mean/"), ("square/",)
"""Names of moments in an optimizer's state begin so."""

_NEAREST = CodecContext(seed=0, step=Step(0), slot=Slot(0), boundary=0, direction="forward")
"""Forward values round to nearest, and draw nothing from where they stand."""


class _Decoded(NamedTuple):
    difference_e: Tensor
    first_e: Tensor
    second_e: Tensor


class Difference:
    """One seat's side of it, over weights and optimizer state that change in place."""

    def __init__(self, kind: str, weights: Mapping[str, Tensor], optimizer: StageOptimizer) -> None:
        self.base: Digest | None = GENESIS  # what is shared; None: nothing that has a name
        self._bits = BITS[kind]
        self._weights, self._optimizer = weights, optimizer
        self._shared_e = _flat(weights.values())
        self._owed_e = torch.zeros_like(self._shared_e)
        self._elements = len(self._shared_e)
        self._sizes = (
            encoded_bytes(BUILT_IN[kind], self._bits, 1, self._elements),
            encoded_bytes(BUILT_IN[kind], self._bits, 1, self._elements),
            2 * sum(moment.numel() for moment in self._held(*SECOND)),
        )
        self._codec = Quantiser(BUILT_IN[kind], self._bits)

    @classmethod
    def of(
        cls, spec: RunSpec, weights: Mapping[str, Tensor], optimizer: StageOptimizer
    ) -> Difference | None:
        """For a seat with the seed's weights; None: the run adopts whole states."""
        kind = spec.sync.adoption
        return None if kind == "exact" else cls(kind, weights, optimizer)

    @property
    def size_bytes(self) -> Bytes:
        """Of every difference of this stage."""
        return sum(self._sizes)

    def mark(self, base: Digest) -> None:
        """The state that is here now has been adopted, and all call it ``base``."""
        self._shared_e = _flat(self._weights.values())
        self.base = base

    def loaded(self) -> None:
        """A whole state has taken the place of ours."""
        self._owed_e.zero_()
        self.base = None

    @torch.no_grad()
    def make(self) -> bytes | None:
        """Adopt what our own state leads to, and give that; None: not finite, or nothing shared."""
        if self.base is None:
            return None
        way_e = _flat(self._weights.values()) + self._owed_e - self._shared_e
        parts = (
            encoded(self._codec, way_e[None], _NEAREST),
            encoded(self._codec, _flat(self._held(*FIRST))[None], _NEAREST),
            encoded(BFloat16Codec(), _flat(self._held(*SECOND))[None], _NEAREST),
        )
        blob = b"".join(parts)
        try:
            self.adopt(blob)
        except MisbehaviourError:
            return None
        return blob

    @torch.no_grad()
    def adopt(self, blob: Buffer) -> None:
        """Take over what the sender of ``blob`` has taken over; then :meth:`mark` it.

        Raises:
            MisbehaviourError: no sender gives that; nothing was changed.
        """
        if self.base is None:
            raise InternalError("a difference to a state that was not adopted here")
        found = self._decoded(blob)
        stood_e = _flat(self._weights.values()) + self._owed_e
        shared_e = self._shared_e + found.difference_e
        sound = torch.isfinite(shared_e).all() & torch.isfinite(found.first_e).all()
        if not bool(sound & torch.isfinite(found.second_e).all() & (found.second_e >= 0).all()):
            raise MisbehaviourError("a difference to a state that is not sound")
        most_e = self._half_steps(found.difference_e)
        self._owed_e = (stood_e - shared_e).clamp_(min=-most_e, max=most_e)
        self._shared_e, self.base = shared_e, None
        _copy(shared_e, self._weights.values())
        _copy(found.first_e, self._held(*FIRST))
        _copy(found.second_e, self._held(*SECOND))

    def _decoded(self, blob: Buffer) -> _Decoded:
        check_size(blob, self.size_bytes)
        view, device = memoryview(blob).cast("B"), self._shared_e.device
        cuts = pairwise(accumulate(self._sizes, initial=0))
        way, first, second = (view[begin:end] for begin, end in cuts)
        return _Decoded(
            difference_e=decoded(self._codec, way, 1, self._elements, device)[0],
            first_e=decoded(self._codec, first, 1, self._elements, device)[0],
            second_e=decoded(BFloat16Codec(), second, 1, self._sizes[2] // 2, device)[0],
        )

    def _half_steps(self, difference_e: Tensor) -> Tensor:
        """Half of what an integer stands for, from the greatest of each block's.

        Scales are rounded up by less than one integer, so the greatest is the last or the one
        before.
        """
        padded_e = functional.pad(difference_e, (0, -self._elements % BLOCK_VALUES))
        peak_n = padded_e.view(-1, BLOCK_VALUES).abs().amax(1)
        reach = (1 << (self._bits - 1)) - 1
        return (peak_n / (2 * (reach - 1))).repeat_interleave(BLOCK_VALUES)[: self._elements]

    def _held(self, *kinds: str) -> list[Tensor]:
        """Moments of ``kinds``, of which a parameter has one at most, in order of parameters."""
        held = self._optimizer.state()
        return [
            held[kind + name] for name in self._weights for kind in kinds if kind + name in held
        ]


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """A copy of all values, one after the other."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _copy(values_e: Tensor, into: Iterable[Tensor]) -> None:
    """The reverse, in place."""
    begin = 0
    for tensor in into:
        tensor.copy_(values_e[begin : begin + tensor.numel()].view_as(tensor))
        begin += tensor.numel()
