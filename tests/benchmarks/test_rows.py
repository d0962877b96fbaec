"""Equal runs but for what stands at the boundaries, and the bytes that crosses them."""

import msgspec
import pytest

from benchmarks.rows import (
    CUT,
    SIZES,
    bytes_per_token,
    row_named,
    rows_of,
    spec_of,
    steps_of,
)
from p2ptrain.core.bottleneck import bottleneck_at
from p2ptrain.run import Cut

SIZE = SIZES["28x"]


@pytest.mark.parametrize("name", SIZES)
def test_rows_differ_in_their_codec_alone(name: str) -> None:
    specs = [spec_of(SIZES[name], row, seed=1, steps=9) for row in rows_of(SIZES[name]).values()]
    plain = {msgspec.structs.replace(spec, codec=specs[0].codec, cut=CUT) for spec in specs}
    assert plain == {msgspec.structs.replace(specs[0], cut=CUT)}
    assert [spec.cut for spec in specs if spec.codec.name != "none"] == [CUT] * (len(specs) - 1)


def test_without_a_codec_the_model_is_in_one_piece_and_its_bytes_are_of_a_cut_one() -> None:
    spec = spec_of(SIZE, rows_of(SIZE)["none"], seed=0, steps=1)
    assert spec.cut == Cut(stages=1)
    assert all(4 * SIZE.d_model < way < 4 * SIZE.d_model + 2 for way in bytes_per_token(spec))


@pytest.mark.parametrize("name", SIZES)
def test_every_size_sees_its_tokens_whole_steps(name: str) -> None:
    size = SIZES[name]
    spec = spec_of(size, rows_of(size)["none"], seed=0, steps=steps_of(size))
    each = spec.batch.sequences * spec.model.context
    assert 0 <= spec.optimizer.steps * each - size.tokens < each
    assert spec.evaluation.microbatches * each >= 49_152


def test_the_control_has_the_parts_of_the_codec_it_stands_beside() -> None:
    rows = rows_of(SIZE)
    assert rows["cut"].severed
    assert rows["cut"].codec == rows["codec"].codec


def test_the_anchored_row_lacks_only_the_narrowing() -> None:
    row, codec = rows_of(SIZE)["anchored"], rows_of(SIZE)["codec"]
    assert row.codec.anchor_order == codec.codec.anchor_order
    assert row.codec.forward == row.codec.backward == ((0, 32),)
    specs = [spec_of(SIZE, each, seed=0, steps=1) for each in (row, codec)]
    names = [
        {*found.sender_shapes(spec.model), *found.receiver_shapes(spec.model)}
        for spec in specs
        if (found := bottleneck_at(spec, 2)) is not None
    ]
    assert names[1] - names[0] == {"bottleneck.2.encoder.weight", "bottleneck.2.decoder.weight"}
    assert names[0] < names[1]


@pytest.mark.parametrize(
    ("name", "forward", "backward", "ratio"),
    [("28x", 9.0, 8.0, 28.0), ("127x-narrow", 4.03, 4.0, 127.0), ("127x", 8.06, 7.0, 127.0)],
)
def test_sizes_keep_their_bytes_ids_and_headers_counted(
    name: str, forward: float, backward: float, ratio: float
) -> None:
    size = SIZES[name]
    spec = spec_of(size, rows_of(size)["codec"], seed=0, steps=1)
    up, down = bytes_per_token(spec)
    assert up < forward
    assert down < backward
    assert 2 * size.d_model / max(up, down) > ratio


@pytest.mark.parametrize(("name", "width", "bits"), [("k18 int3", 18, 3), ("k27 int2", 27, 2)])
def test_any_latents_can_be_asked_for(name: str, width: int, bits: int) -> None:
    codec = row_named(SIZE, name).codec
    assert (codec.width, codec.forward, codec.backward) == (width, ((0, bits),), ((0, bits),))
    assert row_named(SIZE, "codec") == rows_of(SIZE)["codec"]
    with pytest.raises(KeyError):
        row_named(SIZE, "k18 int5")
