"""The fault matrix judges by what fired, what was promised, and how long it took."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from benchmarks import faults
from benchmarks.faults import ROWS, Result, Row, judged, spec_of, table
from p2ptrain.observe.report import Facts, Report, Spread, build_report
from p2ptrain.sim.faults import parse
from p2ptrain.sim.points import POINTS, OnWire

ROW = next(row for row in ROWS if row.name == "kill as leader")
FACTS = Facts(
    run_id="feed", commit="c0ffee", seed=0, peers=6, stages=2, replicas=[3, 3], seconds=60.0,
    verified=True,
)  # fmt: skip


def report(*, fired: int = 1, recovery: float | None = 2.0) -> Report:
    return msgspec.structs.replace(
        build_report([], FACTS),
        faults={ROW.fired: fired, "kill": fired} if fired else {},
        recovery_seconds=Spread(median=recovery, max=recovery),
    )


def test_a_row_whose_fault_fired_and_that_recovered_has_no_problem() -> None:
    result = judged(ROW, report(), [])
    assert result == Result(
        name="kill as leader", fired=1, verified=True, lost=0, twice=0, replayed=0, orphans=0,
        recovery_seconds=2.0, seconds=60.0, problem="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "troubles", "problem"),
    [
        (report(fired=0), [], "the fault has not fired"),
        (report(), ["the weights are not those of one process"], "the weights are not"),
        (report(recovery=None), [], "nothing shows that it recovered"),
        (report(recovery=11.0), [], "recovered in 11.0 s, 10 s are allowed"),
    ],
)
def test_every_promise_is_looked_at(seen: Report, troubles: list[str], problem: str) -> None:
    assert judged(ROW, seen, troubles).problem.startswith(problem)


def test_a_row_that_is_short_of_memory_must_have_used_the_disk() -> None:
    row = next(row for row in ROWS if row.retained is not None)
    seen = msgspec.structs.replace(report(), faults={row.fired: 1})
    assert judged(row, seen, []).problem == "0 frames spilled, 0 read back"
    used = msgspec.structs.replace(seen, frames_spilled=9, spill_reads=2)
    assert judged(row, used, []).problem == ""
    assert spec_of(0, row.retained).limits.retained_bytes < spec_of(0).limits.retained_bytes


def test_every_row_can_be_played() -> None:
    for row in ROWS:
        parse(row.chaos)
        if row.halt_at is not None:
            point = POINTS[row.halt_at.partition(":")[2]]
            assert isinstance(point, OnWire)
            assert point.side == "sent"
    assert len({row.name for row in ROWS}) == len(ROWS) == 11
    assert spec_of(3).seed == 3


def test_the_table_has_a_row_each() -> None:
    assert table([judged(ROW, report(), []), Result(name="p2pd", problem="stuck")]).row_count == 2


def test_a_matrix_that_is_interrupted_tells_what_it_has_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def play(row: Row, seed: int) -> Result:
        if row is ROWS[1]:
            raise KeyboardInterrupt
        return Result(name=row.name, fired=1, problem="")

    monkeypatch.setattr(faults, "play", play)
    path = tmp_path / "faults.json"
    told = CliRunner().invoke(faults.main, ["--output", str(path)])
    assert told.exit_code == 1
    kept = msgspec.json.decode(path.read_bytes())
    assert [each["name"] for each in kept["rows"]] == [ROWS[0].name]
