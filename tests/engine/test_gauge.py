"""A seat tells its fill whenever it is higher than ever, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2ptrain.engine.gauge import Gauge
from p2ptrain.observe import events as ev
from p2ptrain.sim.spill import MemorySpill
from p2ptrain.units import Microbatch, PeerId, Slot, Step

MakeBench = Callable[..., Any]


def gauge_of(seat: Any, spill: MemorySpill | None) -> Gauge:
    return Gauge(seat.pipeline, lambda: (seat.custodian,), spill, 500, emit=seat.events.append)


def fills(seat: Any) -> list[tuple[int, int, int]]:
    bounds = [event for event in seat.events if isinstance(event, ev.Bounds)]
    return [(each.queue, each.parked, each.retained_bytes) for each in bounds]


def test_a_new_maximum_is_told_once(bench: MakeBench) -> None:
    seat = bench()
    gauge = gauge_of(seat, None)
    gauge.look()
    assert fills(seat) == []
    seat.custodian.send_gradient(Microbatch(Step(0), Slot(0)), PeerId("below"), bytes(7), 0.0)
    for _ in range(2):
        gauge.look()
    assert fills(seat) == [(0, 0, 7)]
    seat.custodian.clear()
    gauge.look()
    seat.custodian.send_gradient(Microbatch(Step(0), Slot(1)), PeerId("below"), bytes(7), 0.0)
    gauge.look()
    assert fills(seat) == [(0, 0, 7)]
    seat.custodian.send_gradient(Microbatch(Step(0), Slot(2)), PeerId("below"), bytes(1), 0.0)
    gauge.look()
    assert fills(seat) == [(0, 0, 7), (0, 0, 8)]


def test_bounds_are_told_beside(bench: MakeBench) -> None:
    seat = bench(parked=5)
    gauge = gauge_of(seat, MemorySpill(bound_bytes=900))
    seat.custodian.send_gradient(Microbatch(Step(0), Slot(0)), PeerId("below"), bytes(7), 0.0)
    gauge.look()
    (told,) = [event for event in seat.events if isinstance(event, ev.Bounds)]
    assert (told.parked_bound, told.retained_bound, told.spilled_bound) == (5, 500, 900)
    assert told.spilled_bytes == 0
