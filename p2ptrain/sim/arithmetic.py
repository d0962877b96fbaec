"""Toy arithmetic: what a stage computes, in integers, at no cost and with no mercy.

A toy stage keeps the exact shape of a real one (sizes of frames, length of the
accumulator, names, snapshots) and replaces the mathematics by hashes. An activation is a
hash of (weights, microbatch, tokens, input), a gradient one of (weights, microbatch,
tokens, input, gradient from above), a microbatch's contribution a pseudo-random integer
vector grown from the latter, and the next weights a hash of the old ones and the sum. So
a microbatch that is missing, doubled, computed at other weights or from another input
changes every digest after it: nothing averages out.

Refused: a tiny real model. It costs a hundred times more per microbatch, and two errors
in it can cancel.
"""

from __future__ import annotations

import struct
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal

import numpy as np

from p2ptrain.core.bottleneck import stage_elements
from p2ptrain.core.digest import tensor_digest
from p2ptrain.core.sizes import boundary_bytes, integer_bytes, nominal_tokens
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.ports import Backward, Loss, Whole
from p2ptrain.units import Digest, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from p2ptrain.ports import Buffer, Update
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Microbatch, Stage

LOSS_UNIT = 1 << 32
"""Losses are integers of 2^-32 nats."""

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the step of splitmix64
_HEADER = struct.Struct("<12sII32s")
_MAGIC = b"p2ptrain toy"


class ToyState:
    """One seat's arithmetic, synchronous; see ``ports.StageCompute`` for what each call means.

    ``poisoned``: microbatches whose gradient is out of range here (they count as zero).
    ``rounding``: the device's own, which goes into all that it computes; none: the ideal one.
    """

    def __init__(
        self,
        spec: RunSpec,
        stage: Stage,
        *,
        poisoned: Collection[Microbatch] = frozenset(),
        rounding: str = "",
    ) -> None:
        self.stage = stage
        self.elements = stage_elements(spec)[stage]
        self.step_index = Step(0)
        self._spec = spec
        self._poisoned = frozenset(poisoned)
        self._rounding = (rounding.encode(),) if rounding else ()
        self._dtype = np.dtype(f"<i{integer_bytes(spec)}")
        self.held = mixed("weights", f"{spec.seed}/{stage}".encode())
        self._before: bytes | None = None  # the weights that the last step began with
        self._total = np.zeros(self.elements, self._dtype)
        self._sum: NDArray[np.signedinteger] | None = None
        self._unapplied = False
        self._sum_digest = b""

    # --- passes ---------------------------------------------------------------------------

    def forward(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> bytes:
        """The output for the stage above."""
        seed = self._seed("forward", work, tokens, given)
        size = boundary_bytes(self._spec, self.stage, "forward", work.step)
        return expanded(seed, size)

    def backward(
        self,
        work: Microbatch,
        inputs: tuple[Buffer, Buffer | None],
        gradient: Buffer,
        sign: Literal[1, 0, -1],
    ) -> Backward:
        """``inputs``: tokens and what the stage below gave."""
        seed = self._seed("gradient", work, *inputs, gradient)
        poisoned = self._accumulate(work, seed, sign)
        return Backward(gradient=self._below(work.step, seed), poisoned=poisoned)

    def loss(
        self, work: Microbatch, tokens: Buffer, given: Buffer | None, sign: Literal[1, 0, -1]
    ) -> Loss:
        """Forward, loss, backward and accumulation."""
        seed = self._seed("loss", work, tokens, given)
        poisoned = self._accumulate(work, seed, sign)
        return Loss(
            loss=self._nats(work.step, seed),
            tokens=nominal_tokens(self._spec),
            gradient=self._below(work.step, seed),
            poisoned=poisoned,
        )

    def evaluate(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Loss:
        """Forward and loss."""
        seed = self._seed("loss", work, tokens, given)
        tokens_count = nominal_tokens(self._spec)
        loss = self._nats(work.step, seed)
        return Loss(loss=loss, tokens=tokens_count, gradient=None, poisoned=False)

    # --- sums -----------------------------------------------------------------------------

    def read_own(self, start: int, stop: int) -> bytes:
        """Elements of the own accumulator."""
        return self._total[start:stop].tobytes()

    def add(self, pieces: Sequence[tuple[int, Buffer]], sign: int) -> None:
        """Integers of others."""
        width, parts = self._dtype.itemsize, []
        for start, buffer in pieces:
            stop = start + memoryview(buffer).nbytes // width
            if memoryview(buffer).nbytes % width or not 0 <= start <= stop <= self.elements:
                raise MisbehaviourError(f"integers {start}..{stop} do not fit an accumulator")
            parts.append((slice(start, stop), np.frombuffer(buffer, self._dtype)))
        for where, integers in parts:
            self._total[where] += sign * integers

    def sum_parts(self, parts: Sequence[Buffer]) -> bytes:
        """Elementwise sum."""
        arrays = [np.frombuffer(part, self._dtype) for part in parts]
        total: NDArray[np.signedinteger] = np.sum(arrays, axis=0, dtype=self._dtype)
        return total.tobytes()

    def finish(self, pieces: Sequence[tuple[int, Buffer]]) -> Whole:
        """Take the whole sum in."""
        whole = np.zeros(self.elements, self._dtype)
        position = 0
        for start, piece in sorted(pieces, key=lambda pair: pair[0]):
            values = np.frombuffer(piece, self._dtype)
            if start != position or start + len(values) > self.elements:
                msg = f"pieces of a sum do not tile it: one starts at {start}, not {position}"
                raise InternalError(msg)
            whole[start : start + len(values)] = values
            position += len(values)
        if position != self.elements:
            msg = f"pieces of a sum end at {position} of {self.elements}"
            raise InternalError(msg)
        self._sum, self._unapplied = whole, True
        self._sum_digest = mixed("sum", whole.tobytes())
        norm = float(int.from_bytes(self._sum_digest[:6], "little"))
        return Whole(digest=Digest(self._sum_digest), norms=(norm,), finite=True)

    def read_sum(self, start: int, stop: int) -> bytes:
        """Elements of the finished sum."""
        if self._sum is None:
            msg = "no finished sum to read"
            raise InternalError(msg)
        return self._sum[start:stop].tobytes()

    def step(self, update: Update, *, keep: bool = False) -> None:
        """The next weights."""
        if update.step != self.step_index or not (self._unapplied or update.skip):
            unapplied = "a sum" if self._unapplied else "no sum"
            msg = f"step {update.step} at version {self.step_index} with {unapplied} to apply"
            raise InternalError(msg)
        self._before = self.held if keep else None
        if not update.skip:
            numbers = struct.pack(
                f"<qq{len(update.norms)}d", update.step, update.tokens, *update.norms
            )
            self.held = mixed("step", self.held, self._sum_digest, numbers, *self._rounding)
        self.step_index = Step(update.step + 1)
        self._unapplied = False  # the sum can still be read, for a seat that missed it
        self._total = np.zeros(self.elements, self._dtype)

    def release(self, step: Step) -> None:
        """Forget the weights that ``step`` began with."""
        if step == self.step_index - 1:
            self._before = None

    def clear(self) -> None:
        """Nothing accumulated, nothing finished."""
        self._total = np.zeros(self.elements, self._dtype)
        self._sum, self._unapplied = None, False

    # --- state ----------------------------------------------------------------------------

    def save(self) -> bytes:
        """A snapshot about as long as the weights would be."""
        header = _HEADER.pack(_MAGIC, self.stage, self.step_index, self.held)
        return header + expanded(self.held, 4 * self.elements)

    def load(self, blob: Buffer, *, keep: bool = False) -> None:
        """Take a snapshot over, if every byte is right."""
        blob = bytes(blob)
        reason = f"no snapshot of toy stage {self.stage}"
        if len(blob) != _HEADER.size + 4 * self.elements:
            raise MisbehaviourError(reason)
        magic, stage, step, weights = _HEADER.unpack_from(blob)
        if (magic, stage) != (_MAGIC, self.stage):
            raise MisbehaviourError(reason)
        if blob[_HEADER.size :] != expanded(weights, 4 * self.elements):
            raise MisbehaviourError(reason)
        self._before = self._before if keep and step == self.step_index else None
        self.step_index, self.held = Step(step), weights
        self.clear()

    def weights(self) -> dict[str, bytes]:
        """The one tensor of a toy stage, by its global name."""
        return {f"toy.stages.{self.stage}.weight": self.held}

    def tensor_digests(self) -> dict[str, str]:
        """Its digest."""
        return {
            name: tensor_digest(name, "U64", (4,), data) for name, data in self.weights().items()
        }

    # --- inside ---------------------------------------------------------------------------

    def _seed(self, kind: str, work: Microbatch, *inputs: Buffer | None) -> bytes:
        place = struct.pack("<qq", work.step, work.slot)
        weights = self.held if work.step == self.step_index else self._before
        if weights is None or not 0 <= self.step_index - work.step <= 1:
            msg = f"a microbatch of step {work.step} at version {self.step_index}"
            raise InternalError(msg)
        known = (b"" if part is None else part for part in inputs)
        return mixed(kind, weights, place, *known, *self._rounding)

    def _below(self, step: Step, seed: bytes) -> bytes | None:
        if self.stage == 0:
            return None
        size = boundary_bytes(self._spec, self.stage - 1, "backward", step)
        return expanded(mixed("below", seed), size)

    def _accumulate(self, work: Microbatch, seed: bytes, sign: Literal[1, 0, -1]) -> bool:
        if sign and work.step != self.step_index:
            msg = f"a microbatch of step {work.step} counted at version {self.step_index}"
            raise InternalError(msg)
        if work in self._poisoned:
            return True
        if sign:
            vector = _vector(seed, self.elements, self._dtype.itemsize)
            self._total += sign * vector
        return False

    def _nats(self, step: Step, seed: bytes) -> int:
        """A loss that falls from 5.5 to 2 nats, with a quarter of a nat of noise."""
        fallen = 7 * LOSS_UNIT * step // (2 * (step + 20))
        return 11 * LOSS_UNIT // 2 - fallen + int.from_bytes(seed[:4], "little") // 4


def mixed(kind: str, *parts: Buffer) -> bytes:
    """32 bytes over ``parts``, each under its length."""
    state = blake2b(kind.encode(), digest_size=32, person=b"p2ptrain toy")
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def expanded(seed: bytes, size: int) -> bytes:
    """``size`` bytes from a seed: repetition is enough, receivers hash all of it."""
    return (seed * (size // len(seed) + 1))[:size]


@cache
def _counters(elements: int) -> NDArray[np.uint64]:
    return np.arange(elements, dtype=np.uint64) * np.uint64(_GOLDEN)


def _vector(seed: bytes, elements: int, width: int) -> NDArray[np.signedinteger]:
    """splitmix64 of a counter: integers so small that no sum of a step overflows."""
    x = _counters(elements) + np.frombuffer(seed[:8], "<u8")
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    signed: NDArray[np.int64] = x.view(np.int64)
    if width == 8:  # noqa: PLR2004 - bytes of an int64
        signed >>= np.int64(24)  # 40 bits are left
        return signed
    signed >>= np.int64(45)  # 19 bits are left
    narrow: NDArray[np.int32] = signed.astype(np.int32)
    return narrow
