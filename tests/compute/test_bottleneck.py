import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody reads

from p2ptrain.compute.bottleneck import complement, compress, expand, orthonormal
from p2ptrain.compute.initial import initial_weights
from p2ptrain.compute.model import EMBEDDING, Slice
from p2ptrain.core.bottleneck import Bottleneck
from p2ptrain.run import Model

MODEL = Model(d_model=24, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, context=8)
NARROW = Bottleneck(boundary=0, width=6, order=3, rank=0)
EPS = 1e-5
PINNED = ["-0x1.5421a40000000p-2", "-0x1.ef44b40000000p-9", "0x1.c979420000000p-3"]


def weights_of(bottleneck: Bottleneck, seed: int = 0) -> dict[str, torch.Tensor]:
    """Of both sides of its boundary, in a model cut in two."""
    below = Slice(layers=range(1), first=True, last=False, above=bottleneck)
    above = Slice(layers=range(1, 2), first=False, last=True, below=bottleneck)
    return initial_weights(seed, MODEL, below) | initial_weights(seed, MODEL, above)


def test_the_encoder_is_orthonormal_and_the_decoder_its_transpose() -> None:
    weights = weights_of(NARROW)
    encoder_kd = weights[NARROW.encoder]
    assert torch.allclose(encoder_kd @ encoder_kd.T, torch.eye(6), atol=1e-6)
    assert torch.equal(weights[NARROW.decoder], encoder_kd.T)


def test_first_values_are_these_on_every_machine() -> None:
    values = weights_of(NARROW)[NARROW.encoder].flatten()[:3].tolist()
    assert [value.hex() for value in values] == PINNED


def test_boundaries_and_seeds_begin_differently() -> None:
    one = weights_of(NARROW)[NARROW.encoder]
    other = Bottleneck(boundary=1, width=6, order=3, rank=0)
    assert not torch.equal(weights_of(other)[other.encoder], one)
    assert not torch.equal(weights_of(NARROW, seed=1)[NARROW.encoder], one)


def test_untrained_it_hands_the_embeddings_over() -> None:
    weights = weights_of(NARROW)
    ids_bt = torch.arange(16).view(2, 8)
    x_btd = F.embedding(ids_bt, weights[EMBEDDING])
    z_btk = compress(weights, NARROW, x_btd, EPS)
    assert z_btk.shape == (2, 8, 6)
    handed_btd = expand(weights, NARROW, z_btk, ids_bt)
    assert F.cosine_similarity(handed_btd, x_btd, dim=-1).min() > 0.8
    rest_btd = handed_btd - z_btk @ weights[NARROW.encoder]
    kept_btd = x_btd @ weights[NARROW.encoder].T @ weights[NARROW.encoder]
    assert torch.allclose(rest_btd + kept_btd, x_btd, atol=1e-5)


def test_at_full_width_it_hands_over_what_was_normed_and_anchors_begin_at_nothing() -> None:
    anchored = Bottleneck(boundary=0, width=0, order=3, rank=0)
    weights = weights_of(anchored)
    ids_bt = torch.arange(16).view(2, 8)
    x_btd = torch.randn(2, 8, 24)
    z_btd = compress(weights, anchored, x_btd, EPS)
    assert torch.allclose(z_btd.square().mean(-1), torch.ones(2, 8), atol=1e-3)
    assert torch.equal(expand(weights, anchored, z_btd, ids_bt), z_btd)
    weights[anchored.anchor(1)] += 1.0
    moved_btd = expand(weights, anchored, z_btd, ids_bt) - z_btd
    assert torch.allclose(moved_btd[:, 1:], torch.ones(2, 7, 24), atol=1e-6)
    assert not moved_btd[:, 0].any()


def test_the_wire_does_not_grow_with_the_residual_stream() -> None:
    weights = weights_of(NARROW)
    x_btd = torch.randn(2, 8, 24)
    z_btk = compress(weights, NARROW, x_btd, 0.0)
    assert torch.allclose(compress(weights, NARROW, 1000 * x_btd, 0.0), z_btk, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 5])
def test_an_anchor_tells_of_the_token_so_far_back_and_of_no_other(rank: int) -> None:
    bottleneck = Bottleneck(boundary=0, width=6, order=3, rank=rank)
    weights = weights_of(bottleneck)
    for back in range(3):  # beginners say nothing
        for name in (bottleneck.anchor(back), bottleneck.lift(back)):
            if name in weights:
                weights[name] = torch.randn(weights[name].shape)
    z_btk = torch.zeros(1, 8, 6)
    ids_bt = torch.arange(8).view(1, 8)
    x_btd = expand(weights, bottleneck, z_btk, ids_bt)
    changed_bt = ids_bt.clone()
    changed_bt[0, 3] = 200
    differs_t = (expand(weights, bottleneck, z_btk, changed_bt) != x_btd).any(dim=-1)[0]
    assert differs_t.tolist() == [3 <= position <= 5 for position in range(8)]


def test_a_sequence_shorter_than_the_anchors_reach_is_no_matter() -> None:
    weights = weights_of(NARROW)
    assert expand(weights, NARROW, torch.zeros(1, 1, 6), torch.zeros(1, 1).long()).shape == (
        1,
        1,
        24,
    )


@pytest.mark.parametrize(("width", "rank"), [(6, 0), (6, 5), (0, 0), (0, 5)])
def test_every_parameter_learns(width: int, rank: int) -> None:
    bottleneck = Bottleneck(boundary=0, width=width, order=3, rank=rank)
    weights = {name: w.requires_grad_() for name, w in weights_of(bottleneck).items()}
    ids_bt = torch.arange(16).view(2, 8)
    z_btk = compress(weights, bottleneck, torch.randn(2, 8, 24), EPS)
    expand(weights, bottleneck, z_btk, ids_bt).square().sum().backward()
    own = [bottleneck.norm, *([bottleneck.encoder, bottleneck.decoder] if width else [])]
    own += [bottleneck.lift(back) if rank else bottleneck.anchor(back) for back in range(3)]
    for name in own:
        gradient = weights[name].grad
        assert gradient is not None
        assert gradient.abs().max() > 0


def test_both_maps_are_float32_whatever_the_layers_compute_in() -> None:
    weights = weights_of(NARROW)
    x_btd, ids_bt = torch.randn(2, 8, 24), torch.arange(16).view(2, 8)
    z_btk = compress(weights, NARROW, x_btd, EPS)
    expanded_btd = expand(weights, NARROW, z_btk, ids_bt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compress(weights, NARROW, x_btd, EPS), z_btk)
        assert torch.equal(expand(weights, NARROW, z_btk, ids_bt), expanded_btd)


def test_the_span_and_its_complement_make_the_whole() -> None:
    basis_kd = orthonormal(torch.rand(5, 12))
    rows_vd = torch.rand(7, 12).double()
    rest_vd = complement(rows_vd, basis_kd)
    assert (rest_vd @ basis_kd.T).abs().max() < 1e-12
    assert torch.allclose(rest_vd + rows_vd @ basis_kd.T @ basis_kd, rows_vd)
