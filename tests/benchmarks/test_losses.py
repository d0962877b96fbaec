"""What is made of the losses of rows, and how a table is kept."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks.losses import Table, cli, line, plot, summary
from benchmarks.rows import SIZES
from benchmarks.trainings import Progress
from p2ptrain.errors import UserError
from p2ptrain.units import RunId

SIZE = SIZES["28x"]


def ended(**losses: float) -> dict[str, Progress]:
    return {
        f"{name.replace('_', ' ')}/{seed}": Progress(val_loss=loss + 0.1 * seed)
        for name, loss in losses.items()
        for seed in range(2)
    }


def test_gap_and_recovery_are_of_medians_over_seeds() -> None:
    table = summary(SIZE, ended(none=1.0, codec=1.1, cut=1.3))
    assert table["codec"]["val_loss"] == pytest.approx(1.15)
    assert table["codec"]["gap"] == pytest.approx(1.15 / 1.05 - 1)
    assert table["codec"]["recovery"] == pytest.approx(2 / 3)
    assert table["cut"]["recovery"] == 0
    assert table["cut"]["ratio_vs_bf16"] is None
    assert table["none"]["recovery"] is None
    assert table["none"]["gap"] == 0


def test_a_codec_is_also_held_against_the_anchors_alone() -> None:
    table = summary(SIZE, ended(none=1.0, anchored=0.9, codec=0.95, cut=1.3))
    assert table["codec"]["gap_to_anchored"] == pytest.approx(1.0 / 0.95 - 1)


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


def test_a_curve_is_thinned_and_its_end_is_not(tmp_path: Path) -> None:
    whole = Progress(loss=[(step, 1.0) for step in range(801)], val_loss=1.0)
    table = Table("losses", tmp_path / "table.json", "c0ffee", "cuda")
    table.add("none/0", whole, SIZE)
    kept = table.ended["none/0"]
    assert kept.val_loss == 1.0
    assert [step for step, _ in kept.loss] == list(range(0, 801, 9))


def test_two_commands_write_one_table(tmp_path: Path) -> None:
    one, other = (Table("losses", tmp_path / "table.json", "c0ffee") for _ in range(2))
    one.add("none/0", Progress(val_loss=1.0), SIZE)
    other.add("cut/0", Progress(val_loss=2.0), SIZE)
    assert Table("losses", tmp_path / "table.json", "c0ffee").ended == other.ended
    assert set(other.ended) == {"none/0", "cut/0"}


def test_who_reads_while_another_writes_reads_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.json"
    Table("losses", path, "c0ffee").add("none/0", Progress(val_loss=1.0), SIZE)
    good = Path.write_bytes

    def halfway(self: Path, data: bytes) -> int:
        good(self, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", halfway)
    with pytest.raises(KeyboardInterrupt):
        Table("losses", path, "c0ffee").add("cut/0", Progress(val_loss=2.0), SIZE)
    assert set(Table("losses", path, "c0ffee").ended) == {"none/0"}


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(["--rows", "k0 int4"], id="no values"),
        pytest.param(["--rows", "k900 int4"], id="wider than the model"),
        pytest.param(["--rows", "nothing"], id="no row"),
        pytest.param(["--seeds", "0,one"], id="no seed"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(tmp_path: Path, asked: list[str]) -> None:
    told = CliRunner().invoke(cli, [*asked, "--out", str(tmp_path / "table.json")])
    assert told.exit_code == 2
    assert "Invalid value" in told.output
    assert not (tmp_path / "table.json").exists()


def test_a_row_that_another_commit_or_machine_has_trained_stays_theirs(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    Table("losses", path, "c0ffee", "cuda").add("none/0", Progress(val_loss=1.0), SIZE)
    held = msgspec.json.decode(path.read_bytes())
    del held["origins"]  # as it was written before there were any
    path.write_bytes(msgspec.json.encode(held))
    Table("losses", path, "decade").add("cut/0", Progress(val_loss=2.0), SIZE)
    origins = msgspec.json.decode(path.read_bytes())["origins"]
    assert origins == {"none/0": ["c0ffee", "cuda"], "cut/0": ["decade", "cpu"]}


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(summary(SIZE, ended(none=1.0, codec=1.1, cut=1.3)), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0


def test_a_table_is_told_and_drawn_from_its_file_alone(tmp_path: Path) -> None:
    """Whoever trained it, and of whichever settings."""
    pytest.importorskip("matplotlib")
    path, picture = tmp_path / "table.json", tmp_path / "loss.png"
    table = Table("losses", path, "c0ffee", "cuda")
    for key, loss in (("none/0", 1.0), ("k18 int3/0", 1.1), ("cut/0", 1.3)):
        table.add(key, Progress(run=RunId("feed"), val_loss=loss), SIZE)
    written = path.read_bytes()
    told = CliRunner().invoke(cli, ["--told", "--out", str(path), "--plot", str(picture)])
    assert told.exit_code == 0, told.output
    assert [line.split("  ")[0] for line in told.output.splitlines()] == ["none", "k18 int3", "cut"]
    assert "recovery 0.67" in told.output
    assert picture.stat().st_size > 0
    assert path.read_bytes() == written


def test_a_row_of_other_settings_is_refused_not_skipped(tmp_path: Path) -> None:
    table = Table("losses", tmp_path / "table.json", "c0ffee")
    table.add("none/0", Progress(run=RunId("feed"), val_loss=1.0), SIZE)
    table.add("cut/0", Progress(val_loss=2.0), SIZE)
    assert table.holds("none/0", RunId("feed"))
    assert table.holds("cut/0", RunId("feed"))  # an old file does not say
    assert not table.holds("codec/0", RunId("feed"))
    with pytest.raises(UserError, match="none/0 is of a run with other settings"):
        table.holds("none/0", RunId("beef"))
