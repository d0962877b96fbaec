import math

import msgspec
import pytest

from p2ptrain.core.bottleneck import (
    Bottleneck,
    bottleneck_at,
    is_map,
    stage_bottlenecks,
    stage_elements,
)
from p2ptrain.core.partition import cut_layers, stage_parameters
from p2ptrain.run import Codec, Composition, Cut, Model, RunSpec
from p2ptrain.units import Stage

MODEL = Model(d_model=16, n_layers=3, n_heads=2, n_kv_heads=1, d_ff=24, context=8)
NARROW = Composition(name="narrow", width=4, anchor_order=2)
FACTORISED = Composition(name="factorised", width=3, anchor_order=1, anchor_rank=5)


def spec_of(*boundaries: str) -> RunSpec:
    held = tuple(entry for entry in (NARROW, FACTORISED) if entry.name in boundaries)
    codec = Codec(boundaries=boundaries, compositions=held)
    return RunSpec(model=MODEL, cut=Cut(stages=len(boundaries) + 1), codec=codec)


def test_a_boundary_of_full_width_has_none() -> None:
    spec = spec_of("bf16", "narrow")
    assert bottleneck_at(spec, 0) is None
    assert bottleneck_at(spec, 1) == Bottleneck(boundary=1, width=4, order=2, rank=0)


def test_the_ends_of_the_pipeline_have_one_side_alone() -> None:
    spec = spec_of("narrow", "factorised")
    first, middle, last = (stage_bottlenecks(spec, Stage(stage)) for stage in range(3))
    assert first[0] is None
    assert last[1] is None
    assert first[1] == middle[0] == bottleneck_at(spec, 0)
    assert middle[1] == last[0] == bottleneck_at(spec, 1)


def test_the_encoder_is_the_senders_and_the_rest_the_receivers() -> None:
    narrow = Bottleneck(boundary=0, width=4, order=2, rank=0)
    assert narrow.sender_shapes(MODEL) == {
        "bottleneck.0.encoder.weight": (4, 16),
        "bottleneck.0.norm.weight": (16,),
    }
    assert narrow.receiver_shapes(MODEL) == {
        "bottleneck.0.decoder.weight": (16, 4),
        "bottleneck.0.anchor.0.weight": (256, 16),
        "bottleneck.0.anchor.1.weight": (256, 16),
    }
    factorised = Bottleneck(boundary=7, width=3, order=1, rank=5)
    assert factorised.receiver_shapes(MODEL) == {
        "bottleneck.7.decoder.weight": (16, 3),
        "bottleneck.7.anchor.0.weight": (256, 5),
        "bottleneck.7.anchor.0.lift.weight": (16, 5),
    }


@pytest.mark.parametrize(("context", "order"), [(1, 1), (2, 2), (3, 3), (8, 3)])
def test_no_table_is_for_a_token_farther_back_than_a_sequence_reaches(
    context: int, order: int
) -> None:
    model = msgspec.structs.replace(MODEL, context=context)
    held = Composition(name="far", width=4, anchor_order=3)
    codec = Codec(name="far", compositions=(held,))
    found = bottleneck_at(RunSpec(model=model, cut=Cut(stages=2), codec=codec), 0)
    assert found is not None
    assert found.order == order


def test_anchors_at_full_width_have_a_norm_below_and_no_maps() -> None:
    anchored = Composition(name="anchored", anchor_order=2)
    codec = Codec(name="anchored", compositions=(anchored,))
    found = bottleneck_at(RunSpec(model=MODEL, cut=Cut(stages=2), codec=codec), 0)
    assert found == Bottleneck(boundary=0, width=0, order=2, rank=0)
    assert found.sender_shapes(MODEL) == {"bottleneck.0.norm.weight": (16,)}
    assert found.receiver_shapes(MODEL) == {
        "bottleneck.0.anchor.0.weight": (256, 16),
        "bottleneck.0.anchor.1.weight": (256, 16),
    }


def test_boundaries_share_no_parameter() -> None:
    one, other = (Bottleneck(boundary=b, width=4, order=3, rank=2) for b in (0, 1))
    names = [{*b.sender_shapes(MODEL), *b.receiver_shapes(MODEL)} for b in (one, other)]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("boundaries", [("bf16", "bf16"), ("narrow", "factorised")])
def test_elements_are_counted_where_they_are_held(boundaries: tuple[str, ...]) -> None:
    spec = spec_of(*boundaries)
    plain = stage_parameters(MODEL, cut_layers(MODEL, 3))
    for stage, count in enumerate(stage_elements(spec)):
        below, above = stage_bottlenecks(spec, Stage(stage))
        shapes = [*(below.receiver_shapes(MODEL).values() if below else ())]
        shapes += above.sender_shapes(MODEL).values() if above else ()
        assert count == plain[stage] + sum(math.prod(shape) for shape in shapes)


def test_the_layers_are_cut_as_if_there_were_none() -> None:
    spec = spec_of("narrow", "narrow")
    wide = msgspec.structs.replace(spec, codec=Codec())
    assert [a - b for a, b in zip(stage_elements(spec), stage_elements(wide), strict=True)] == [
        4 * 16 + 16,
        4 * 16 + 16 + 16 * 4 + 2 * 256 * 16,
        16 * 4 + 2 * 256 * 16,
    ]


def test_encoders_and_decoders_are_told_from_all_else() -> None:
    found = Bottleneck(boundary=1, width=4, order=2, rank=3)
    shapes = {**found.sender_shapes(MODEL), **found.receiver_shapes(MODEL)}
    assert {name for name in shapes if is_map(name)} == {found.encoder, found.decoder}
    assert not is_map("model.encoder.weight")
