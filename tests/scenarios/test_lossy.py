"""Peers of mixed devices that adopt states as differences: fewer bytes, and one state all the same.

Toy states share nothing with each other: whoever applied a difference to another base, or
adopted other bytes than its mates, would stand alone, and the root that its sender
names would tell. That no root ever tells is asserted here, for then a whole state would hide it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import pytest

from p2ptrain.engine import adopting
from p2ptrain.errors import InternalError
from p2ptrain.observe import events as ev
from p2ptrain.observe.traffic import wire_of
from p2ptrain.sim.drawing import draw_lossy
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult
from p2ptrain.sim.swarms import run
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.units import PeerId, Stage
from peers.soak import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from p2ptrain.sim.world import SimWorld

Kind = Literal["exact", "int8", "int4"]

PLAIN = toy_spec(stages=2, microbatches=6, steps=12, replicas=2)
SEEDS = range(25)

ASTRAY = "leads elsewhere"
"""Said of a difference that does not lead to the root which its sender names."""


def swarm(kind: Kind, *, late: bool = False) -> Scenario:
    spec = mixed_spec(PLAIN, canonical_steps=2, adoption=kind)
    plans = [
        PeerPlan(peer=PeerId(name), stage=Stage(int(name[1])), rounding=name, speed=0.1)
        for name in ("a0", "b0", "c0", "a1", "b1", "c1")
    ]
    if late:
        joiner = PeerPlan(
            peer=PeerId("late"), stage=Stage(1), rounding="late", starts_at=9.0, speed=0.1
        )
        plans.append(joiner)
    return Scenario(spec=spec, peers=plans, verify=False)


def roots(entries: Iterable[ev.Entry]) -> dict[tuple[int, int], list[bytes]]:
    found: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry.event, ev.StateAdopted):
            found[entry.event.version, entry.event.stage].append(entry.event.root)
    return dict(found)


def alarms(entries: Iterable[ev.Entry]) -> list[str]:
    return [entry.event.reason for entry in entries if isinstance(entry.event, ev.Alarm)]


def chunks(entries: Iterable[ev.Entry]) -> list[int]:
    events = (entry.event for entry in entries)
    return [e.frame_bytes for e in events if isinstance(e, ev.FrameSent) and e.what == "chunk"]


@pytest.mark.parametrize(("kind", "less"), [("int8", 3.5), ("int4", 6.5)])
def test_all_adopt_one_state_for_few_of_the_bytes(
    play: Callable[..., SwarmResult], kind: Kind, less: float
) -> None:
    exact, lossy = play(swarm("exact")), play(swarm(kind))
    for result in (exact, lossy):
        found = roots(result.entries)
        assert set(found) == {(version, stage) for version in range(2, 13, 2) for stage in (0, 1)}
        assert all(len(adopted) == 3 for adopted in found.values())
        assert all(len(set(adopted)) == 1 for adopted in found.values())
    assert alarms(lossy.entries) == []
    ends = [peer.tensor_digests for peer in lossy.peers.values() if Stage(0) in peer.versions]
    assert ends == [ends[0]] * 3
    whole = max(chunks(exact.entries))
    sizes = chunks(lossy.entries)
    few = [size for size in sizes if size < whole / less]
    assert len(few) == 20  # two mates, two stages, five adoptions; the last one is whole
    assert len(sizes) - len(few) == 4
    before, now = wire_of(exact.entries).state_bytes, wire_of(lossy.entries).state_bytes
    assert now < before / 2


def test_a_joiner_takes_the_whole_state_once_and_differences_from_then_on(
    play: Callable[..., SwarmResult],
) -> None:
    result = play(swarm("int8", late=True))
    found = roots(result.entries)
    assert len(found[12, 1]) == 4
    assert all(len(set(adopted)) == 1 for adopted in found.values())
    (alarm,) = alarms(result.entries)
    assert "alone vouches for its state until all adopt one" in alarm
    sizes = chunks(result.entries)
    whole = max(sizes)
    assert len([size for size in sizes if size > whole / 2]) == 4 + 1 + 2  # last, joining, first


def test_a_joiner_that_is_chosen_gives_its_whole_state_and_the_next_is_a_difference_again(
    play: Callable[..., SwarmResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, late = adopting.adoption_order, PeerId("late")

    def late_first(*record: Any) -> tuple[PeerId, ...]:
        return tuple(sorted(good(*record), key=lambda peer: peer != late))  # else as they were

    monkeypatch.setattr(adopting, "adoption_order", late_first)
    result = play(swarm("int4", late=True))
    found = roots(result.entries)
    assert all(len(set(adopted)) == 1 for adopted in found.values())
    assert not any(ASTRAY in alarm for alarm in alarms(result.entries))
    events = [entry.event for entry in result.entries]
    given = [e.version for e in events if isinstance(e, ev.StateAdopted) and e.source == late]
    versions = sorted(set(given))
    assert len(versions) >= 3  # whole, as a difference, and the last, whole again
    assert [given.count(version) for version in versions] == [4] * len(versions)
    sizes = chunks(result.entries)
    whole = max(sizes)
    assert len([size for size in sizes if size > whole / 2]) == 1 + 3 + (3 + 2)  # joining, first


def test_when_the_chosen_dies_the_others_take_what_one_of_them_has_or_the_next_gives(
    play: Callable[..., SwarmResult], cue: Callable[..., Any]
) -> None:
    def chosen(entry: ev.Entry) -> bool:
        event = entry.event
        own = isinstance(event, ev.StateAdopted) and event.source == entry.peer
        return own and (event.version, event.stage) == (4, 1)

    def kill(world: SimWorld, entry: ev.Entry) -> PeerId:
        world.kill(entry.peer)
        return entry.peer

    result = play(swarm("int8"), cue("kill", chosen, kill))
    found = roots(result.entries)
    assert len(set(found[4, 1][1:])) == 1  # the dead one's, or another that both have
    assert len(set(found[6, 1])) == 1
    assert not any(ASTRAY in alarm for alarm in alarms(result.entries))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_random_swarms_adopt_differences_through_faults_and_none_leads_astray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adopting, "MisbehaviourError", InternalError)  # astray ends the swarm here
    failed = [end for end in (run(draw_lossy(seed)) for seed in SEEDS) if end.failed]
    assert not failed, "\n".join(map(describe, failed))
