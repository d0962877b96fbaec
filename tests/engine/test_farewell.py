"""A finished peer stays for those behind, not for ever, and says what it leaves with."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.assignment import SeatView
from p2ptrain.core.chain import genesis_chain
from p2ptrain.engine.farewell import linger, sum_up
from p2ptrain.engine.roster import Roster
from p2ptrain.sim import loop
from p2ptrain.units import Chain, PeerId, RunId, Stage, Step
from p2ptrain.wire.messages import SeatStatus

ME, MATE = PeerId("me"), PeerId("mate")
FINAL = 4
GENESIS = genesis_chain(RunId("0" * 32))


def status(version: int, stage: int = 0, state: Any = "serving") -> SeatStatus:
    return SeatStatus(
        stage=Stage(stage), state=state, version=Step(version), rate=1.0, queue=0, parked=0
    )


def view(peer: PeerId, state: Any) -> SeatView:
    return SeatView(peer=peer, stage=Stage(0), state=state, rate=1.0, version=Step(0))


def stayed(roster: Roster, *, arrives_at: float | None, seconds: float = 30.0) -> float:
    """How long a peer lingers whose mate takes the last step at ``arrives_at``."""

    async def main() -> float:
        clock = asyncio.get_running_loop()
        if arrives_at is not None:
            clock.call_at(arrives_at, lambda: roster.hear(MATE, [status(FINAL)]))
        await linger(roster, ME, (Stage(0),), final=FINAL, seconds=seconds)
        return clock.time()

    return loop.run(main(), ceiling_seconds=100.0)


@pytest.mark.parametrize("mates", [[], [FINAL], [FINAL + 1]])
def test_with_nobody_behind_it_goes_at_once_however_far_it_is_itself(mates: list[int]) -> None:
    roster = Roster(ME)
    roster.hear(ME, [status(0)])
    for version in mates:
        roster.hear(MATE, [status(version)])
    assert stayed(roster, arrives_at=None) == 0.0


def test_it_stays_until_the_last_one_is_there() -> None:
    roster = Roster(ME)
    roster.hear(MATE, [status(FINAL - 1)])
    assert 7.0 <= stayed(roster, arrives_at=7.0) <= 7.2


@pytest.mark.parametrize("seconds", [0.0, 0.5, 30.0])
def test_its_patience_ends(seconds: float) -> None:
    roster = Roster(ME)
    roster.hear(MATE, [status(FINAL - 1)])
    assert seconds <= stayed(roster, arrives_at=None, seconds=seconds) <= seconds + 0.2


def test_a_suspect_is_not_waited_for() -> None:
    roster = Roster(ME)
    roster.hear(MATE, [status(FINAL - 1)])
    roster.lost(MATE)
    assert stayed(roster, arrives_at=None) == 0.0


@pytest.mark.parametrize(("stage", "state"), [(1, "joining"), (2, "serving")])
def test_who_joins_another_stage_and_who_is_not_beside_us_is_not_waited_for(
    stage: int, state: str
) -> None:
    roster = Roster(ME)
    roster.hear(MATE, [status(FINAL - 1, stage, state)])
    assert stayed(roster, arrives_at=None) == 0.0


def test_who_loads_a_seat_of_ours_is_waited_for_unless_only_the_directory_says_so() -> None:
    roster = Roster(ME)
    roster.list([view(MATE, "joining")])
    assert stayed(roster, arrives_at=None) == 0.0
    roster.hear(MATE, [status(0, state="joining")])
    assert 7.0 <= stayed(roster, arrives_at=7.0) <= 7.2
    roster.hear(PeerId("newcomer"), [status(0, state="joining")])
    roster.left(PeerId("newcomer"))
    assert stayed(roster, arrives_at=None) == 0.0


def through(version: int, above: int) -> SeatStatus:
    return SeatStatus(
        stage=Stage(1),
        state="serving",
        version=Step(version),
        rate=1.0,
        queue=0,
        parked=0,
        least_above=Step(above),
        least_below=Step(0),  # which is us
    )


def test_those_beyond_are_waited_for_as_those_beside_say() -> None:
    roster, said = Roster(ME), list[float]()
    roster.hear(MATE, [through(FINAL, FINAL - 1)])

    async def main() -> float:
        clock = asyncio.get_running_loop()
        clock.call_at(3.0, lambda: roster.hear(MATE, [through(FINAL, FINAL)]))
        tell = lambda: said.append(clock.time())  # noqa: E731 - one line says it
        await linger(roster, ME, (Stage(0),), final=FINAL, seconds=30.0, tell=tell)
        return clock.time()

    assert 3.0 <= loop.run(main(), ceiling_seconds=100.0) <= 3.2
    assert said[-1] >= 3.0  # the others hear it from us before we go


def seat(stage: int, *, finished: bool, chain: Chain | None) -> Any:
    async def tensor_digests() -> dict[str, str]:
        return {f"layer.{stage}": f"{stage:02x}"}

    return SimpleNamespace(
        version=Step(FINAL),
        finished=finished,
        compute=SimpleNamespace(tensor_digests=tensor_digests),
        stepper=SimpleNamespace(last=None if chain is None else SimpleNamespace(chain=chain)),
    )


@pytest.mark.parametrize(
    ("finished", "whole"), [([], False), ([True, False], False), ([True], True)]
)
def test_it_has_finished_if_it_has_seats_and_all_of_them_have(
    finished: list[bool], *, whole: bool
) -> None:
    seats = {Stage(s): seat(s, finished=f, chain=None) for s, f in enumerate(finished)}
    result = loop.run(sum_up(seats, GENESIS, false_suspicions=0))
    assert result.finished is whole
    assert result.chain == GENESIS


def test_it_leaves_with_all_its_seats_in_order() -> None:
    chain = Chain(bytes(32))
    seats = {Stage(s): seat(s, finished=True, chain=chain) for s in (2, 0)}
    result = loop.run(sum_up(seats, GENESIS, false_suspicions=3))
    assert list(result.versions.items()) == [(0, FINAL), (2, FINAL)]
    assert result.tensor_digests == {"layer.0": "00", "layer.2": "02"}
    assert (result.chain, result.false_suspicions) == (chain, 3)
