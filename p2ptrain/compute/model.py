"""The mathematics of a slice of a Llama-style decoder: RMSNorm, rotary positions, SwiGLU, GQA.

Intuition: a stage is a pure function ``(weights, input) -> output`` with the weights
handed in by name, so nothing here knows of peers, sums or steps, and a model cut in
four computes exactly what it computes in one piece.

Names and conventions are those of Hugging Face's Llama (``model.layers.0.self_attn.
q_proj.weight``, rotation by halves), so that a checkpoint opens there as it is.

Invariants:
    * the same slice, weights and input give the same bits, with or without a graph;
    * every weight is a tensor of its own: views into one flat buffer would shift with the
      cut, and matrix kernels may round differently on differently aligned memory;
    * residual stream, norms and losses are float32; only matrix products may run in bf16.

Alternative refused: ``nn.Module``. Its state is what we have to name, sum and ship
ourselves, and a module hides which tensors a pass reads.

Legend: b sequences, t tokens, d d_model, h heads, k key-value heads, e head width,
f d_ff, v vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody reads
from torch import Tensor

from p2ptrain.core.bottleneck import Bottleneck, stage_bottlenecks
from p2ptrain.core.partition import cut_layers
from p2ptrain.core.sizes import nominal_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.run import Model, RunSpec
    from p2ptrain.units import Bytes, Stage

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"

EMBEDDING_DEVIATION = 0.5
"""A lookup has no fan-in. The tiny preset learnt faster with it than with 1 / sqrt(d) or 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one stage holds: some layers; the first also embeds, the last also predicts.

    Of a bottleneck ``below`` it holds the receiver's part, of one ``above`` the sender's.
    """

    layers: range
    first: bool
    last: bool
    below: Bottleneck | None = None
    above: Bottleneck | None = None


def stage_slice(spec: RunSpec, stage: Stage) -> Slice:
    """The slice of ``stage`` under the RunSpec's cut.

    Raises:
        RunSpecError: the model cannot be cut like this.
    """
    parts = cut_layers(spec.model, spec.cut.stages, spec.cut.layers)
    below, above = stage_bottlenecks(spec, stage)
    return Slice(
        layers=parts[stage],
        first=stage == 0,
        last=stage == len(parts) - 1,
        below=below,
        above=above,
    )


def layer_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's parameters, by name inside the layer."""
    d, f = model.d_model, model.d_ff
    kv_width = d // model.n_heads * model.n_kv_heads
    return {
        "input_layernorm.weight": (d,),
        "mlp.down_proj.weight": (d, f),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "post_attention_layernorm.weight": (d,),
        "self_attn.k_proj.weight": (kv_width, d),
        "self_attn.o_proj.weight": (d, d),
        "self_attn.q_proj.weight": (d, d),
        "self_attn.v_proj.weight": (kv_width, d),
    }


def parameter_shapes(model: Model, part: Slice) -> dict[str, tuple[int, ...]]:
    """Shapes of a slice's parameters by global name, in name order."""
    shapes = {
        f"model.layers.{layer}.{name}": shape
        for layer in part.layers
        for name, shape in layer_shapes(model).items()
    }
    if part.first:
        shapes[EMBEDDING] = (model.vocab_size, model.d_model)
    if part.last:
        shapes[FINAL_NORM] = (model.d_model,)
        shapes[HEAD] = (model.vocab_size, model.d_model)
    if part.below is not None:
        shapes |= part.below.receiver_shapes(model)
    if part.above is not None:
        shapes |= part.above.sender_shapes(model)
    return dict(sorted(shapes.items()))


def graph_bytes(model: Model, part: Slice, tokens: int) -> Bytes:
    """About how much memory the autograd graph of one microbatch holds.

    Per token and layer: both norms and their outputs, rotated queries, attention output
    (8 d counts the copies), keys and values (2 k e) and the four SwiGLU tensors (4 f).
    Below a bottleneck the sum of the anchors grows by d a table; a latent is small.
    """
    kv_width = model.d_model // model.n_heads * model.n_kv_heads
    per_layer = 8 * model.d_model + 2 * kv_width + 4 * model.d_ff
    anchored = 0 if part.below is None else (1 + part.below.order) * model.d_model
    return 4 * tokens * (len(part.layers) * per_layer + anchored)


def kept_graphs(spec: RunSpec, part: Slice, kept_graph_bytes: Bytes) -> int:
    """How many graphs to keep at most: never more than a step has microbatches.

    The last stage goes up and down in one call and keeps none.
    """
    if part.last:
        return 0
    one = graph_bytes(spec.model, part, nominal_tokens(spec))
    return min(spec.batch.microbatches, kept_graph_bytes // one)


class _RMSNorm(torch.autograd.Function):
    """``x / rms(x) * weight`` in fewer passes over memory than autograd's own chain of it."""

    @staticmethod
    def forward(ctx: Any, x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
        scale_bt1 = torch.linalg.vector_norm(x_btd, dim=-1, keepdim=True)
        scale_bt1 = scale_bt1.square_().div_(x_btd.shape[-1]).add_(eps).rsqrt_()
        normed_btd = x_btd * scale_bt1
        ctx.save_for_backward(normed_btd, scale_bt1, weight_d)
        out_btd: Tensor = normed_btd * weight_d
        return out_btd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (out_btd,) = gradients
        normed_btd, scale_bt1, weight_d = ctx.saved_tensors
        weight_grad_d = (out_btd * normed_btd).sum(dim=(0, 1))
        grad_btd = out_btd * weight_d
        # The component along x is what normalising takes away.
        along_bt1 = (grad_btd * normed_btd).mean(dim=-1, keepdim=True)
        return (
            grad_btd.addcmul_(normed_btd, along_bt1, value=-1).mul_(scale_bt1),
            weight_grad_d,
            None,
        )


def rms_norm(x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32."""
    normed: Tensor = _RMSNorm.apply(x_btd, weight_d, eps)  # type: ignore[no-untyped-call]
    return normed


def rotary_table(model: Model, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, e / 2), rounded once from float64."""
    half = model.d_model // model.n_heads // 2
    rates = model.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles_te = torch.outer(torch.arange(model.context, dtype=torch.float64), rates)
    return angles_te.cos().float().to(device), angles_te.sin().float().to(device)


def rotate(x_bhte: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (i, i + e/2) of a head by its position's angle."""
    cos_te, sin_te = table
    low, high = x_bhte.chunk(2, dim=-1)
    return torch.cat((low * cos_te - high * sin_te, high * cos_te + low * sin_te), dim=-1)


class Decoder:
    """One slice as a function. Holds the rotary table, no weights."""

    def __init__(self, model: Model, part: Slice, device: torch.device) -> None:
        self._model = model
        self._part = part
        self._table = rotary_table(model, device)

    def __call__(self, weights: Mapping[str, Tensor], given: Tensor) -> Tensor:
        """Run the slice.

        Args:
            weights: by global name; exactly :func:`parameter_shapes`.
            given: token ids (b, t) for the first slice, else activations (b, t, d).

        Returns:
            Activations (b, t, d) in float32, or logits (b, t, v) from the last slice.
        """
        x_btd = F.embedding(given, weights[EMBEDDING]) if self._part.first else given
        for layer in self._part.layers:
            x_btd = self._layer(weights, f"model.layers.{layer}.", x_btd)
        if not self._part.last:
            return x_btd
        return F.linear(rms_norm(x_btd, weights[FINAL_NORM], self._model.norm_eps), weights[HEAD])

    def _layer(self, weights: Mapping[str, Tensor], prefix: str, x_btd: Tensor) -> Tensor:
        eps = self._model.norm_eps
        normed_btd = rms_norm(x_btd, weights[prefix + "input_layernorm.weight"], eps)
        x_btd = x_btd + self._attention(weights, prefix + "self_attn.", normed_btd)
        normed_btd = rms_norm(x_btd, weights[prefix + "post_attention_layernorm.weight"], eps)
        gate_btf = F.linear(normed_btd, weights[prefix + "mlp.gate_proj.weight"])
        up_btf = F.linear(normed_btd, weights[prefix + "mlp.up_proj.weight"])
        down = weights[prefix + "mlp.down_proj.weight"]
        return x_btd + F.linear(F.silu(gate_btf) * up_btf, down)

    def _attention(self, weights: Mapping[str, Tensor], prefix: str, x_btd: Tensor) -> Tensor:
        heads, kv_heads = self._model.n_heads, self._model.n_kv_heads
        q_bhte = self._heads(F.linear(x_btd, weights[prefix + "q_proj.weight"]), heads)
        k_bkte = self._heads(F.linear(x_btd, weights[prefix + "k_proj.weight"]), kv_heads)
        v_bkte = self._heads(F.linear(x_btd, weights[prefix + "v_proj.weight"]), kv_heads)
        mixed_bhte = F.scaled_dot_product_attention(
            rotate(q_bhte, self._table),
            rotate(k_bkte, self._table),
            v_bkte,
            is_causal=True,
            enable_gqa=heads != kv_heads,
        )
        return F.linear(mixed_bhte.transpose(1, 2).flatten(2), weights[prefix + "o_proj.weight"])

    @staticmethod
    def _heads(x_btd: Tensor, heads: int) -> Tensor:
        """(b, t, heads * e) as (b, heads, t, e)."""
        sequences, tokens, width = x_btd.shape
        return x_btd.view(sequences, tokens, heads, width // heads).transpose(1, 2)


def summed_loss(logits_btv: Tensor, labels_bt: Tensor) -> Tensor:
    """Sum over tokens of the cross entropy, in nats and float32."""
    return F.cross_entropy(logits_btv.float().flatten(0, 1), labels_bt.flatten(), reduction="sum")


def initial_deviation(model: Model, name: str) -> float:
    """Standard deviation with which a matrix starts; norms start at one.

    Matrices keep the variance of their input (1 / fan-in); those that write to the residual
    stream are smaller by sqrt(2 n_layers), so that its variance hardly grows with depth.
    """
    if name == EMBEDDING:
        return EMBEDDING_DEVIATION
    fan_in = model.d_ff if name.endswith("down_proj.weight") else model.d_model
    deviation = 1.0 / math.sqrt(fan_in)
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return deviation / math.sqrt(2 * model.n_layers)
    return deviation
