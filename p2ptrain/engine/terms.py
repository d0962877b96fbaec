"""The terms on which a peer takes part: what it decides, what it is given, what it leaves with.

Values only. Programs and simulations build them without looking at the machinery of
``lifecycle.Node``, and later ways to end (a rollback, a refusal) add a field here, not there.

Invariant: what all peers of a run must agree on is in the RunSpec, never here.

Refused: one bag of settings for all. What this peer alone decides may differ between peers;
the ports of a peer are things that live, not settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2ptrain.ports import Compute, Corpus, Directory, Signer, Spill, Store, Transport
    from p2ptrain.units import Chain, Seconds, Stage, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What this peer alone decides.

    ``stage``: the one to serve, None chooses. ``spare_seconds``: before the run has begun, how
    long a hole must stand before this peer takes it beside its own seat: newcomers get that long
    to come. Later nobody waits so long for them (see admission).
    ``linger_seconds``: how long a finished peer stays for others at most.
    ``drain_seconds``: how long a drained peer finishes its step, or waits for somebody to
    take over what it alone holds; under the 90 s after which service managers kill.
    ``assign_seconds``: between looks at who serves what.
    ``resume``: go on from the checkpoints of a run that was stopped, together with others.
    """

    stage: Stage | None = None
    spare_seconds: Seconds = 10.0
    linger_seconds: Seconds = 30.0
    drain_seconds: Seconds = 60.0
    assign_seconds: Seconds = 1.0
    resume: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ports of one peer.

    ``corpus``: the run's data, if this peer has it; else ``corpus_from`` makes it of bytes
    pulled from peers of stage 0, should this peer come to serve that. ``store``: where it
    keeps checkpoints, None for nowhere. ``spill``: where retained frames go when memory is
    short, None for nowhere (then the seat says BUSY).
    """

    transport: Transport
    directory: Directory
    signer: Signer
    compute: Compute
    corpus: Corpus | None
    corpus_from: Callable[[bytes], Corpus] | None = None
    store: Store | None = None
    spill: Spill | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResult:
    """What a peer leaves with: its seats' versions and the digests of their weights.

    ``lost``: why the run cannot go on, if it was given up.
    """

    finished: bool
    versions: Mapping[Stage, Step]
    tensor_digests: Mapping[str, str]
    chain: Chain
    false_suspicions: int
    lost: str = ""
