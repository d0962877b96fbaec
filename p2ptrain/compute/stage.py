"""One seat's computation, synchronous: weights, optimizer state, sums and passes.

This is ``ports.StageCompute`` without the waiting; the executor gives it a thread, the
reference calls it directly. So the swarm and the one-process run that judges it share
every line that computes.

Intuition: everything is bytes at the rim and tensors inside. A microbatch is computed
alone; its gradient is rounded to integers alone; only ``step`` changes weights, or makes new ones.

Invariants:
    * a backward pass gives the same bits whether its graph was kept or is recomputed: the
      forward pass is the same code on the same bytes;
    * a microbatch of the step before gives the same bits as it did then: that step's weights
      and what fitted the accumulator are kept with them; its optimizer state is not needed;
    * kept graphs hold at most ``kept_graph_bytes``: at the bound a new one is not kept;
    * an id with a loss that is not finite adds nothing at any stage: its gradient travels
      as zeros, and a gradient of zeros is not computed, so no 0 x inf arises below.

Alternative refused: always recompute (a third more work), or always keep (a slow upper
stage would fill the memory of all stages below).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from p2ptrain.compute.accumulator import GradientSum, Layout, assemble, sum_digest, sum_parts
from p2ptrain.compute.difference import Difference
from p2ptrain.compute.health import BoundaryWatch
from p2ptrain.compute.initial import initial_weights
from p2ptrain.compute.model import kept_graphs, parameter_shapes, stage_slice
from p2ptrain.compute.optimizers import StageOptimizer, clip_factor
from p2ptrain.compute.passes import Before, Graph, Passes
from p2ptrain.compute.snapshot import SAFETENSORS_FLOAT32, pack, raw_bytes, unpack
from p2ptrain.core.digest import tensor_digest
from p2ptrain.core.schedule import is_evaluation
from p2ptrain.core.sizes import nominal_tokens
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.ports import Backward, Loss, Whole
from p2ptrain.units import Microbatch, Slot, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p2ptrain.core.health import BoundaryReading
    from p2ptrain.ports import Buffer, Update
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Stage

LOSS_SCALE = 1 << 32
"""Losses travel as integers of 2^-32 nats, so that tallies add exactly."""


class StageState:
    """One seat. Not thread-safe: one call at a time, all from the computing thread."""

    def __init__(
        self, spec: RunSpec, stage: Stage, device: torch.device, *, kept_graph_bytes: Bytes
    ) -> None:
        part = stage_slice(spec, stage)
        self._spec = spec
        self._device = device
        self._layout = Layout.of(parameter_shapes(spec.model, part))
        initial = initial_weights(spec.seed, spec.model, part)
        self._weights = {name: w.to(device).requires_grad_() for name, w in initial.items()}
        self._passes = Passes(spec, stage, part, self._weights, device)
        self._optimizer = StageOptimizer(spec.optimizer, self._weights)
        self.own = GradientSum(spec, self._layout, device)
        self.difference = Difference.of(spec, self._weights, self._optimizer)
        self._before: Before | None = None
        self._whole: Tensor | None = None
        self._finished = False
        self._graphs: dict[Microbatch, Graph] = {}
        self._kept_graphs = kept_graphs(spec, part, kept_graph_bytes)
        self._watch = None if part.last else BoundaryWatch(stage)
        self.stage = stage
        self.version = Step(0)
        self.reading: BoundaryReading | None = None

    @property
    def elements(self) -> int:
        """Length of the accumulator, in integers."""
        return self._layout.elements

    # --- passes -------------------------------------------------------------------------

    def forward(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Buffer:
        """Encoded output; keeps the graph for the backward pass while there is room."""
        passes = self._passes_of(work)
        if passes is not self._passes or is_evaluation(self._spec, work):
            with torch.no_grad():
                return passes.encode_output(passes.run(work, tokens, given).output, work)
        keep = len(self._graphs) < self._kept_graphs
        graph = passes.run(work, tokens, given, keep=keep)
        if keep:
            self._graphs[work] = graph
        sent = self._passes.encode_output(graph.output, work)
        if self._watch is not None and self._watch.waits and self._passes.varied(tokens):
            self._watch.sent(
                graph.output.flatten(0, 1), lambda: self._passes.decode_output(sent, work)
            )
        return sent

    def backward(
        self,
        work: Microbatch,
        tokens: Buffer,
        given: Buffer | None,
        gradient: Buffer,
        *,
        sign: Literal[1, 0, -1] = 1,
    ) -> Backward:
        """Accumulate one microbatch, from its kept graph or by running forward again."""
        graph = self._graphs.pop(work, None)
        output_gradient_rd = self._passes.decode_gradient(gradient, work)
        if self._watch is not None and work.step == self.version:
            self._watch.returned(output_gradient_rd)
        low, high = torch.aminmax(output_gradient_rd)
        if low == 0 == high:  # weight 0, or nothing left after the codec
            return Backward(gradient=self._passes.encode_nothing(work), poisoned=False)
        if graph is None:
            graph = self._passes_of(work).run(work, tokens, given)
        below, poisoned = self._accumulate(graph, graph.output, output_gradient_rd, work, sign)
        return Backward(gradient=below, poisoned=poisoned)

    def loss(
        self,
        work: Microbatch,
        tokens: Buffer,
        given: Buffer | None,
        *,
        sign: Literal[1, 0, -1] = 1,
    ) -> Loss:
        """The last stage's whole pass: forward, loss, backward, accumulate."""
        graph = self._passes_of(work).run(work, tokens, given)
        mean = self._passes.mean_loss(graph.output, tokens)
        value = float(mean.detach())
        if not math.isfinite(value):
            gradient = self._passes.encode_nothing(work)
            return Loss(loss=0, tokens=0, gradient=gradient, poisoned=False)
        below, poisoned = self._accumulate(graph, mean, None, work, sign)
        return self._loss(value, below, poisoned=poisoned)

    @torch.no_grad()
    def evaluate(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Loss:
        """Loss of a held-out microbatch; nothing accumulates."""
        graph = self._passes_of(work).run(work, tokens, given)
        value = float(self._passes.mean_loss(graph.output, tokens))
        if not math.isfinite(value):
            return Loss(loss=0, tokens=0, gradient=None, poisoned=False)
        return self._loss(value, None, poisoned=False)

    def _loss(self, value: float, gradient: Buffer | None, *, poisoned: bool) -> Loss:
        return Loss(
            loss=round(value * LOSS_SCALE),
            tokens=nominal_tokens(self._spec),
            gradient=gradient,
            poisoned=poisoned,
        )

    def _passes_of(self, work: Microbatch) -> Passes:
        """Over the weights of its step: this one, or the one before while they are kept."""
        if work.step == self.version:
            return self._passes
        if self._before is None or self._before.step != work.step:
            raise InternalError(f"a microbatch of step {work.step} at version {self.version}")
        return self._before.passes

    def _accumulate(
        self,
        graph: Graph,
        output: Tensor,
        output_gradient_rd: Tensor | None,
        work: Microbatch,
        sign: Literal[1, 0, -1],
    ) -> tuple[Buffer | None, bool]:
        """Backward through ``graph``; returns (encoded gradient for below, poisoned)."""
        passes, before = self._passes_of(work), self._before
        if passes is not self._passes and sign:
            raise InternalError(f"a microbatch of step {work.step} counted in {self.version}")
        gradients, below = passes.gradients(graph, output, output_gradient_rd)
        if passes is self._passes or before is None:
            poisoned = not self.own.add(gradients, sign)
        else:
            poisoned = not before.format.fits(gradients)
        if poisoned and below is not None and not bool(torch.isfinite(below).all()):
            return self._passes.encode_nothing(work), poisoned
        return self._passes.encode_gradient(below, work), poisoned

    # --- sums -----------------------------------------------------------------------------

    def read_own(self, start: int, stop: int) -> bytes:
        """Elements of the own accumulator, little-endian."""
        return self.own.read(start, stop)

    def sum_parts(self, parts: Sequence[Buffer]) -> bytes:
        """Elementwise integer sum of equally long parts."""
        return sum_parts(parts, self.own.format.numpy_dtype)

    def finish(self, pieces: Sequence[tuple[int, Buffer]]) -> Whole:
        """Take the whole sum; its digest and norms are the same on every holder."""
        whole = assemble(pieces, self.elements, self.own.format.numpy_dtype)
        norms = self._take(whole)
        finite = all(math.isfinite(norm) for norm in norms)
        return Whole(digest=sum_digest(whole), norms=norms, finite=finite)

    def finish_alone(self) -> tuple[float, ...]:
        """Take the own sum for the whole one, as who trains alone may; returns its norms."""
        return self._take(self.own.whole())

    def _take(self, whole: Tensor) -> tuple[float, ...]:
        self._whole, self._finished = whole, True
        return self.own.norms(whole)

    def read_sum(self, start: int, stop: int) -> bytes:
        """Elements of the last whole sum, also after its step."""
        if self._whole is None:
            raise InternalError("no sum has been finished")
        return raw_bytes(self._whole[start:stop])

    def clear(self) -> None:
        """Forget everything of the current step."""
        self.own.clear()
        self._graphs.clear()
        self._whole, self._finished = None, False

    # --- the step --------------------------------------------------------------------------

    def step(self, update: Update, *, keep: bool = False) -> None:
        """Apply the finished sum. Without tokens there is nothing to apply: it skips."""
        if update.step != self.version:
            raise InternalError(f"step {update.step} on weights of version {self.version}")
        skip = update.skip or not update.tokens
        if not skip and (self._whole is None or not self._finished):
            raise InternalError(f"step {update.step} without a finished sum")
        self._before = None  # at most two sets of weights, even for a moment
        if keep:
            self._keep(update.step)
        if skip:
            self.own.format.coarsen()
        else:
            assert self._whole is not None
            self._optimizer.step(self._gradients(self._whole, update), update.step)
            self.own.format.adapt(self._whole, self._layout)
        self._finished = False
        self.own.clear()
        self._graphs.clear()
        self.reading = None if self._watch is None else self._watch.take()
        self.version = Step(update.step + 1)

    def _keep(self, step: Step) -> None:
        """Leave the weights as they are to passes of ``step``, and go on with a copy."""
        passes, format_ = self._passes.over(dict(self._weights)), self.own.format.fixed()
        self._before = Before(step=step, passes=passes, format=format_)
        for name, weight in self._weights.items():
            self._weights[name] = weight.detach().clone().requires_grad_()

    def release(self, step: Step) -> None:
        """Let go of the weights that ``step`` began with."""
        if self._before is not None and self._before.step == step:
            self._before = None

    def _gradients(self, whole: Tensor, update: Update) -> dict[str, Tensor]:
        """The mean gradient, clipped by its global norm."""
        divisor = update.tokens / nominal_tokens(self._spec)
        norm = math.sqrt(math.fsum(update.norms)) / divisor  # fsum rounds once, wherever the cut is
        means = self.own.means(whole, divisor, clip_factor(self._spec.optimizer.clip_norm, norm))
        return {name: mean.view_as(self._weights[name]).to(self._device) for name, mean in means}

    # --- state ------------------------------------------------------------------------------

    def save(self) -> bytes:
        """Weights, optimizer state, version and exponents as one blob."""
        return pack(self._state())

    def load(self, blob: Buffer, *, keep: bool = False) -> None:
        """Take over a blob of :meth:`save`, or raise MisbehaviourError and change nothing."""
        tensors = unpack(blob, self._state())
        version, updates = int(tensors["version"]), int(tensors["optimizer/updates"])
        exponents = tensors["exponents"].tolist()
        if not 0 <= updates <= version or not self.own.format.admits(exponents):
            raise MisbehaviourError("a snapshot whose version, updates and exponents disagree")
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[f"weights/{name}"])
        prefix, named = "optimizer/", tensors.items()
        self._optimizer.load({n.removeprefix(prefix): t for n, t in named if n.startswith(prefix)})
        self.own.format.exponents = exponents
        self._before = None if not keep or version != self.version else self._before
        self.version = Step(version)
        if self.difference is not None:
            self.difference.loaded()
        self.clear()

    def probe(self) -> None:
        """Raise MisbehaviourError unless fixed input gives sound output."""
        self._passes.probe(Microbatch(self.version, Slot(0)))

    def tensor_digests(self) -> Mapping[str, str]:
        """Digest of every weight tensor by global name."""
        return {
            name: tensor_digest(name, SAFETENSORS_FLOAT32, weight.shape, raw_bytes(weight))
            for name, weight in self._weights.items()
        }

    def weights(self) -> Mapping[str, bytes]:
        """Raw bytes of every weight tensor by global name."""
        return {name: raw_bytes(weight) for name, weight in self._weights.items()}

    def _state(self) -> dict[str, Tensor]:
        state = {f"weights/{name}": weight for name, weight in self._weights.items()}
        state |= {f"optimizer/{name}": value for name, value in self._optimizer.state().items()}
        state["version"] = torch.tensor(self.version, dtype=torch.int64)
        state["exponents"] = torch.tensor(self.own.format.exponents, dtype=torch.int64)
        return state
