"""Gradient sums in integers, so that a sum does not depend on order, cover or history.

Floating-point addition is not associative, and in a swarm the order of additions is an
accident. Each microbatch's gradient is therefore rounded *once*, alone, to fixed point;
from there on everything is integer addition: order, partition among replicas, deaths
and replays leave no trace, and subtracting a microbatch undoes adding it exactly.

Every conversion is range-checked: one contribution is at most (2^(bits-1) - 1) / G, so
G of them never overflow. What does not fit, or is not finite, counts as zero and is
reported (*poisoned*): all stages then skip that update.

int64 has one exponent, ``fraction_bits``. int32 has one per tensor, a pure function of
the sums committed so far: room for 2^headroom times the largest element of the last
sum, growing finer by at most one bit a step; a skipped step coarsens all of them, because
an overflow may be why it was skipped. Exponents are part of a stage's saved state.

Alternative refused: float64 sums. Exact far longer, but not exactly exact.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from p2ptrain.compute.norms import squared_norm, squared_norms
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.units import DIGEST_BYTES, Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from p2ptrain.ports import Buffer
    from p2ptrain.run import Accumulator, RunSpec

FIRST_EXPONENT_RANGE_BITS = 4
"""int32, before any sum is known: elements up to 2^4. Gradients of a mean loss start below 1."""

HEADROOM_BITS = 3
"""int32: contributions up to 8x the largest element of the last sum, which adds G of them."""

SKIP_COARSENING_BITS = 4
"""int32: after a skipped step, 16x more room; two skips in a row clear any usual spike."""

EXPONENT_LIMIT = 100
"""Keeps 2^exponent and its products with integers inside float32's range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where each parameter lies in the flat sum: name order, without gaps."""

    names: tuple[str, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
        """The layout of parameters given in name order."""
        offsets = [0]
        for shape in shapes.values():
            offsets.append(offsets[-1] + math.prod(shape))
        return cls(names=tuple(shapes), offsets=tuple(offsets))

    @property
    def elements(self) -> int:
        """Length of the flat sum."""
        return self.offsets[-1]

    def slices(self) -> Iterator[slice]:
        """The slice of every parameter, in name order."""
        for start, stop in zip(self.offsets, self.offsets[1:], strict=False):
            yield slice(start, stop)


class FixedPoint:
    """Conversion between gradients and integers: the format and its exponents."""

    def __init__(self, config: Accumulator, tensors: int, microbatches: int) -> None:
        self._wide = config.dtype == "int64"
        bits = 63 if self._wide else 31
        self.limit = ((1 << bits) - 1) // max(1, microbatches)
        first = self.limit.bit_length() - 1 - FIRST_EXPONENT_RANGE_BITS
        self.exponents = [config.fraction_bits if self._wide else first] * tensors

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the integers on a device."""
        return torch.int64 if self._wide else torch.int32

    @property
    def numpy_dtype(self) -> np.dtype[np.signedinteger]:
        """Type of the integers as bytes, little-endian."""
        return np.dtype("<i8" if self._wide else "<i4")

    def fixed(self) -> FixedPoint:
        """The format as it is now, whatever becomes of this one."""
        other = copy(self)
        other.exponents = list(self.exponents)
        return other

    def fits(self, gradients: Sequence[Tensor]) -> bool:
        """Whether every element is finite and within the range of one contribution."""
        # Both keep NaN, and are vectorised where torch's infinity norm is not.
        lows, highs = zip(*(torch.aminmax(gradient) for gradient in gradients), strict=True)
        largest = torch.maximum(-torch.stack(lows), torch.stack(highs)).tolist()
        # Scaling by a power of two is exact, so this compares what rounding would see;
        # a NaN compares false.
        return all(
            value * 2.0**exponent <= self.limit
            for value, exponent in zip(largest, self.exponents, strict=True)
        )

    def adapt(self, whole: Tensor, layout: Layout) -> None:
        """Choose the next step's exponents from a committed sum (int32 only)."""
        if self._wide:
            return
        room = self.limit.bit_length() - 1 - HEADROOM_BITS
        for index, part in enumerate(layout.slices()):
            largest = int(whole[part].to(torch.int64).abs().max())
            if largest:  # a sum of zeros says nothing of the range
                self._shift(index, min(room - largest.bit_length(), 1))

    def coarsen(self) -> None:
        """Make room after a skipped step (int32 only)."""
        if not self._wide:
            for index in range(len(self.exponents)):
                self._shift(index, -SKIP_COARSENING_BITS)

    def admits(self, exponents: Sequence[int]) -> bool:
        """Whether a saved state may carry these exponents."""
        if self._wide:
            return list(exponents) == self.exponents
        return all(abs(exponent) <= EXPONENT_LIMIT for exponent in exponents)

    def _shift(self, index: int, bits: int) -> None:
        shifted = self.exponents[index] + bits
        self.exponents[index] = max(-EXPONENT_LIMIT, min(EXPONENT_LIMIT, shifted))


class GradientSum:
    """One seat's own sum of the step's gradients, on its device."""

    def __init__(self, spec: RunSpec, layout: Layout, device: torch.device) -> None:
        self._layout = layout
        self.format = FixedPoint(spec.accumulator, len(layout.names), spec.batch.microbatches)
        self._sum = torch.zeros(layout.elements, dtype=self.format.torch_dtype, device=device)
        # Sums are decoded in float64, which Apple's devices do not know.
        self._home = device if device.type == "cuda" else torch.device("cpu")

    def add(self, gradients: Sequence[Tensor], sign: Literal[1, 0, -1]) -> bool:
        """Add ``sign`` times one microbatch's float32 gradients, given in name order; 0: look only.

        Returns:
            False if they do not fit: then nothing was added, and the id is poisoned.
        """
        if not self.format.fits(gradients):
            return False
        if sign == 0:
            return True
        for part, exponent, gradient in zip(
            self._layout.slices(), self.format.exponents, gradients, strict=True
        ):
            # Scaling is exact and rounding is to the nearest integer, ties to even.
            integers = gradient.flatten().mul(2.0**exponent).round_().to(self._sum.dtype)
            self._sum[part].add_(integers, alpha=sign)
        return True

    def whole(self) -> Tensor:
        """A copy of what was added here: the whole sum where nobody else adds."""
        return self._sum.to(self._home, copy=True)

    def norms(self, whole: Tensor) -> tuple[float, ...]:
        """Squared norm of every parameter's part of a whole sum."""
        if self._home.type != "cpu":
            return squared_norms(whole, self._layout, self.format.exponents, self._home)
        parts = zip(self._layout.slices(), self.format.exponents, strict=True)
        return tuple(squared_norm(whole[part], exponent) for part, exponent in parts)

    def means(self, whole: Tensor, divisor: float, clip: float) -> Iterator[tuple[str, Tensor]]:
        """Every parameter's mean gradient, flat, by name: float64 until the last rounding."""
        layout = self._layout
        for name, part, exponent in zip(
            layout.names, layout.slices(), self.format.exponents, strict=True
        ):
            decoded = whole[part].to(self._home).to(torch.float64)
            decoded = decoded.mul_(2.0**-exponent).div_(divisor).mul_(clip)
            yield name, decoded.float()

    def clear(self) -> None:
        """Back to zero; exponents stay."""
        self._sum.zero_()

    def read(self, start: int, stop: int) -> bytes:
        """Elements start..stop, little-endian."""
        return _bytes_of(self._sum[start:stop])

    def copy(self) -> Callable[[int, int], bytes]:
        """What :meth:`read` would give now, for later; on the device, where copying is quick."""
        copied = self._sum.clone()
        return lambda start, stop: _bytes_of(copied[start:stop])

    def add_integers(self, pieces: Sequence[tuple[int, Buffer]], sign: Literal[1, -1]) -> None:
        """Add ``sign`` times what another seat has added up, given as (start, integers).

        Raises:
            MisbehaviourError: a piece does not fit; nothing was changed.
        """
        dtype, parts = self.format.numpy_dtype, []
        for start, buffer in pieces:
            size_bytes = memoryview(buffer).nbytes
            stop = start + size_bytes // dtype.itemsize
            if size_bytes % dtype.itemsize or not 0 <= start <= stop <= self._layout.elements:
                raise MisbehaviourError(f"integers {start}..{stop} do not fit an accumulator")
            parts.append((slice(start, stop), np.frombuffer(buffer, dtype=dtype)))
        for where, integers in parts:
            given = torch.from_numpy(integers.copy()).to(self._sum.device)
            self._sum[where].add_(given, alpha=sign)


def _bytes_of(integers: Tensor) -> bytes:
    return integers.cpu().numpy().tobytes()


def sum_parts(parts: Sequence[Buffer], dtype: np.dtype[np.signedinteger]) -> bytes:
    """Elementwise sum of equally long parts; sums of a plan's disjoint covers never overflow.

    Raises:
        MisbehaviourError: there are no parts, or they differ in length.
    """
    if not parts or len({memoryview(part).nbytes for part in parts}) != 1:
        raise MisbehaviourError("the parts of a sum differ in length")
    total = np.frombuffer(parts[0], dtype=dtype).copy()
    for part in parts[1:]:
        total += np.frombuffer(part, dtype=dtype)
    return total.tobytes()


def assemble(
    pieces: Sequence[tuple[int, Buffer]], elements: int, dtype: np.dtype[np.signedinteger]
) -> Tensor:
    """The whole sum on the CPU from pieces (start, integers) that tile it.

    Raises:
        InternalError: they leave a gap, overlap or reach too far.
    """
    whole = np.empty(elements, dtype=dtype)
    reached = 0
    for start, buffer in sorted(pieces, key=lambda piece: piece[0]):
        size_bytes = memoryview(buffer).nbytes
        stop = start + size_bytes // dtype.itemsize
        if start != reached or stop > elements or size_bytes % dtype.itemsize:
            raise InternalError(f"pieces do not tile a sum of {elements}: {start}..{stop}")
        whole[start:stop] = np.frombuffer(buffer, dtype=dtype)
        reached = stop
    if reached != elements:
        raise InternalError(f"pieces end at {reached}, not at {elements}")
    return torch.from_numpy(whole)


def sum_digest(whole: Tensor) -> Digest:
    """BLAKE2b-256 of the integers, little-endian."""
    return Digest(blake2b(whole.numpy().data, digest_size=DIGEST_BYTES).digest())
