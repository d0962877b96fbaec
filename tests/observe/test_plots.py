"""Plots are drawn where matplotlib is, from whatever was seen."""

from pathlib import Path

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.observe.plots import INSTALL_LINE, write_plots
from p2ptrain.observe.report import Facts, build_report
from p2ptrain.units import PeerId, Stage, Step

FACTS = Facts(
    run_id="feed", commit="", seed=1, peers=1, stages=1, replicas=[1], seconds=1.0,
    baseline_val_loss=2.0,
)  # fmt: skip
SEATS = [
    ev.Entry(at=0.0, peer=PeerId("a"), event=each)
    for each in (
        ev.SeatOpened(stage=Stage(0), version=Step(0), reason=""),
        ev.SeatClosed(stage=Stage(0), reason=""),
    )
]


@pytest.mark.parametrize("entries", [[], SEATS])
def test_three_pictures(tmp_path: Path, entries: list[ev.Entry]) -> None:
    pytest.importorskip("matplotlib")
    paths = write_plots(build_report(entries, FACTS), entries, tmp_path)
    assert [path.name for path in paths] == ["loss.png", "steps.png", "seats.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_matplotlib_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert write_plots(build_report([], FACTS), [], tmp_path) == []
    assert "pip install" in INSTALL_LINE
