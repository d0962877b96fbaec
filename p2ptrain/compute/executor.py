"""``ports.Compute`` in torch: seats whose calls run on one thread, one at a time.

Torch releases the interpreter while it computes, so one thread beside the event loop
keeps the loop responsive; one thread *only*, because calls of a peer are serialised by
contract and kernels bring their own threads. In a simulation the same calls run inline,
on the loop's thread, and take virtual time from a cost model instead of real time.

Invariants:
    * calls take effect in the order in which they were made, over all seats of a peer;
    * a cancelled call either never starts or runs to its end; the caller cannot tell
      which, and clears before it trusts the accumulator (see the port);
    * a result carries no trace of whether it was computed inline or on the thread.

Alternative refused: a process per device. Buffers would be copied twice and a fork
would take torch's threads with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar
from weakref import WeakKeyDictionary

from p2ptrain.compute.device import (
    arithmetic_class,
    choose_device,
    choose_threads,
    default_memory_bytes,
)
from p2ptrain.compute.model import graph_bytes, kept_graphs, stage_slice
from p2ptrain.compute.passes import boundaries
from p2ptrain.compute.stage import StageState
from p2ptrain.compute.turns import Inline, Threaded
from p2ptrain.core.bottleneck import stage_elements
from p2ptrain.core.deposits import DEPOSITED_COPIES
from p2ptrain.core.sizes import boundary_width, integer_bytes, nominal_tokens
from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from p2ptrain.compute.difference import Difference
    from p2ptrain.compute.turns import CostModel, Kind, Turns
    from p2ptrain.core.health import BoundaryReading
    from p2ptrain.ports import Backward, Buffer, Loss, Update, Whole
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Digest, Microbatch, Stage, Step

KEPT_GRAPH_BYTES = 256 << 20
"""Per seat. A window of a few microbatches fits for small models; large ones recompute."""

FLOAT32_BYTES = 4

ADOPTING_VALUES = 12
"""Float32 copies of a stage's elements that making a difference holds for a moment (by hand, from
the peak memory of 16.8M elements: 47 bytes each with AdamW, 40 with Muon; adopting: 38 and 32)."""

_T = TypeVar("_T")


class TorchStage:
    """One seat: ``ports.StageCompute`` over a :class:`StageState`. Close by dropping it."""

    def __init__(self, state: StageState, turns: Turns) -> None:
        self._state = state
        self._turns = turns

    @property
    def stage(self) -> Stage:
        """Which stage this is."""
        return self._state.stage

    @property
    def elements(self) -> int:
        """Length of the accumulator, in integers."""
        return self._state.elements

    @property
    def reading(self) -> BoundaryReading | None:
        """Of the boundary above, as the last step left it; written whole, so read as such."""
        return self._state.reading

    async def forward(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Buffer:
        """Encoded output for the stage above."""
        return await self._run("forward", lambda: self._state.forward(work, tokens, given))

    async def backward(
        self,
        work: Microbatch,
        tokens: Buffer,
        given: Buffer | None,
        gradient: Buffer,
        *,
        sign: Literal[1, 0, -1] = 1,
    ) -> Backward:
        """Add ``sign`` times this microbatch's gradient to the accumulator."""
        return await self._run(
            "backward", lambda: self._state.backward(work, tokens, given, gradient, sign=sign)
        )

    async def loss(
        self, work: Microbatch, tokens: Buffer, given: Buffer | None, *, sign: Literal[1, 0, -1] = 1
    ) -> Loss:
        """The last stage: forward, loss, backward and accumulation in one."""
        return await self._run("loss", lambda: self._state.loss(work, tokens, given, sign=sign))

    async def evaluate(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Loss:
        """The last stage: loss of a held-out microbatch."""
        return await self._run("evaluate", lambda: self._state.evaluate(work, tokens, given))

    async def read_own(self, start: int, stop: int) -> bytes:
        """Elements of the own accumulator."""
        return await self._run("sum", lambda: self._state.read_own(start, stop))

    async def copy_own(self) -> TorchCopy:
        """The own accumulator as it is now."""
        read = await self._run("sum", self._state.own.copy)
        return TorchCopy(self._state.stage, read, self._turns)

    async def add(self, pieces: Sequence[tuple[int, Buffer]], sign: Literal[1, -1]) -> None:
        """Integers of others, or raise MisbehaviourError and change nothing."""
        await self._run("sum", lambda: self._state.own.add_integers(pieces, sign))

    async def sum_parts(self, parts: Sequence[Buffer]) -> bytes:
        """Elementwise sum of equally long parts."""
        return await self._run("sum", lambda: self._state.sum_parts(parts))

    async def finish(self, pieces: Sequence[tuple[int, Buffer]]) -> Whole:
        """Take the whole sum."""
        return await self._run("finish", lambda: self._state.finish(pieces))

    async def read_sum(self, start: int, stop: int) -> bytes:
        """Elements of the last whole sum."""
        return await self._run("sum", lambda: self._state.read_sum(start, stop))

    async def step(self, update: Update, *, keep: bool = False) -> None:
        """Apply the finished sum; ``keep`` the weights before it."""
        await self._run("step", lambda: self._state.step(update, keep=keep))

    async def release(self, step: Step) -> None:
        """Let go of the weights that ``step`` began with."""
        await self._run("state", lambda: self._state.release(step))

    async def clear(self) -> None:
        """Forget everything of the current step."""
        await self._run("sum", self._state.clear)

    async def save(self) -> bytes:
        """The whole state as one blob."""
        return await self._run("state", self._state.save)

    async def load(self, blob: Buffer, *, keep: bool = False) -> None:
        """Take over a blob, or raise MisbehaviourError and change nothing."""
        await self._run("state", lambda: self._state.load(blob, keep=keep))

    @property
    def difference(self) -> TorchDifference | None:
        """Of the state to the last one adopted."""
        own = self._state.difference
        return None if own is None else TorchDifference(self._state, own, self._turns)

    async def probe(self) -> None:
        """A forward pass over fixed input, or raise MisbehaviourError."""
        await self._run("evaluate", self._state.probe)

    async def tensor_digests(self) -> Mapping[str, str]:
        """Digest of every weight tensor."""
        return await self._run("state", self._state.tensor_digests)

    async def weights(self) -> Mapping[str, bytes]:
        """Raw bytes of every weight tensor."""
        return await self._run("state", self._state.weights)

    async def _run(self, kind: Kind, call: Callable[[], _T]) -> _T:
        return await self._turns.run(self._state.stage, kind, call)


class TorchCopy:
    """``ports.OwnCopy``: it lies on the device, and comes to memory piece by piece."""

    def __init__(self, stage: Stage, read: Callable[[int, int], bytes], turns: Turns) -> None:
        self._stage, self._read, self._turns = stage, read, turns

    async def read(self, start: int, stop: int) -> bytes:
        """Elements of it."""
        return await self._turns.run(self._stage, "sum", lambda: self._read(start, stop))


class TorchDifference:
    """``ports.Difference`` of one seat."""

    def __init__(self, state: StageState, own: Difference, turns: Turns) -> None:
        self._state, self._own, self._turns = state, own, turns

    @property
    def base(self) -> Digest | None:
        """Name of the state that is shared."""
        return self._own.base

    @property
    def size_bytes(self) -> Bytes:
        """Of every difference."""
        return self._own.size_bytes

    async def make(self) -> bytes | None:
        """Give our own, and adopt what it leads to."""
        return await self._run(self._own.make)

    async def adopt(self, blob: Buffer) -> None:
        """Take over what ``blob`` leads to, or raise MisbehaviourError and change nothing."""

        def take() -> None:
            self._own.adopt(blob)
            self._state.clear()

        await self._run(take)

    async def mark(self, base: Digest) -> None:
        """What is here has this name."""
        await self._run(lambda: self._own.mark(base))

    async def _run(self, call: Callable[[], _T]) -> _T:
        return await self._turns.run(self._state.stage, "state", call)


class TorchCompute:
    """One peer's device. Call :meth:`close` when the peer ends.

    Args:
        spec: the run.
        device: auto, cpu, cuda, cuda:N or mps.
        inline: compute on the calling thread (simulation).
        cost: inline only: virtual duration of a call, slept after computing it.
        memory_bytes: bound for all seats together; None: half of what is free now.
        kept_graph_bytes: bound per seat for graphs kept between forward and backward.
        threads: that compute; None: the run's.

    Raises:
        UserError: the device is not there.
        RefusedError: the run computes on another kind of device, torch or thread count.
    """

    def __init__(  # noqa: PLR0913 - each is one choice of the peer's owner
        self,
        spec: RunSpec,
        *,
        device: str = "auto",
        inline: bool = False,
        cost: CostModel | None = None,
        memory_bytes: Bytes | None = None,
        kept_graph_bytes: Bytes = KEPT_GRAPH_BYTES,
        threads: int | None = None,
    ) -> None:
        self._spec = spec
        self._device = choose_device(device, spec)
        self._kept_graph_bytes = kept_graph_bytes
        if memory_bytes is None:
            memory_bytes = default_memory_bytes(self._device)
        self._memory_bytes = memory_bytes
        self._threads = threads = choose_threads(threads, spec)
        self._turns: Turns = (
            Inline(self._device, threads, cost) if inline else Threaded(self._device, threads)
        )
        self._seats: WeakKeyDictionary[TorchStage, Bytes] = WeakKeyDictionary()

    @property
    def arithmetic(self) -> str:
        """The class within which results are bit-equal."""
        return arithmetic_class(self._spec, self._device, self._threads)

    @property
    def memory_bytes(self) -> Bytes:
        """How much memory this peer gives to seats."""
        return self._memory_bytes

    def seat_bytes(self, stage: Stage) -> Bytes:
        """Estimated memory of a seat of ``stage``, kept graphs included.

        Per element: weight, two gradients (of a microbatch, of the step) and two values of
        optimizer state in float32, and two sums; beside other stages, the weight before the
        last step as well; where states are adopted as differences, what is shared and what is
        owed, and what making one holds for a moment; where deposits are made, copies of sums.
        Beside them, a tensor for what crosses each boundary. Temporaries of one tensor are not.
        """
        part = stage_slice(self._spec, stage)
        elements = stage_elements(self._spec)[stage]
        one_graph = graph_bytes(self._spec.model, part, nominal_tokens(self._spec))
        values = 5 if part.first and part.last else 6
        values += 0 if self._spec.sync.adoption == "exact" else 2 + ADOPTING_VALUES
        sums = 2 + (DEPOSITED_COPIES if self._spec.sync.deposit_every else 0)
        per_element = values * FLOAT32_BYTES + sums * integer_bytes(self._spec)
        graphs = 1 + kept_graphs(self._spec, part, self._kept_graph_bytes)
        channels = sum(boundary_width(self._spec, end) for end in boundaries(self._spec, stage))
        decoded = nominal_tokens(self._spec) * channels * FLOAT32_BYTES
        return elements * per_element + graphs * one_graph + decoded

    async def open(self, stage: Stage) -> TorchStage:
        """A seat with the run's initial weights.

        Raises:
            UserError: it does not fit beside the seats that are open.
        """
        size, taken = self.seat_bytes(stage), sum(self._seats.values())
        if taken + size > self._memory_bytes:
            raise UserError(
                f"a seat of stage {stage} needs {size >> 20} MiB beside {taken >> 20} MiB in use, "
                f"but the bound is {self._memory_bytes >> 20} MiB: raise --max-memory"
            )

        def make() -> StageState:
            return StageState(
                self._spec, stage, self._device, kept_graph_bytes=self._kept_graph_bytes
            )

        seat = TorchStage(await self._turns.run(stage, "open", make), self._turns)
        self._seats[seat] = size
        return seat

    def close(self) -> None:
        """End the computing thread after the call that it is in, if any; wait for neither."""
        self._turns.close()
