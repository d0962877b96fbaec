from typing import cast

import pytest

from p2ptrain.core import sizes
from p2ptrain.errors import RunSpecError
from p2ptrain.run import Batch, Codec, CodecName, Model, RunSpec


def test_values_of_a_codec_are_counted_exactly() -> None:
    assert sizes.codec_bytes("fp32", 3, 5) == 60
    assert sizes.codec_bytes("bf16", 3, 5) == 30


def test_an_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(RunSpecError, match="bf16, fp32"):
        sizes.codec_bytes(cast("CodecName", "int1"), 1, 1)


def test_a_boundary_may_have_its_own_codec() -> None:
    spec = RunSpec(
        model=Model(d_model=8, context=4),
        batch=Batch(sequences=2),
        codec=Codec(name="bf16", boundaries=("fp32", "bf16", "fp32")),
    )
    assert [sizes.boundary_bytes(spec, boundary) for boundary in range(3)] == [256, 128, 256]
    assert sizes.boundary_codec(Codec(name="fp32"), 7) == "fp32"


@pytest.mark.parametrize(("vocab", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_token_ids_are_as_narrow_as_the_vocabulary_allows(vocab: int, width: int) -> None:
    spec = RunSpec(model=Model(vocab_size=vocab, context=7), batch=Batch(sequences=3))
    assert sizes.token_id_bytes(spec.model) == width
    assert sizes.microbatch_token_bytes(spec) == 3 * 8 * width
    assert sizes.nominal_tokens(spec) == 21


def test_sums_take_the_width_of_their_integers() -> None:
    assert sizes.integer_bytes(RunSpec()) == 8
