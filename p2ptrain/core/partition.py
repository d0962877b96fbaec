"""Cut a model into stages, and count what a stage holds and costs.

The slowest stage sets the pace of the whole pipeline, so the cut minimises the
*greatest* cost of a stage. All decoder layers cost the same; what makes stages
unequal are the ends: the head of the last stage is a matrix of vocabulary x d_model
and can outweigh several layers, while the embedding of stage 0 is a lookup.

Invariants:
    * a cut is a function of the model and the cut alone: every peer computes the same;
    * the ranges tile 0..n_layers in order, and no stage is without a layer;
    * no cut has a smaller greatest cost; among those, no cut is more even.

The alternative refused: equal counts of layers. With a large vocabulary the head's
stage then runs several times slower than the rest, and no number of replicas on the
other stages mends that.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from p2ptrain.errors import RunSpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.run import Model


def parameter_count(model: Model, layers: range, *, first: bool, last: bool) -> int:
    """Number of parameters of a stage that holds ``layers``.

    Args:
        model: the model's sizes; its head is not tied to its embedding.
        layers: which decoder layers the stage holds.
        first: the stage also holds the token embedding.
        last: the stage also holds the final norm and the head.
    """
    count = len(layers) * (_matrix_elements(model) + 2 * model.d_model)
    if first:
        count += model.vocab_size * model.d_model
    if last:
        count += model.d_model + model.vocab_size * model.d_model
    return count


def stage_parameters(model: Model, parts: Sequence[range]) -> tuple[int, ...]:
    """Number of parameters of every stage of a cut: the length of its accumulator."""
    top = len(parts) - 1
    return tuple(
        parameter_count(model, layers, first=stage == 0, last=stage == top)
        for stage, layers in enumerate(parts)
    )


def stage_cost(model: Model, layers: range, *, first: bool, last: bool) -> int:
    """Floating-point operations of one token's forward pass through a stage.

    The backward pass costs a fixed multiple of it, so the forward alone orders cuts.
    A matrix costs two operations per element; causal attention over a full context
    2 x context x d_model (scores and values, each over half the context on average);
    the embedding's lookup d_model, for its row is read forward and added to backward.
    """
    count = len(layers) * (2 * _matrix_elements(model) + 2 * model.context * model.d_model)
    if first:
        count += model.d_model
    if last:
        count += 2 * model.vocab_size * model.d_model
    return count


def cut_layers(model: Model, stages: int, layers: Sequence[int] = ()) -> tuple[range, ...]:
    """Which layers each stage holds, in stage order.

    Args:
        model: the model to cut.
        stages: into how many stages.
        layers: the number of layers of each stage; empty: by least greatest cost.

    Raises:
        RunSpecError: there are more stages than layers, or ``layers`` does not fit.
    """
    if stages < 1:
        raise RunSpecError(f"cut.stages is {stages}; a model has at least one stage")
    if stages > model.n_layers:
        raise RunSpecError(
            f"cut.stages is {stages} but the model has {model.n_layers} layers; "
            f"use at most {model.n_layers} stages"
        )
    counts = _checked(model, stages, layers) if layers else _balanced(model, stages)
    starts = accumulate(counts, initial=0)
    return tuple(range(start, stop) for start, stop in pairwise(starts))


def _matrix_elements(model: Model) -> int:
    """Elements of one layer's matrices: q and o, k and v, then gate, up and down."""
    d = model.d_model
    kv_width = d // model.n_heads * model.n_kv_heads
    return 2 * d * d + 2 * d * kv_width + 3 * d * model.d_ff


def _checked(model: Model, stages: int, layers: Sequence[int]) -> tuple[int, ...]:
    if len(layers) != stages:
        raise RunSpecError(
            f"cut.layers names {len(layers)} stages but cut.stages is {stages}; make them equal"
        )
    if min(layers) < 1:
        raise RunSpecError("cut.layers must give every stage at least one layer")
    if sum(layers) != model.n_layers:
        raise RunSpecError(
            f"cut.layers sums to {sum(layers)} but the model has {model.n_layers} layers"
        )
    return tuple(layers)


def _balanced(model: Model, stages: int) -> tuple[int, ...]:
    """Counts per stage: the least possible greatest cost, then the least sum of squares.

    Two passes, because the pair (greatest, squares) does not build up from parts: a
    prefix with the smaller greatest cost may end up the less even one.
    """
    worst = _split(model, stages, bound=None)
    bound = max(
        stage_cost(model, range(count), first=stage == 0, last=stage == stages - 1)
        for stage, count in enumerate(worst)
    )
    return _split(model, stages, bound=bound)


def _split(model: Model, stages: int, *, bound: int | None) -> tuple[int, ...]:
    """Dynamic programme over (stages cut so far, layers used): least score, earliest cut.

    Without ``bound`` the score is the greatest cost of a stage; with it, the sum of the
    squares of the costs, no stage costing more than ``bound``.
    """
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for stage in range(stages):
        after = stages - 1 - stage  # stages still to come, each with a layer or more
        grown: dict[int, tuple[int, tuple[int, ...]]] = {}
        for used, (score, counts) in best.items():
            left = model.n_layers - used
            for count in (left,) if after == 0 else range(1, left - after + 1):
                cost = stage_cost(model, range(count), first=stage == 0, last=after == 0)
                if bound is not None and cost > bound:
                    break
                total = max(score, cost) if bound is None else score + cost * cost
                candidate = (total, (*counts, count))
                grown[used + count] = min(candidate, grown.get(used + count, candidate))
        best = grown
    return best[model.n_layers][1]
