"""A scenario is a value: peers by name, speed and time of arrival."""

import asyncio

from p2ptrain.sim import loop
from p2ptrain.sim.compute import CostModel
from p2ptrain.sim.scenario import PeerPlan, crowd, toy_compute
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Microbatch, PeerId, Slot, Stage, Step


def test_a_crowd_takes_its_speeds_in_turn_and_arrives_one_by_one() -> None:
    peers = crowd(5, speeds=(1.0, 0.1), interval_seconds=2.0)
    assert [plan.speed for plan in peers] == [1.0, 0.1, 1.0, 0.1, 1.0]
    assert [plan.starts_at for plan in peers] == [0.0, 2.0, 4.0, 6.0, 8.0]
    names = [plan.peer for plan in peers]
    assert names == sorted(set(names))


def test_the_toys_speed_is_the_plans() -> None:
    async def main() -> float:
        spec = toy_spec(stages=1, microbatches=1, steps=1)
        cost = CostModel(forward_seconds=1.0, backward_seconds=1.0, noise=0.0)
        compute = toy_compute(cost)(spec, PeerPlan(peer=PeerId("a"), speed=4.0))
        seat = await compute.open(Stage(0))
        await seat.loss(Microbatch(Step(0), Slot(0)), b"", None)
        return asyncio.get_running_loop().time()

    assert loop.run(main()) == 0.5
