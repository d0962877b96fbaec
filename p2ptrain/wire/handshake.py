"""Whether two peers may speak: the Hello that each says, and the comparison of two.

A stranger is refused here, at the door, in one line that says what its operator should do.
Everything that makes weights differ is in the run id (run/spec), so few things are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.wire.framing import PROTOCOL
from p2ptrain.wire.messages import Hello

if TYPE_CHECKING:
    from p2ptrain.units import RunId


def greeting(run: RunId, incarnation: int, arithmetic: str) -> Hello:
    """What this start of a peer says on its control streams."""
    return Hello(
        protocol=PROTOCOL,
        run=run,
        channel="control",
        incarnation=incarnation,
        arithmetic=arithmetic,
    )


def refusal(ours: Hello, theirs: Hello) -> str | None:
    """The line with which ``theirs`` is refused, or None.

    An empty ``arithmetic`` on our side takes any class (agreement "canonical").
    """
    if theirs.protocol != ours.protocol:
        return (
            f"you speak protocol {theirs.protocol}, this peer {ours.protocol}: "
            "update the older p2ptrain"
        )
    if theirs.run != ours.run:
        return (
            f"this peer trains run {ours.run}, you {theirs.run}: "
            "give --initial-peers of the run you mean, or leave out --run"
        )
    if ours.arithmetic and theirs.arithmetic != ours.arithmetic:
        return (
            f"this run computes with {ours.arithmetic}, you with {theirs.arithmetic}: use the "
            'same device kind and torch version, or a run with sync.agreement = "canonical"'
        )
    return None
