"""Soaking runs every seed it was given, names what failed, and repeats it from one line."""

import asyncio
import shlex
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from p2ptrain.sim.blows import Blow
from p2ptrain.sim.drawing import FAMILIES, Family, draw
from p2ptrain.sim.swarms import Outcome, run
from peers.soak import Totals, describe, main, soak, summary


def outcome(end: str = "stalled", **fired: int) -> Outcome:
    return Outcome(
        plan=draw(7),
        end=end,  # type: ignore[arg-type]  # the tests name the ends
        reason="nobody moved",
        event_log_hash="ab12",
        fired={name.replace("_", " "): count for name, count in fired.items()},
    )


def test_a_failure_says_how_to_see_it_again() -> None:
    text = describe(outcome(kill_at_sum_sent=1))
    assert "seed 7 stalled: nobody moved [kill at sum sent (1)]" in text
    assert "python -m peers.soak --family plain --seed 7" in text
    assert "git checkout" in text
    assert "ab12" in text


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_line_of_a_failure_repeats_it_in_every_family(kind: Family) -> None:
    seen = run(FAMILIES[kind](2))
    line = describe(seen).partition("python -m peers.soak ")[2].partition("  ")[0]
    done = CliRunner().invoke(main, shlex.split(line))
    assert done.exit_code == 0, done.output
    assert msgspec.json.decode(done.output, type=Outcome) == seen


def test_totals_count_ends_faults_and_points_and_keep_failures() -> None:
    totals = Totals()
    totals.add(outcome("trained", kill_at_sum_sent=2, freeze_at_counting=1))
    totals.add(outcome("bereft", kill_at_counting=1))
    totals.add(outcome("violated"))
    assert totals.by_kind() == {"freeze": 1, "kill": 3}
    assert totals.by_point() == {"counting": 2, "sum sent": 2}
    assert [each.end for each in totals.failures] == ["violated"]
    assert next(iter(summary(totals))) == "1 bereft, 1 trained, 1 violated"


def test_a_plan_goes_through_a_file_and_comes_to_the_same(tmp_path: Path) -> None:
    blow = Blow(kind="freeze", point="plan arrived", nth=1, seconds=2.0)
    plan = msgspec.structs.replace(draw(3), blows=(blow,))
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    done = CliRunner().invoke(main, ["--plan", str(path)])
    assert done.exit_code == 0, done.output
    assert msgspec.json.decode(done.output, type=Outcome) == run(plan)


def test_what_is_no_plan_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"seed": "many"}')
    done = CliRunner().invoke(main, ["--plan", str(path)])
    assert done.exit_code == 2
    assert "is no plan" in done.output


@pytest.mark.timeout(60)
def test_seeds_are_dealt_to_processes() -> None:
    done = CliRunner().invoke(main, ["--seeds", "6", "--first", "0", "--workers", "2"])
    assert done.exit_code == 0, done.output
    assert "trained" in done.output


@pytest.mark.timeout(60)
def test_processes_run_the_family_that_was_asked_for() -> None:
    fired = {kind: run(FAMILIES[kind](2)).fired for kind in FAMILIES}
    assert fired["mixed"] != fired["plain"]
    assert asyncio.run(soak(range(2, 3), workers=2, kind="mixed")).fired == fired["mixed"]
