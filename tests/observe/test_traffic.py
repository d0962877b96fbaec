"""Ratios are of first sends and whole frames; everything else stands beside them."""

from typing import Any

import pytest

from p2ptrain.observe import events as ev
from p2ptrain.observe.traffic import wire_of
from p2ptrain.units import PeerId, Slot, Stage, Step

ANN, BOB = PeerId("ann"), PeerId("bob")


def sent(what: str, frame_bytes: int, **values: Any) -> ev.Entry:
    defaults: dict[str, Any] = {
        "what": what,
        "peer": BOB,
        "stage": Stage(1),
        "step": Step(0),
        "slot": Slot(0),
        "tensor_bytes": 4000,
        "replay": False,
    }
    event = ev.FrameSent(**(defaults | values), frame_bytes=frame_bytes)
    return ev.Entry(at=0.0, peer=ANN, event=event)


def test_each_direction_has_its_ratio_and_both_have_one() -> None:
    wire = wire_of(
        [sent("forward", 1100), sent("forward", 900, slot=Slot(1)), sent("gradient", 500)]
    )
    assert wire.forward_bytes_per_microbatch == 1000
    assert wire.backward_bytes_per_microbatch == 500
    assert wire.forward_ratio_vs_bf16 == pytest.approx(4000 / 2000)
    assert wire.backward_ratio_vs_bf16 == pytest.approx(2000 / 500)
    assert wire.ratio_vs_bf16 == pytest.approx(6000 / 2500)
    assert wire.ratio_vs_fp32 == pytest.approx(12_000 / 2500)


def test_what_is_sent_again_and_what_is_no_tensor_stand_beside() -> None:
    once = [sent("forward", 1000), sent("gradient", 1000)]
    again = [
        sent("forward", 30),
        sent("forward", 400, replay=True, slot=Slot(1)),
        sent("gradient", 5000, step=Step(0)),
    ]
    others = [sent("part", 7), sent("chunk", 11), sent("corpus", 13)]
    control = ev.ControlSent(frame_bytes=17)
    wire = wire_of([*once, *again, *others, ev.Entry(at=1.0, peer=ANN, event=control)])
    assert wire.ratio_vs_bf16 == pytest.approx(4000 / 2000)
    assert wire.forward_bytes_per_microbatch == 1000
    assert (wire.repeated_bytes, wire.sum_bytes) == (5430, 7)
    assert (wire.state_bytes, wire.control_bytes) == (24, 17)


def test_where_nothing_crossed_there_is_no_ratio() -> None:
    wire = wire_of([])
    assert wire.ratio_vs_bf16 is wire.forward_ratio_vs_bf16 is None
    assert wire.backward_bytes_per_microbatch is None
