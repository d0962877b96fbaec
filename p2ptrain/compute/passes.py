"""Forward and backward passes of one stage: bytes at the rim, tensors inside.

A microbatch is computed alone, never batched with others, from the bytes that crossed the
wire. A pass is therefore a function of (weights, bytes), and gives the same bits whether
its graph was kept since the forward pass or is built again from the retained input.

What comes from outside is decoded into one of two tensors that are there from the start, one
for each boundary, and stands there until the next call; only the input of a graph that is kept
has a tensor of its own. What goes out is written once, into the buffer of its frame.

Invariants:
    * input activations are a leaf of the graph, so a graph never reaches below its stage;
    * a graph that outlives the call shares no memory with the tensors of the next one;
    * ids and sizes are checked before they index anything: on an accelerator, a bad index
      kills the whole process.

Alternative refused: checkpointing inside the stage (recompute per layer). A stage is
already the unit of recomputation.

Legend: b sequences, t tokens, d d_model, k width on the wire, v vocabulary, r = b * t rows.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from p2ptrain.compute.bottleneck import compress, expand
from p2ptrain.compute.codecs import CodecContext, codec_at, encoded
from p2ptrain.compute.model import Decoder, Slice, summed_loss
from p2ptrain.core.sizes import (
    Direction,
    boundary_bytes,
    boundary_width,
    microbatch_token_bytes,
    nominal_tokens,
    token_id_bytes,
)
from p2ptrain.errors import InternalError, MisbehaviourError
from p2ptrain.run.codecs import composition_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.compute.accumulator import FixedPoint
    from p2ptrain.ports import Buffer
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Microbatch, Stage, Step

LEAST_VARIED = 4
"""Different tokens: of fewer even a healthy boundary's values are all alike, or at two ends."""

PROBE_VALUE = 2.0**-6
"""Of every value of a probe's input: a small number in every codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A forward pass and, with gradients enabled, what its backward pass needs."""

    given: Tensor
    output: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What the last step began with: enough to compute its microbatches once more."""

    step: Step
    passes: Passes
    format: FixedPoint


def boundaries(spec: RunSpec, stage: Stage) -> tuple[int, ...]:
    """Those at the ends of a stage."""
    return tuple(end for end in (stage - 1, stage) if 0 <= end < spec.cut.stages - 1)


class Passes:
    """The passes of one stage over weights that its owner updates in place."""

    def __init__(
        self,
        spec: RunSpec,
        stage: Stage,
        part: Slice,
        weights: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self._spec = spec
        self._stage = stage
        self._part = part
        self._weights = weights
        self._device = device
        self._decoder = Decoder(spec.model, part, device)
        self._decoded_rk = {boundary: self._room(boundary) for boundary in boundaries(spec, stage)}

    def over(self, weights: Mapping[str, Tensor]) -> Passes:
        """The same passes over other weights."""
        other = copy(self)
        other._weights = weights  # noqa: SLF001 - one of us
        return other

    def run(
        self, work: Microbatch, tokens: Buffer, given: Buffer | None, *, keep: bool = False
    ) -> Graph:
        """Forward over encoded input; output (b, t, d), or logits (b, t, v) at the last stage.

        The graph is of use until the next call, or for ever with ``keep``.

        Raises:
            MisbehaviourError: token ids or input are not what this run sends.
        """
        if self._part.first:
            x = self._token_ids(tokens)[:, :-1]
        elif given is None:
            raise InternalError(f"stage {self._stage} was given no input")
        else:
            x = self._received(work, given, keep=keep)
        half = self._spec.arithmetic.dtype == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=half):
            return Graph(given=x, output=self._through(x, tokens))

    def _received(self, work: Microbatch, given: Buffer, *, keep: bool) -> Tensor:
        """What came over the wire: (b, t, d) or, above a bottleneck, (b, t, k). A leaf."""
        x_rk = self._decode(given, work, self._stage - 1, "forward", keep=keep)
        x = x_rk.detach().view(-1, self._spec.model.context, x_rk.shape[1])
        return x.requires_grad_(torch.is_grad_enabled())

    def _through(self, x: Tensor, tokens: Buffer) -> Tensor:
        """The slice, and the halves of the bottlenecks at its ends."""
        below, above = self._part.below, self._part.above
        if below is not None:
            x = expand(self._weights, below, x, self._token_ids(tokens)[:, :-1])
        x = self._decoder(self._weights, x)
        return x if above is None else compress(self._weights, above, x, self._spec.model.norm_eps)

    @torch.no_grad()
    def probe(self, work: Microbatch) -> None:
        """Raise MisbehaviourError unless fixed input gives finite output of the right size."""
        spec, stage, tokens = self._spec, self._stage, bytes(microbatch_token_bytes(self._spec))
        output = self.run(work, tokens, self.probe_input(work)).output
        if not self._part.last:
            encoded = self.encode_output(output, work)
            sized = len(encoded) == boundary_bytes(spec, stage, "forward", work.step)
        else:
            sized = math.isfinite(float(self.mean_loss(output, tokens)))
        if not sized or not bool(torch.isfinite(output).all()):
            raise MisbehaviourError(f"the state of stage {stage} gives no finite output here")

    def mean_loss(self, logits_btv: Tensor, tokens: Buffer) -> Tensor:
        """Sum of token losses over the nominal token count, in nats and float32."""
        labels_bt = self._token_ids(tokens)[:, 1:]
        return summed_loss(logits_btv, labels_bt) / nominal_tokens(self._spec)

    def gradients(
        self, graph: Graph, output: Tensor, output_gradient_rd: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Backward: gradients of the weights in name order, and of the input if there is one.

        ``output`` is the graph's output or a scalar loss over it.
        """
        inputs = list(self._weights.values())
        if not self._part.first:
            inputs.append(graph.given)
        if output_gradient_rd is not None:
            output_gradient_rd = output_gradient_rd.view_as(output)
        gradients = torch.autograd.grad(output, inputs, output_gradient_rd)
        count = len(self._weights)
        return gradients[:count], None if self._part.first else gradients[count]

    def decode_gradient(self, buffer: Buffer, work: Microbatch) -> Tensor:
        """The gradient of the output (r, k) that came from the stage above, until the next call."""
        return self._decode(buffer, work, self._stage, "backward")

    def varied(self, tokens: Buffer) -> bool:
        """Whether a microbatch of these tokens says anything of a boundary's health."""
        ids = np.frombuffer(tokens, dtype=f"<u{token_id_bytes(self._spec.model)}")
        return len(np.unique(ids)) >= LEAST_VARIED

    def decode_output(self, buffer: Buffer, work: Microbatch) -> Tensor:
        """What the stage above sees of this stage's output (r, k), until the next call."""
        return self._decode(buffer, work, self._stage, "forward")

    def encode_output(self, x_btd: Tensor, work: Microbatch) -> Buffer:
        """Encode activations for the stage above."""
        return self._encode(x_btd.flatten(0, 1), work, self._stage, "forward")

    def encode_gradient(self, x_btd: Tensor | None, work: Microbatch) -> Buffer | None:
        """Encode the input's gradient for the stage below; None at stage 0."""
        if x_btd is None:
            return None
        return self._encode(x_btd.flatten(0, 1), work, self._stage - 1, "backward")

    def encode_nothing(self, work: Microbatch) -> Buffer | None:
        """The gradient for the stage below of a microbatch that counts as zero."""
        if self._part.first:
            return None
        boundary = self._stage - 1
        zeros_rk = torch.zeros(nominal_tokens(self._spec), boundary_width(self._spec, boundary))
        return self._encode(zeros_rk, work, boundary, "backward")

    def probe_input(self, work: Microbatch) -> Buffer | None:
        """Encoded input that is small and the same everywhere; None at stage 0."""
        if self._part.first:
            return None
        boundary = self._stage - 1
        rows, width = nominal_tokens(self._spec), boundary_width(self._spec, boundary)
        return self._encode(torch.full((rows, width), PROBE_VALUE), work, boundary, "forward")

    def _encode(
        self, x_rk: Tensor, work: Microbatch, boundary: int, direction: Direction
    ) -> Buffer:
        context = CodecContext(
            seed=self._spec.seed,
            step=work.step,
            slot=work.slot,
            boundary=boundary,
            direction=direction,
        )
        codec = codec_at(composition_of(self._spec, boundary), direction, work.step)
        return encoded(codec, x_rk, context)

    def _decode(
        self,
        buffer: Buffer,
        work: Microbatch,
        boundary: int,
        direction: Direction,
        *,
        keep: bool = False,
    ) -> Tensor:
        """What crossed a boundary (r, k), in its tensor or, to ``keep``, in a new one."""
        codec = codec_at(composition_of(self._spec, boundary), direction, work.step)
        out_rk = self._room(boundary) if keep else self._decoded_rk[boundary]
        codec.decode_into(buffer, out_rk)
        return out_rk

    def _room(self, boundary: int) -> Tensor:
        """A tensor (r, k) for what crosses ``boundary``, with anything in it."""
        rows, width = nominal_tokens(self._spec), boundary_width(self._spec, boundary)
        return torch.empty(rows, width, device=self._device)

    def _token_ids(self, tokens: Buffer) -> Tensor:
        """Token ids (b, t + 1) as int64 on the device; the last of each row is only a label."""
        model = self._spec.model
        if memoryview(tokens).nbytes != microbatch_token_bytes(self._spec):
            raise MisbehaviourError("token ids of the wrong size")
        ids = np.frombuffer(tokens, dtype=f"<u{token_id_bytes(model)}")
        if int(ids.max()) >= model.vocab_size:
            raise MisbehaviourError(f"a token id outside the vocabulary of {model.vocab_size}")
        ids_bt = torch.from_numpy(ids.astype(np.int64)).view(-1, model.context + 1)
        return ids_bt.to(self._device)
