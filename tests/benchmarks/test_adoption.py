"""The table of lossy adoptions has all rows, their bytes and their losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks.adoption import EVERY, ROWS, main

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_row_trains_and_few_bits_take_few_bytes(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    flags = ["--seeds", "0", "--steps", str(3 * EVERY), "--out", str(out)]
    done = CliRunner().invoke(main, flags)
    assert done.exit_code == 0, done.output
    rows = msgspec.json.decode(out.read_bytes())["rows"]
    assert set(rows) == set(ROWS)
    sizes = {row: rows[row]["adoption_bytes"] for row in rows}
    assert sizes["exact"] > 3.2 * sizes["int8"]
    assert sizes["exact"] > 5 * sizes["int4"]
    assert sizes["int4"] == sizes["int4, no feedback"] == sizes["int4, moments exact"]
    losses = {row: rows[row]["val_loss"][0] for row in rows}
    assert len(set(losses.values())) == len(losses)  # every row trains in its own way
    assert max(losses.values()) < min(losses.values()) * 1.2
