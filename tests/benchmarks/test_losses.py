"""The table: equal runs but for what stands at the boundaries, and what is made of their losses."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks.losses import (
    SIZES,
    Table,
    bytes_per_token,
    cli,
    line,
    plot,
    rows_of,
    spec_of,
    summary,
)
from benchmarks.trainings import Progress
from p2ptrain.core.bottleneck import bottleneck_at

SIZE = SIZES["28x"]


def ended(**losses: float) -> dict[str, Progress]:
    return {
        f"{name.replace('_', ' ')}/{seed}": Progress(val_loss=loss + 0.1 * seed)
        for name, loss in losses.items()
        for seed in range(2)
    }


@pytest.mark.parametrize("name", SIZES)
def test_rows_differ_in_their_codec_alone(name: str) -> None:
    specs = [spec_of(SIZES[name], row, seed=1, steps=9) for row in rows_of(SIZES[name]).values()]
    plain = {msgspec.structs.replace(spec, codec=specs[0].codec) for spec in specs}
    assert plain == {specs[0]}


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
    table = summary(SIZE, ended(none=1.0, anchored=0.9, codec=0.95, cut=1.3))
    assert table["codec"]["gap_to_anchored"] == pytest.approx(1.0 / 0.95 - 1)


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


def test_gap_and_recovery_are_of_medians_over_seeds() -> None:
    table = summary(SIZE, ended(none=1.0, codec=1.1, cut=1.3))
    assert table["codec"]["val_loss"] == pytest.approx(1.15)
    assert table["codec"]["gap"] == pytest.approx(1.15 / 1.05 - 1)
    assert table["codec"]["recovery"] == pytest.approx(2 / 3)
    assert table["cut"]["recovery"] == 0
    assert table["cut"]["ratio_vs_bf16"] is None
    assert table["none"]["recovery"] is None
    assert table["none"]["gap"] == 0


def test_without_its_control_a_codec_has_no_recovery() -> None:
    table = summary(SIZE, ended(none=1.0, codec=1.1))
    assert table["codec"]["recovery"] is None
    assert "recovery -" in line("codec", table["codec"])


def test_a_row_that_there_is_not_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    told = CliRunner().invoke(cli, ["--rows", "none,nope", "--state", str(tmp_path)])
    assert told.exit_code == 2
    assert "no row nope; there are: none, bf16, codec" in told.output


def test_rows_are_kept_as_they_end_and_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    Table("losses", path, "c0ffee").add("none/0", Progress(val_loss=1.0), SIZE)
    table = Table("losses", path, "c0ffee")
    assert table.ended == {"none/0": Progress(val_loss=1.0)}
    table.add("cut/0", Progress(val_loss=2.0), SIZE)
    assert msgspec.json.decode(path.read_bytes())["table"]["cut"]["val_loss"] == 2.0


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(summary(SIZE, ended(none=1.0, codec=1.1, cut=1.3)), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0
