import pytest

from p2ptrain.core import sizes
from p2ptrain.run import Batch, Codec, Composition, Model, RunSpec

LATENT = Composition(
    name="latent", width=3, mean=True, forward=((0, 8), (10, 4)), backward=((0, 2),)
)


def test_a_boundary_may_have_its_own_codec_and_each_direction_its_own_size() -> None:
    spec = RunSpec(
        model=Model(d_model=8, context=4),
        batch=Batch(sequences=2),
        codec=Codec(boundaries=("none", "bf16", "latent"), compositions=(LATENT,)),
    )
    assert [sizes.boundary_width(spec, boundary) for boundary in range(3)] == [8, 8, 3]
    assert [sizes.boundary_bytes(spec, b, "forward", 0) for b in range(2)] == [256, 128]
    # header 2, means 3 x 2, scales 8, then 24 values
    assert sizes.boundary_bytes(spec, 2, "forward", 9) == 16 + 24
    assert sizes.boundary_bytes(spec, 2, "forward", 10) == 16 + 12
    assert sizes.boundary_bytes(spec, 2, "backward", 10) == 16 + 6
    assert sizes.most_boundary_bytes(spec, 2, "forward") == 16 + 24


@pytest.mark.parametrize(("vocab", "width"), [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_token_ids_are_as_narrow_as_the_vocabulary_allows(vocab: int, width: int) -> None:
    spec = RunSpec(model=Model(vocab_size=vocab, context=7), batch=Batch(sequences=3))
    assert sizes.token_id_bytes(spec.model) == width
    assert sizes.microbatch_token_bytes(spec) == 3 * 8 * width
    assert sizes.nominal_tokens(spec) == 21


def test_sums_take_the_width_of_their_integers() -> None:
    assert sizes.integer_bytes(RunSpec()) == 8
