"""A swarm of unequal peers must not lose what its machines can do. Deterministic: virtual time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner

import benchmarks.capacity as module
from benchmarks.capacity import EACH, SUM_SECONDS, steps, stream
from benchmarks.rebalance import Phases, crowd, mend
from benchmarks.uneven import SLOWER, Swarm, Trouble, capacity, draw_speeds, lay_out
from benchmarks.watch import Watch
from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId, Stage, Step

if TYPE_CHECKING:
    from pathlib import Path

HALVED = Swarm(stages=2, replicas=4, microbatches=160)
MENDED_SECONDS = 150.0
DIES_AT = 15.0


def test_the_bound_is_the_weakest_stage() -> None:
    assert lay_out((1.0, 4.0, 2.0, 1.0), 2) == (1, 0, 1, 1)
    assert capacity((1.5, 6.0, 3.0, 1.5), (1, 0, 1, 1), 2) == 4.0
    assert min(draw_speeds(20, "x")) < 0.3


def test_whole_steps_of_unequal_peers_use_most_of_the_capacity() -> None:
    swarm = Swarm(stages=2, replicas=2, microbatches=EACH * 4, steps=2, sum_seconds=SUM_SECONDS)
    found = steps(swarm, "step")
    assert found.live == found.bound
    assert 0.6 < found.of_bound < 1.0
    assert found.of_bound <= found.work / found.bound < 1.1 * found.of_bound


def test_a_stream_uses_nearly_all(capsys: pytest.CaptureFixture[str]) -> None:
    found = stream(Swarm(stages=2, replicas=2, microbatches=160), "stream")
    assert 0.9 < found.of_bound < 1.1
    told = capsys.readouterr().err.splitlines()  # nobody waits in the dark
    assert [line.split()[0] for line in told[:2]] == ["30", "60"]


def test_what_has_been_found_is_written_after_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "mending", lambda *, seed, **_: {"name": "mend", "seed": seed})
    monkeypatch.setattr(module, "joining", fail)
    out = tmp_path / "out.json"
    CliRunner().invoke(module.cli, ["--only", "mend", "--only", "join", "--out", str(out)])
    assert msgspec.json.decode(out.read_bytes())["cases"] == [{"name": "mend", "seed": 0}]
    draws = ["--seed", "3", "--seed", "5", "--only", "mend", "--out", str(out)]
    CliRunner().invoke(module.cli, draws)
    assert [case["seed"] for case in msgspec.json.decode(out.read_bytes())["cases"]] == [3, 5]


@pytest.mark.timeout(120)
def test_a_stage_that_lost_half_is_mended_and_nobody_moves_in_calm() -> None:
    found = mend(HALVED, Phases(settle_seconds=60.0, rest_seconds=60.0))
    assert found.moves_per_hour == 0
    assert found.after < 0.7
    assert found.recovery_seconds is not None
    assert found.recovery_seconds < MENDED_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(1, 4))
def test_it_is_mended_in_time_whoever_is_lost(seed: int) -> None:
    found = mend(replace(HALVED, seed=seed), Phases(settle_seconds=100.0, rest_seconds=20.0))
    assert found.recovery_seconds is not None
    assert found.recovery_seconds < MENDED_SECONDS


def test_who_is_told_where_to_begin_alone_moves_to_a_stage_that_lost_much() -> None:
    class Loses(Watch):
        """Stage 1 loses its fastest peer."""

        def began(self) -> None:
            super().began()
            fastest = max(
                (peer for peer in self.hosts.values() if peer.plan.stage == 1),
                key=lambda host: host.plan.speed,
            )
            self.harm.later(DIES_AT, lambda: self.harm.kill(fastest, respawn_seconds=None))

    def moves(*, free: bool) -> int:
        watch = Loses(replace(HALVED, free=free), until_counted=150)
        watch.run()
        assert watch.harm.tally.fired() == {"kill": 1}
        return sum(stage == 1 for at, _, stage in watch.opened if at > DIES_AT)

    assert moves(free=False) == 0
    assert moves(free=True) > 0


def test_a_seat_that_is_given_up_counts_while_it_has_work() -> None:
    """All of its peer's time is the other seat's, from when nothing is left in it."""
    watch = Watch(Swarm(stages=2, replicas=2, microbatches=8))
    watch.clock = SimpleNamespace(time=lambda: 1.0)  # type: ignore[assignment]
    pipeline = SimpleNamespace(drained=False)
    seats = {
        Stage(0): SimpleNamespace(state="draining", pipeline=pipeline),
        Stage(1): SimpleNamespace(state="serving", pipeline=pipeline),
    }
    plan, node = SimpleNamespace(speed=3.0), SimpleNamespace(seats=seats)
    peer = PeerId("mover")
    watch.hosts[peer] = SimpleNamespace(plan=plan, node=node)  # type: ignore[assignment]
    for stage in seats:
        watch.emit(peer, ev.SeatOpened(stage=stage, version=Step(0), reason=""))
    assert watch.rates() == {Stage(0): 1.0, Stage(1): 1.0}
    pipeline.drained = True
    assert watch.rates() == {Stage(0): 0.0, Stage(1): 2.0}


def test_who_is_slowed_counts_as_slow_as_it_is() -> None:
    stormy = Trouble(slow_share=0.5, slow_seconds=20.0)
    watch = Watch(replace(HALVED, trouble=stormy), until_counted=80)
    watch.run()
    assert watch.harm.tally.fired()["slow"] > 0
    stop = watch.clock.time()
    live, able = watch.live_capacity(5.0, stop), watch.able_capacity(5.0, stop)
    assert live == pytest.approx(HALVED.bound)
    assert live / SLOWER < able < live
    calm = Watch(HALVED, until_counted=20)
    calm.run()
    assert calm.able == calm.live


def test_many_who_come_at_once_spread() -> None:
    swarm = Swarm(stages=2, replicas=1, microbatches=60)
    assert crowd(swarm, joiners=9, joins_at=100.0, seconds=120.0) < 1.5
