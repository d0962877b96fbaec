"""What a run's links carried, and how much smaller than its tensors that was.

A ratio is told of *first sends*: the tensor's bytes in bf16 over the length of the whole frame
that carried it (header, path, token ids, scales), per direction, as counted where frames leave.
What was sent again (replays, new attempts after a recall, gradients to a new holder) bought no
further tensor: it stands beside, like state, sums and control, and never in the ratio.

Invariants: every data frame is counted in exactly one field; a frame's first send is the first
told of its (direction, stage, step, slot) that was no replay.

Refused: payload bytes over payload bytes. Ids, scales and headers are a third of a small frame.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FP32_BYTES, BF16_BYTES = 4, 2


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Activations and gradients on the wire, headers and token ids included.

    Bytes are means over frames (one microbatch over one boundary); ratios compare with the
    tensors in bf16 and fp32, ``ratio_...`` of both directions together. None: nothing crossed
    the network. ``repeated_bytes``: activations and gradients sent again; ``sum_bytes``: of the
    reduction; ``state_bytes``: snapshots and corpora; ``control_bytes``: of peers that ended in
    order, for each tells its own at its end.
    """

    forward_bytes_per_microbatch: float | None
    backward_bytes_per_microbatch: float | None
    ratio_vs_bf16: float | None
    ratio_vs_fp32: float | None
    forward_ratio_vs_bf16: float | None
    backward_ratio_vs_bf16: float | None
    repeated_bytes: int
    sum_bytes: int
    state_bytes: int
    control_bytes: int


def wire_of(entries: Iterable[ev.Entry]) -> Wire:
    """Add up what every peer sent."""
    first: dict[str, list[ev.FrameSent]] = {"forward": [], "gradient": []}
    beside: defaultdict[str, int] = defaultdict(int)
    told: set[tuple[object, ...]] = set()
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.ControlSent):
            beside["control"] += event.frame_bytes
        if not isinstance(event, ev.FrameSent):
            continue
        if event.what not in first:
            beside[event.what] += event.frame_bytes
            continue
        key = event.what, event.stage, event.step, event.slot
        if event.replay or key in told:
            beside["repeated"] += event.frame_bytes
        else:
            told.add(key)
            first[event.what].append(event)
    ratio = _ratio([*first["forward"], *first["gradient"]])
    return Wire(
        forward_bytes_per_microbatch=_mean(first["forward"]),
        backward_bytes_per_microbatch=_mean(first["gradient"]),
        ratio_vs_bf16=_of_bf16(ratio),
        ratio_vs_fp32=ratio,
        forward_ratio_vs_bf16=_of_bf16(_ratio(first["forward"])),
        backward_ratio_vs_bf16=_of_bf16(_ratio(first["gradient"])),
        repeated_bytes=beside["repeated"],
        sum_bytes=beside["part"] + beside["deposit"],
        state_bytes=beside["chunk"] + beside["corpus"],
        control_bytes=beside["control"],
    )


def _ratio(frames: Sequence[ev.FrameSent]) -> float | None:
    """Against fp32."""
    sent = sum(frame.frame_bytes for frame in frames)
    return sum(frame.tensor_bytes for frame in frames) / sent if sent else None


def _of_bf16(ratio: float | None) -> float | None:
    return None if ratio is None else ratio * BF16_BYTES / FP32_BYTES


def _mean(frames: Sequence[ev.FrameSent]) -> float | None:
    return statistics.fmean(frame.frame_bytes for frame in frames) if frames else None
