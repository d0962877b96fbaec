"""Harm is done once, written down, and mended in time."""

from collections.abc import Callable

from p2ptrain.observe import events as ev
from p2ptrain.sim.harm import Harm
from p2ptrain.sim.scenario import Scenario, crowd
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import Host, SimWorld
from p2ptrain.units import PeerId

SPEC = toy_spec(stages=1, microbatches=6, steps=3)

Act = Callable[[Harm, Host], None]


class Harmed(SimWorld):
    """Harms the first that counts something of the second step: by then all have met."""

    def __init__(self, act: Act) -> None:
        super().__init__(Scenario(spec=SPEC, peers=crowd(3, speeds=(0.1,))))
        self.act: Act | None = act

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        super().emit(peer, event)
        if isinstance(event, ev.SlotCounted) and event.step == 1 and self.act is not None:
            act, self.act = self.act, None
            self.harm.later(0.0, act, self.harm, self.hosts[peer])


def faults(act: Act) -> list[tuple[str, float]]:
    world = Harmed(act)
    assert world.run().holds
    told = [entry for entry in world.entries if isinstance(entry.event, ev.FaultFired)]
    return [(entry.event.fault, round(entry.at - told[0].at, 3)) for entry in told]  # type: ignore[union-attr]


def test_a_killed_peer_is_followed_by_a_new_one() -> None:
    assert faults(lambda harm, host: harm.kill(host, respawn_seconds=2.0)) == [
        ("kill", 0.0),
        ("respawn", 2.0),
    ]


def test_a_restarted_one_keeps_its_name_and_nothing_else() -> None:
    world = Harmed(lambda harm, host: harm.restart(host))
    assert world.run().holds
    started = [entry.peer for entry in world.entries if isinstance(entry.event, ev.PeerStarted)]
    assert len(started) == 4
    assert len(set(started)) == 3
    assert world.harm.tally.fired() == {"kill": 1, "restart": 1}


def test_who_is_frozen_twice_thaws_once() -> None:
    def twice(harm: Harm, host: Host) -> None:
        harm.freeze(host, 4.0, "process")
        assert harm.frozen(host.peer)
        harm.freeze(host, 9.0, "daemon")

    assert faults(twice) == [("freeze", 0.0), ("thaw", 4.0)]


def test_the_world_splits_once_at_a_time() -> None:
    def split(harm: Harm, host: Host) -> None:
        harm.partition([host.peer], 3.0)
        harm.partition([host.peer], 30.0)

    assert faults(split) == [("partition", 0.0), ("heal", 3.0)]


def test_broken_streams_are_opened_anew() -> None:
    world = Harmed(lambda harm, host: harm.reset(host))
    assert world.run().holds
    downs = [e for e in world.entries if isinstance(e.event, ev.LinkDown)]
    assert any(entry.event.reason == "connection reset" for entry in downs)  # type: ignore[union-attr]
