"""Learned bottlenecks: which a run has, what their parameters are called and how many there are.

A bottleneck stands at a boundary between two stages and is part of the model there. The
sending stage holds a norm and an encoder E (k x d) and sends z = E norm(h); the receiving
stage holds a decoder D (d x k) and *token anchors*, tables over the ids of the last tokens,
which ride with every microbatch anyway: x = D z + sum of the anchors' rows. What the
tokens tell the receiver by themselves needs no wire. All of it is trained by
backpropagation, so the gradient that goes back is k wide as well.

Without a width there are no maps: x = norm(h) + the anchors' rows, with all of h on the wire.
That is a bottleneck's control: what its norm and anchors do when nothing is narrowed.

Invariants:
    * parameters are named by their boundary, so first weights follow from (seed, name) as
      all others do;
    * the layers are cut as if there were no bottlenecks: they are small beside a layer.

A run with bottlenecks is another model for every cut: a boundary exists only between
stages. Without them the cut changes nothing.

Alternative refused: making the receiver's side of all boundaries one shared table. A tensor
of two stages would need a sum over both, and the stages agree on nothing but the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.partition import cut_layers, stage_parameters
from p2ptrain.run.codecs import composition_of

if TYPE_CHECKING:
    from p2ptrain.run import Model, RunSpec
    from p2ptrain.units import Stage


MAPS = ("encoder.weight", "decoder.weight")
"""What the names of E and D end with."""


def is_map(name: str) -> bool:
    """Whether this parameter is a bottleneck's encoder or decoder."""
    return name.startswith("bottleneck.") and name.endswith(MAPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """One boundary's. ``boundary`` b lies between stage b and stage b + 1.

    ``width`` (k): values per token; 0: all of d_model, without E and D.
    ``order``: tables for so many of the last tokens, the token itself first. ``rank``: to
    which they are factorised; 0: they are whole.
    """

    boundary: int
    width: int
    order: int
    rank: int

    @property
    def prefix(self) -> str:
        """What the names of its parameters begin with."""
        return f"bottleneck.{self.boundary}."

    @property
    def norm(self) -> str:
        """Scales of the norm before E (d), in the sending stage."""
        return f"{self.prefix}norm.weight"

    @property
    def encoder(self) -> str:
        """E (k, d), in the sending stage."""
        return f"{self.prefix}encoder.weight"

    @property
    def decoder(self) -> str:
        """D (d, k), in the receiving stage."""
        return f"{self.prefix}decoder.weight"

    def anchor(self, back: int) -> str:
        """The table for the token ``back`` positions before, in the receiving stage."""
        return f"{self.prefix}anchor.{back}.weight"

    def lift(self, back: int) -> str:
        """What brings a factorised anchor's row to full width (d, rank)."""
        return f"{self.prefix}anchor.{back}.lift.weight"

    def sender_shapes(self, model: Model) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters in the stage below the boundary."""
        shapes: dict[str, tuple[int, ...]] = {self.norm: (model.d_model,)}
        if self.width:
            shapes[self.encoder] = (self.width, model.d_model)
        return shapes

    def receiver_shapes(self, model: Model) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters in the stage above the boundary."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.width:
            shapes[self.decoder] = (model.d_model, self.width)
        for back in range(self.order):
            shapes[self.anchor(back)] = (model.vocab_size, self.rank or model.d_model)
            if self.rank:
                shapes[self.lift(back)] = (model.d_model, self.rank)
        return shapes


def bottleneck_at(spec: RunSpec, boundary: int) -> Bottleneck | None:
    """The bottleneck between stage ``boundary`` and the next; None: what is sent is got."""
    composition = composition_of(spec, boundary)
    if not composition.width and not composition.anchor_order:
        return None
    return Bottleneck(
        boundary=boundary,
        width=composition.width,
        order=min(composition.anchor_order, spec.model.context),  # farther back there is none
        rank=composition.anchor_rank,
    )


def stage_bottlenecks(spec: RunSpec, stage: Stage) -> tuple[Bottleneck | None, Bottleneck | None]:
    """The bottlenecks below and above ``stage``, None where there is none."""
    below = bottleneck_at(spec, stage - 1) if stage > 0 else None
    above = bottleneck_at(spec, int(stage)) if stage < spec.cut.stages - 1 else None
    return below, above


def stage_elements(spec: RunSpec) -> tuple[int, ...]:
    """Number of parameters of every stage, bottlenecks included: its accumulator's length."""
    parts = cut_layers(spec.model, spec.cut.stages, spec.cut.layers)
    counts = list(stage_parameters(spec.model, parts))
    for boundary in range(spec.cut.stages - 1):
        bottleneck = bottleneck_at(spec, boundary)
        if bottleneck is not None:
            counts[boundary] += _elements(bottleneck.sender_shapes(spec.model))
            counts[boundary + 1] += _elements(bottleneck.receiver_shapes(spec.model))
    return tuple(counts)


def _elements(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
