"""Peers that round each in its own way: one name for every sum, one state now and then.

Toy arithmetic with a rounding of its own for every peer shares no bit with its neighbours':
whatever is not agreed upon differs at once.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.chain import next_chain, sum_bytes
from p2ptrain.engine.committing import Committer
from p2ptrain.observe import events as ev
from p2ptrain.sim.drawing import draw_mixed
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.swarms import run
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.units import Digest, PeerId, Stage
from peers.soak import describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.sim.world import SimWorld

SPEC = mixed_spec(toy_spec(stages=2, microbatches=6, steps=12, replicas=2), canonical_steps=2)

SEEDS = (*range(40), 43, 169, 235, 20113, 61340, 61380, 62183)
"""Of those at the end three stood still once where seats were frozen or cut off (169 does until
one asks all what they have stepped with), one has a line break twice while a state comes over
it, in two a newcomer was soon the only one who could say what had led to its state, and in the
last, two seats of one peer stood apart."""


def mixed(*, late: bool = False) -> Scenario:
    names = ["a0", "b0", "c0", "a1", "b1", "c1"]
    plans = [
        PeerPlan(peer=PeerId(name), stage=Stage(int(name[1])), rounding=name, speed=0.1)
        for name in names
    ]
    if late:
        plans.append(
            PeerPlan(peer=PeerId("late"), stage=Stage(1), rounding="late", starts_at=9.0, speed=0.1)
        )
    return Scenario(spec=SPEC, peers=plans, verify=False)


def adoptions(result: SwarmResult) -> dict[tuple[int, int], list[ev.Entry]]:
    found: defaultdict[tuple[int, int], list[ev.Entry]] = defaultdict(list)
    for entry in result.entries:
        if isinstance(entry.event, ev.StateAdopted):
            found[entry.event.version, entry.event.stage].append(entry)
    return found


def roots(entries: list[ev.Entry]) -> set[bytes]:
    return {entry.event.root for entry in entries if isinstance(entry.event, ev.StateAdopted)}


def test_sums_agree_in_every_step_and_states_after_every_adoption(
    play: Callable[..., SwarmResult],
) -> None:
    result = play(mixed())
    sums: defaultdict[tuple[int, int], set[bytes]] = defaultdict(set)
    for entry in result.entries:
        if isinstance(entry.event, ev.StepCommitted):
            sums[entry.event.step, entry.event.stage].add(entry.event.digest)
    assert {len(names) for names in sums.values()} == {1}
    found = adoptions(result)
    assert set(found) == {(version, stage) for version in range(2, 13, 2) for stage in (0, 1)}
    for entries in found.values():
        assert len(entries) == 3
        assert len(roots(entries)) == 1
    ends = [peer.tensor_digests for peer in result.peers.values() if Stage(0) in peer.versions]
    assert ends == [ends[0]] * 3


@pytest.mark.parametrize(
    ("version", "stage"),
    [
        pytest.param(4, 1, id="one after the other"),
        pytest.param(8, 0, id="while they ask each other"),
    ],
)
def test_when_the_chosen_dies_the_others_take_the_next(
    play: Callable[..., SwarmResult], cue: Callable[..., Any], version: int, stage: int
) -> None:
    def chosen(entry: ev.Entry) -> bool:
        event = entry.event
        own = isinstance(event, ev.StateAdopted) and event.source == entry.peer
        return own and (event.version, event.stage) == (version, stage)

    def kill(world: SimWorld, entry: ev.Entry) -> PeerId:
        world.kill(entry.peer)
        return entry.peer

    result = play(mixed(), cue("kill", chosen, kill))
    entries = adoptions(result)[version, stage]
    assert entries[0].event.source == entries[0].peer
    assert len(roots(entries[1:])) == 1
    assert len(entries) == 3
    assert len(roots(adoptions(result)[version + 2, stage])) == 1


def test_a_joiner_takes_one_owners_word_and_the_next_adoption_makes_it_equal(
    play: Callable[..., SwarmResult],
) -> None:
    result = play(mixed(late=True))
    alarms = [e.event.reason for e in result.entries if isinstance(e.event, ev.Alarm)]
    assert any("alone vouches for its state until all adopt one" in alarm for alarm in alarms)
    last = adoptions(result)[12, 1]
    assert PeerId("late") in {entry.peer for entry in last}
    assert len(roots(last)) == 1


@pytest.mark.parametrize("over", [0, 1], ids=["the lower stage comes over", "the upper does"])
def test_a_run_that_has_come_in_two_becomes_one(
    play: Callable[..., SwarmResult], monkeypatch: pytest.MonkeyPatch, over: int
) -> None:
    """Stage 1 takes the fifth step with another name of the sum of stage 0 than stage 0 does."""
    good, teller = Committer.commit, PeerId("c0")

    def other(whole: Sum, name: int) -> Sum:
        digest = Digest(bytes([name]) * 32)
        named = msgspec.structs.replace(whole, digest=digest, publisher=teller, incarnation=2)
        signature = SimSigner(teller).sign(sum_bytes(named))
        return msgspec.structs.replace(named, signature=signature)

    async def commit(self: Any, at: Position, sums: tuple[Sum, ...]) -> None:
        if at.step == 4 and self._compute.stage == 1:
            names = [(other(sums[0], name), sums[1]) for name in range(16)]
            ranked = sorted([sums, *names], key=partial(next_chain, at.chain, at.epoch, at.step))
            sums = ranked[-over]  # of the smallest chain, or of the largest
        await good(self, at, sums)

    monkeypatch.setattr(Committer, "commit", commit)
    result = play(mixed())
    chains: defaultdict[int, set[bytes]] = defaultdict(set)
    opened = set()
    for entry in result.entries:
        if isinstance(entry.event, ev.StepCommitted):
            chains[entry.event.step].add(entry.event.chain)
        elif isinstance(entry.event, ev.SeatOpened) and entry.event.version == 5:
            opened.add((entry.peer, entry.event.reason))
    assert opened == {(f"{n}{over}", "another name of the last step holds") for n in "abc"}
    assert {step for step, found in chains.items() if len(found) > 1} == {4}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_swarms_of_mixed_devices_end_without_a_false_word() -> None:
    failed = [outcome for outcome in map(run, map(draw_mixed, SEEDS)) if outcome.failed]
    assert not failed, "\n".join(map(describe, failed))
