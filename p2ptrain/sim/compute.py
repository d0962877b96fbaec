"""A simulated device: toy arithmetic that takes virtual time, one call after another.

``ToyCompute`` implements ``ports.Compute``. How long a call takes comes from a cost model
and the world's seed, never from a measurement. The device works calls off in the order in
which they were made, whoever makes them; a result falls due at an instant fixed when the
call was made, and takes effect *then*, in the device, as it would in an executor's
thread. So a call that was cancelled after it began still takes effect (the port says: it
may), one that had not begun does not, and a frozen process finds its result late.

Refused: durations by sleeping in the caller. Two callers could then overtake each other
between the timer and the wake-up, and a cancelled call would never take effect.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from p2ptrain.core.deposits import DEPOSITED_COPIES
from p2ptrain.core.sizes import integer_bytes
from p2ptrain.errors import InternalError, P2PTrainError, UserError
from p2ptrain.sim.arithmetic import ToyState
from p2ptrain.sim.difference import ToyDifference

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from p2ptrain.core.health import BoundaryReading
    from p2ptrain.ports import Backward, Buffer, Loss, Update, Whole
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Microbatch, PeerId, Seconds, Stage, Step

T = TypeVar("T")

Kind: TypeAlias = Literal["forward", "backward", "loss", "step", "other"]

STATE_COPIES = 6
"""Weights, those of the step before, two optimizer moments, sum and accumulator, per parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Virtual seconds of a call at speed 1; ``noise``: up to this share more or less.

    ``seed`` is the world's.

    A backward pass with recomputation costs about two to three forwards. Whatever moves
    no weights through the device (``other``) is free. ``sum_seconds`` and ``load_seconds``:
    until a whole sum or a state has come over a real line, for the toy's are short; they
    depend on no speed and keep the device free. A copy of an accumulator goes out once, where a
    reduction moves one out and in: half as long.
    """

    forward_seconds: Seconds = 0.010
    backward_seconds: Seconds = 0.020
    step_seconds: Seconds = 0.005
    sum_seconds: Seconds = 0.0
    load_seconds: Seconds = 0.0
    noise: float = 0.1
    seed: int = 0

    def seconds(self, kind: Kind, rng: Random) -> Seconds:
        """How long a call of ``kind`` takes this time."""
        base = {
            "forward": self.forward_seconds,
            "backward": self.backward_seconds,
            "loss": self.forward_seconds + self.backward_seconds,
            "step": self.step_seconds,
            "other": 0.0,
        }[kind]
        return base * (1.0 + self.noise * (2.0 * rng.random() - 1.0)) if base else 0.0


class Device:
    """Works calls off one after another in virtual time; ``speed`` may change as it runs."""

    def __init__(self, cost: CostModel, rng: Random, speed: float) -> None:
        self.speed = speed
        self.cost = cost
        self._rng = rng
        self._free_at: Seconds = 0.0
        self._pending = 0

    async def run(self, kind: Kind, effect: Callable[[], T]) -> T:
        """Do ``effect`` when the device has got round to it, and return what it returns."""
        loop = asyncio.get_running_loop()
        starts_at = max(loop.time(), self._free_at)
        self._free_at = starts_at + self.cost.seconds(kind, self._rng) / self.speed
        if not self._pending and self._free_at <= loop.time():
            return effect()
        future: asyncio.Future[T] = loop.create_future()
        timer = loop.call_at(self._free_at, self._fall_due, future, effect)
        self._pending += 1
        try:
            return await future
        except asyncio.CancelledError:
            if loop.time() < starts_at:
                timer.cancel()
                self._pending -= 1
            raise

    def _fall_due(self, future: asyncio.Future[T], effect: Callable[[], T]) -> None:
        self._pending -= 1
        try:
            result = effect()
        except P2PTrainError as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)
        finally:
            if not future.done():  # anything else is a bug: the loop reports it, the caller ends
                future.set_exception(InternalError("the simulated device failed"))


class ToyCompute:
    """One peer's simulated device: implements ``ports.Compute``.

    ``speed``: multiples of the cost model's. ``memory_bytes``: None is room for everything.
    ``poisoned``: microbatches that no stage can represent (to exercise the skipped step).
    ``rounding``: devices of another one compute everything a little otherwise.
    """

    def __init__(  # noqa: PLR0913 - each is one fact of the device
        self,
        spec: RunSpec,
        peer: PeerId,
        *,
        speed: float = 1.0,
        cost: CostModel | None = None,
        memory_bytes: Bytes | None = None,
        poisoned: Collection[Microbatch] = frozenset(),
        rounding: str = "",
    ) -> None:
        self._spec, self._rounding = spec, rounding
        self._poisoned = frozenset(poisoned)
        self._memory_bytes = 1 << 50 if memory_bytes is None else memory_bytes
        cost = cost or CostModel()
        self.device = Device(cost, Random(f"{cost.seed}/compute/{peer}"), speed)

    @property
    def arithmetic(self) -> str:
        """Toy devices of one rounding agree bit for bit."""
        return f"toy {self._rounding}" if self._rounding else "toy"

    @property
    def memory_bytes(self) -> Bytes:
        """How much memory this peer gives to seats."""
        return self._memory_bytes

    def seat_bytes(self, stage: Stage) -> Bytes:
        """What a seat of ``stage`` is taken to need."""
        elements = ToyState(self._spec, stage).elements
        copies = STATE_COPIES + (DEPOSITED_COPIES if self._spec.sync.deposit_every else 0)
        return copies * elements * integer_bytes(self._spec)

    async def open(self, stage: Stage) -> ToyStage:
        """See ``ports.Compute``."""
        if self.seat_bytes(stage) > self._memory_bytes:
            raise UserError(
                f"stage {stage} needs {self.seat_bytes(stage)} bytes, this peer gives "
                f"{self._memory_bytes}; raise --max-memory"
            )
        state = ToyState(self._spec, stage, poisoned=self._poisoned, rounding=self._rounding)
        return ToyStage(state, self.device, self._spec.sync.adoption)


class ToyStage:
    """One seat on a simulated device: implements ``ports.StageCompute``.

    ``kind``: how the run adopts states.
    """

    def __init__(self, state: ToyState, device: Device, kind: str = "exact") -> None:
        self._state = state
        self._device = device
        self._difference = None if kind == "exact" else ToyDifference(state, device, kind)

    @property
    def stage(self) -> Stage:
        """Which stage this is."""
        return self._state.stage

    @property
    def elements(self) -> int:
        """Length of the accumulator."""
        return self._state.elements

    @property
    def reading(self) -> BoundaryReading | None:
        """Hashes have no health."""
        return None

    async def forward(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> bytes:
        """See ``ports.StageCompute``, here and below."""
        return await self._device.run("forward", lambda: self._state.forward(work, tokens, given))

    async def backward(
        self,
        work: Microbatch,
        tokens: Buffer,
        given: Buffer | None,
        gradient: Buffer,
        *,
        sign: Literal[1, 0, -1] = 1,
    ) -> Backward:
        """Add or take away a contribution."""
        return await self._device.run(
            "backward", lambda: self._state.backward(work, (tokens, given), gradient, sign)
        )

    async def loss(
        self, work: Microbatch, tokens: Buffer, given: Buffer | None, *, sign: Literal[1, 0, -1] = 1
    ) -> Loss:
        """The last stage, training."""
        return await self._device.run("loss", lambda: self._state.loss(work, tokens, given, sign))

    async def evaluate(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Loss:
        """The last stage, evaluating."""
        return await self._device.run("forward", lambda: self._state.evaluate(work, tokens, given))

    async def read_own(self, start: int, stop: int) -> bytes:
        """Elements of the own accumulator."""
        return await self._device.run("other", lambda: self._state.read_own(start, stop))

    async def copy_own(self) -> ToyCopy:
        """The own accumulator as it is now."""
        whole = await self._device.run(
            "other", lambda: self._state.read_own(0, self._state.elements)
        )
        return ToyCopy(whole, self._state.elements, self._device.cost.sum_seconds / 2)

    async def add(self, pieces: Sequence[tuple[int, Buffer]], sign: Literal[1, -1]) -> None:
        """Integers of others."""
        await self._device.run("other", lambda: self._state.add(pieces, sign))

    async def sum_parts(self, parts: Sequence[Buffer]) -> bytes:
        """Elementwise sum."""
        return await self._device.run("other", lambda: self._state.sum_parts(parts))

    async def finish(self, pieces: Sequence[tuple[int, Buffer]]) -> Whole:
        """Take the whole sum."""
        await _arrival(self._device.cost.sum_seconds)
        return await self._device.run("other", lambda: self._state.finish(pieces))

    async def read_sum(self, start: int, stop: int) -> bytes:
        """Elements of the finished sum."""
        return await self._device.run("other", lambda: self._state.read_sum(start, stop))

    async def step(self, update: Update, *, keep: bool = False) -> None:
        """The next version."""
        await self._device.run("step", lambda: self._state.step(update, keep=keep))

    async def release(self, step: Step) -> None:
        """The version before is needed no more."""
        await self._device.run("other", lambda: self._state.release(step))

    async def clear(self) -> None:
        """Forget what was accumulated."""
        await self._device.run("other", self._state.clear)

    async def save(self) -> bytes:
        """A snapshot."""
        return await self._device.run("other", self._state.save)

    async def load(self, blob: Buffer, *, keep: bool = False) -> None:
        """Take a snapshot over."""
        await _arrival(self._device.cost.load_seconds)
        await self._device.run("other", lambda: self._load(blob, keep=keep))

    @property
    def difference(self) -> ToyDifference | None:
        """Of the state to the last one adopted."""
        return self._difference

    async def probe(self) -> None:
        """Toy weights are as good as any."""
        await self._device.run("forward", lambda: None)

    async def tensor_digests(self) -> Mapping[str, str]:
        """Digest of the stage's one tensor."""
        return await self._device.run("other", self._state.tensor_digests)

    async def weights(self) -> Mapping[str, bytes]:
        """Its bytes."""
        return await self._device.run("other", self._state.weights)

    def _load(self, blob: Buffer, *, keep: bool) -> None:
        self._state.load(blob, keep=keep)
        if self._difference is not None:
            self._difference.loaded()


class ToyCopy:
    """``ports.OwnCopy``. ``seconds``: what it would take a real line, once, to carry the whole."""

    def __init__(self, whole: bytes, elements: int, seconds: Seconds) -> None:
        self._whole, self._elements, self._seconds = whole, elements, seconds

    async def read(self, start: int, stop: int) -> bytes:
        """Elements of it."""
        await _arrival(self._seconds * (stop - start) / self._elements)
        width = len(self._whole) // self._elements
        return self._whole[start * width : stop * width]


async def _arrival(seconds: Seconds) -> None:
    if seconds > 0:  # else not even a turn of the loop
        await asyncio.sleep(seconds)
