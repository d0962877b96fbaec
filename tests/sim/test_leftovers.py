"""What a peer leaves behind is seen: in its own house, and in the houses of others."""

import asyncio
from collections.abc import Callable

import pytest

from p2ptrain.engine.presence import WITHDRAW_GAP_SECONDS, WITHDRAW_TRIES
from p2ptrain.observe import events as ev
from p2ptrain.sim.directory import HEARING_SECONDS
from p2ptrain.sim.leftovers import NOTICE_SECONDS, check_leftovers
from p2ptrain.sim.scenario import Scenario, crowd
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, RunId, Step

A, B = PeerId("a"), PeerId("b")
NOTHING = ev.Remains(tasks=0, streams=0, records=0)
LATE = 10.0 + NOTICE_SECONDS + 1.0


def at(time: float, peer: PeerId, event: ev.AnyEvent) -> ev.Entry:
    return ev.Entry(at=time, peer=peer, event=event)


def story(*more: ev.Entry) -> list[ev.Entry]:
    """A has a link to B, which dies at 10 s; long after, A still says something."""
    begins = [
        at(0.0, A, ev.LinkUp(peer=B)),
        at(10.0, B, ev.FaultFired(fault="kill", target=B)),
        at(10.5, B, NOTHING),
        at(LATE + 300.0, A, ev.Alarm(reason="still here")),
    ]
    return sorted([*begins, *more], key=lambda entry: entry.at)


def test_a_link_that_outlives_its_peer_is_seen() -> None:
    verdict = check_leftovers(story())
    assert verdict.problems == ("a keeps a link to b, which has ended",)
    assert verdict.facts == 2


@pytest.mark.parametrize(
    "excuse",
    [
        at(40.0, A, ev.LinkDown(peer=B, reason="silence")),
        at(40.0, B, ev.PeerStarted(run=RunId("r"), addresses=())),
        at(40.0, A, ev.PeerStopped(reason="done")),
        at(40.0, A, ev.FaultFired(fault="kill", target=A)),
        at(40.0, A, ev.RunEnded(step=Step(3), reason="done")),
    ],
)
def test_who_noticed_or_could_not_is_not_blamed(excuse: ev.Entry) -> None:
    assert check_leftovers(story(excuse)).holds


def test_a_frozen_witness_has_its_time_when_it_wakes() -> None:
    frozen = [
        at(12.0, A, ev.FaultFired(fault="freeze", target=A)),
        at(LATE - 5.0, A, ev.FaultFired(fault="thaw", target=A)),
    ]
    down = at(LATE + 20.0, A, ev.LinkDown(peer=B, reason="silence"))
    assert check_leftovers(story(*frozen, down)).holds
    assert not check_leftovers(story(*frozen)).holds


@pytest.mark.parametrize("left", [{"tasks": 1}, {"streams": 2}, {"records": 3}])
def test_whatever_lives_on_is_seen(left: dict[str, int]) -> None:
    remains = ev.Remains(**{"tasks": 0, "streams": 0, "records": 0, **left})
    verdict = check_leftovers([at(1.0, A, remains)])
    (what,) = left.items()
    assert verdict.problems == (f"1.000 s: a has ended and left {what[1]} {what[0]}",)


class Careless(SimWorld):
    """Leaves something in the house of the first that has opened a seat."""

    def __init__(self, leave: Callable[[SimWorld, PeerId], None]) -> None:
        super().__init__(
            Scenario(spec=toy_spec(stages=1, microbatches=4, steps=20), peers=crowd(2))
        )
        self.leave: Callable[[SimWorld, PeerId], None] | None = leave

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        super().emit(peer, event)
        if isinstance(event, ev.SeatOpened) and self.leave is not None:
            leave, self.leave = self.leave, None
            leave(self, peer)


def remains(leave: Callable[[SimWorld, PeerId], None]) -> list[ev.Remains]:
    result = Careless(leave).run()
    found = [entry.event for entry in result.entries if isinstance(entry.event, ev.Remains)]
    assert len(found) == 2
    return [event for event in found if event != NOTHING]


def test_nothing_is_left_of_a_peer_that_does_as_it_should() -> None:
    assert remains(lambda _world, _peer: None) == []


def test_a_task_outside_every_group_is_left() -> None:
    kept: list[asyncio.Task[None]] = []

    def leave(world: SimWorld, _: PeerId) -> None:
        kept.append(world.clock.create_task(asyncio.sleep(1e4)))
        world.clock.call_later(100.0, kept[0].cancel, context=world.network.context)

    assert remains(leave) == [ev.Remains(tasks=1, streams=0, records=0)]


STAYS = WITHDRAW_TRIES * WITHDRAW_GAP_SECONDS


def unplugged(seconds: float, *, silent: bool = False) -> Callable[[SimWorld, PeerId], None]:
    """When it leaves, its calls are lost for so long; ``silent``: it makes none."""

    def leave(world: SimWorld, peer: PeerId) -> None:
        node, context = world.hosts[peer].node, world.network.context
        assert node is not None
        good = node.presence.withdraw

        async def withdraw() -> None:
            assert world.table.serving(peer, 1) == 1
            world.table.unplug(peer)
            world.clock.call_later(seconds, world.table.plug, peer, context=context)
            await (asyncio.sleep(STAYS) if silent else good())

        node.presence.withdraw = withdraw  # type: ignore[method-assign]

    return leave


@pytest.mark.parametrize("seconds", [0.0, STAYS - HEARING_SECONDS, STAYS - 0.5, STAYS + 9.0])
def test_who_could_not_say_so_leaves_no_record_that_it_is_blamed_for(seconds: float) -> None:
    assert remains(unplugged(seconds)) == []


@pytest.mark.parametrize("seconds", [0.0, STAYS - HEARING_SECONDS - 0.1])
def test_who_had_time_to_say_so_and_did_not_is_blamed(seconds: float) -> None:
    left = ev.Remains(tasks=0, streams=0, records=1)
    assert remains(unplugged(seconds, silent=True)) == [left]
    assert remains(unplugged(STAYS - HEARING_SECONDS + 0.1, silent=True)) == []
