"""One vocabulary of events: logs, metrics, reports and checkers all read it.

An event says what happened, never what to do. Its time is the event loop's (seconds
since the process's loop began; virtual in simulation), so one seed gives one log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from p2ptrain.core.agreement import Counted
from p2ptrain.units import Chain, Digest, PeerId, RunId, Seconds, Slot, Stage, Step


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of all events."""


class PeerStarted(Event, frozen=True, tag=True):
    """A peer has joined a run."""

    run: RunId
    addresses: tuple[str, ...]


class PeerStopped(Event, frozen=True, tag=True):
    """A peer leaves in an orderly way."""

    reason: str


class LinkUp(Event, frozen=True, tag=True):
    """Control flows both ways between us and ``peer``."""

    peer: PeerId


class LinkDown(Event, frozen=True, tag=True):
    """The link to ``peer`` broke or was closed."""

    peer: PeerId
    reason: str


class LinkRefused(Event, frozen=True, tag=True):
    """``peer`` was refused at link open."""

    peer: PeerId
    reason: str


class FrameRefused(Event, frozen=True, tag=True):
    """``peer`` sent bytes or a message that the protocol does not allow."""

    peer: PeerId
    reason: str


class Suspected(Event, frozen=True, tag=True):
    """``peer`` has been silent too long."""

    peer: PeerId
    silent_seconds: Seconds


class Restored(Event, frozen=True, tag=True):
    """A suspected peer spoke again: the suspicion was false."""

    peer: PeerId


class SeatOpened(Event, frozen=True, tag=True):
    """This peer begins to serve a stage; ``reason`` is the assignment's."""

    stage: Stage
    version: Step
    reason: str


class SeatClosed(Event, frozen=True, tag=True):
    """This peer no longer serves a stage."""

    stage: Stage
    reason: str


class StateLoaded(Event, frozen=True, tag=True):
    """A joiner has taken over a verified snapshot; ``sources`` gave its chunks."""

    stage: Stage
    version: Step
    source: PeerId
    size_bytes: int
    sources: tuple[PeerId, ...] = ()


class StateAdopted(Event, frozen=True, tag=True):
    """This seat goes on from the state of ``source`` (ours: the others shall); see core/adoption.

    ``root``: over the state; equal in all replicas that adopted at ``version`` of ``chain``.
    """

    stage: Stage
    version: Step
    chain: Chain
    source: PeerId
    root: Digest


class CheckpointSaved(Event, frozen=True, tag=True):
    """The state of a stage at the beginning of step ``version`` is safe on our disk."""

    stage: Stage
    version: Step
    size_bytes: int


class StateKept(Event, frozen=True, tag=True):
    """The state of a stage that others serve is kept here, should all of them be lost."""

    stage: Stage
    version: Step
    size_bytes: int


class Resumed(Event, frozen=True, tag=True):
    """A run that was stopped goes on from ``version``; seen and decided by this peer."""

    version: Step
    reason: str


class RolledBack(Event, frozen=True, tag=True):
    """This peer's run begins again at ``version`` of a new epoch; what it had is discarded.

    ``discarded_epoch``, ``discarded_version``, ``discarded_chain``: where it stood.
    """

    epoch: int
    version: Step
    chain: Chain
    discarded_epoch: int
    discarded_version: Step
    discarded_chain: Chain
    reason: str


class RunLost(Event, frozen=True, tag=True):
    """This peer gives the run up: nobody within reach has what it would go on from."""

    reason: str


class DonorRefused(Event, frozen=True, tag=True):
    """State of ``stage`` is not taken from ``peer`` (any more)."""

    peer: PeerId
    stage: Stage
    reason: str


class BusySaid(Event, frozen=True, tag=True):
    """An Ask was answered BUSY."""

    stage: Stage
    peer: PeerId
    reason: str


class FrameSent(Event, frozen=True, tag=True):
    """A data frame went out whole, to another peer.

    ``tensor_bytes``: of the uncompressed tensor in fp32 (parts and chunks: of the payload).
    ``step`` and ``slot`` are -1 where a frame belongs to none.
    """

    what: Literal["forward", "gradient", "part", "deposit", "chunk", "corpus"]
    peer: PeerId
    stage: Stage
    step: Step
    slot: Slot
    frame_bytes: int
    tensor_bytes: int
    replay: bool


class ControlSent(Event, frozen=True, tag=True):
    """Control messages that this peer has sent in its life, told when its links close."""

    frame_bytes: int


class Sourced(Event, frozen=True, tag=True):
    """Stage 0 took a microbatch from the data."""

    step: Step
    slot: Slot
    order: int


class SlotCounted(Event, frozen=True, tag=True):
    """A microbatch is in this seat's accumulator (or, evaluating, passed through it)."""

    stage: Stage
    step: Step
    slot: Slot


class Subtracted(Event, frozen=True, tag=True):
    """An overlap was taken out of this seat's accumulator."""

    stage: Stage
    step: Step
    slot: Slot


class Deposited(Event, frozen=True, tag=True):
    """``peer`` has been sent a copy of this seat's accumulator, with these slots in it."""

    stage: Stage
    step: Step
    peer: PeerId
    slots: bytes


class DepositTaken(Event, frozen=True, tag=True):
    """What ``peer`` had counted, and deposited here, is in this seat's accumulator."""

    stage: Stage
    step: Step
    peer: PeerId
    slots: bytes


class DepositReturned(Event, frozen=True, tag=True):
    """... and has been taken out again: somebody else counts some of it."""

    stage: Stage
    step: Step
    peer: PeerId
    slots: bytes


class Recalled(Event, frozen=True, tag=True):
    """A forward was recalled from ``peer``; ``answer`` is its state there."""

    stage: Stage
    step: Step
    slot: Slot
    peer: PeerId
    answer: str


class Replayed(Event, frozen=True, tag=True):
    """A microbatch is sent again; ``reason`` says why."""

    stage: Stage
    step: Step
    slot: Slot
    peer: PeerId
    reason: str


class RoundBegan(Event, frozen=True, tag=True):
    """This seat waits for, or leads, a round; ``reason`` says what moved it."""

    stage: Stage
    step: Step
    round: int
    leader: PeerId
    reason: str


class SumPublished(Event, frozen=True, tag=True):
    """This seat holds the whole sum of its stage."""

    stage: Stage
    step: Step
    digest: Digest
    round: int


class StepCommitted(Event, frozen=True, tag=True):
    """This seat has stepped. ``cover`` is that of its own stage's SUM.

    ``loss``, ``val_loss``: nats per token, equal in all stages (None: none this step).
    ``seconds``: since this seat's previous commit.
    """

    epoch: int
    stage: Stage
    step: Step
    chain: Chain
    digest: Digest
    cover: tuple[Counted, ...]
    expected: bytes
    loss: float | None
    val_loss: float | None
    skipped: bool
    tokens: int
    seconds: Seconds


class Activity(Event, frozen=True, tag=True):
    """How a seat spent a step, told with its commit.

    ``computing_seconds`` of ``seconds`` (since its previous commit) its device computed for
    it; ``offers`` and ``busy`` count its answers to Asks.
    """

    stage: Stage
    step: Step
    seconds: Seconds
    computing_seconds: Seconds
    offers: int
    busy: int


class BoundaryRead(Event, frozen=True, tag=True):
    """What a seat sent over the boundary above it in a step, and what gradient came back.

    See ``core/health``. ``gradient_norm``: None where no gradient came.
    """

    boundary: int
    step: Step
    magnitude: float
    deviation: float
    least_deviation: float
    saturation: float
    error: float
    gradient_norm: float | None


class Bounds(Event, frozen=True, tag=True):
    """A seat's fill beside its bounds, sampled at every commit and at each new maximum."""

    stage: Stage
    queue: int
    queue_bound: int
    parked: int
    parked_bound: int
    retained_bytes: int
    retained_bound: int
    spilled_bytes: int = 0
    spilled_bound: int = 0


class Spilled(Event, frozen=True, tag=True):
    """A retained frame of this seat has left memory for the disk."""

    stage: Stage
    step: Step
    slot: Slot
    what: Literal["forward", "gradient"]
    size_bytes: int


class SpillRead(Event, frozen=True, tag=True):
    """A spilled frame of this seat was read back, to be sent again."""

    stage: Stage
    step: Step
    slot: Slot
    what: Literal["forward", "gradient"]


class SpillLost(Event, frozen=True, tag=True):
    """A spilled frame of this seat could not be read back, and is still needed."""

    stage: Stage
    step: Step
    slot: Slot
    what: Literal["forward", "gradient"]


class Resources(Event, frozen=True, tag=True):
    """What this peer's process holds now, and apart from it its p2pd (zeros while that restarts).

    ``tasks``: of asyncio; ``rss_bytes``: resident memory; ``links``: to other peers, each of
    which takes a few tasks and descriptors.
    """

    rss_bytes: int
    descriptors: int
    threads: int
    tasks: int
    daemon_rss_bytes: int
    daemon_descriptors: int
    links: int


class Alarm(Event, frozen=True, tag=True):
    """Something an operator must see; training may go on."""

    reason: str


class Halted(Event, frozen=True, tag=True):
    """This process stands still from now on, as it was told, at the ``times``-th ``point``."""

    point: str
    times: int


class FaultFired(Event, frozen=True, tag=True):
    """A planned fault happened (written by whoever injects faults)."""

    fault: str
    target: str


class Remains(Event, frozen=True, tag=True):
    """What was found of a peer a moment after its end (written by whoever runs peers).

    ``tasks`` and ``streams`` that still lived; ``records`` in the directory that still say it
    serves, of a peer that left in order (others cannot withdraw theirs).
    """

    tasks: int
    streams: int
    records: int


class RunEnded(Event, frozen=True, tag=True):
    """The run is complete on this peer."""

    step: Step
    reason: str


AnyEvent: TypeAlias = (
    PeerStarted
    | PeerStopped
    | LinkUp
    | LinkDown
    | LinkRefused
    | FrameRefused
    | Suspected
    | Restored
    | SeatOpened
    | SeatClosed
    | StateLoaded
    | StateAdopted
    | CheckpointSaved
    | StateKept
    | Resumed
    | RolledBack
    | RunLost
    | DonorRefused
    | BusySaid
    | FrameSent
    | ControlSent
    | Sourced
    | SlotCounted
    | Subtracted
    | Deposited
    | DepositTaken
    | DepositReturned
    | Recalled
    | Replayed
    | RoundBegan
    | SumPublished
    | StepCommitted
    | Activity
    | BoundaryRead
    | Bounds
    | Spilled
    | SpillRead
    | SpillLost
    | Resources
    | Alarm
    | Halted
    | FaultFired
    | Remains
    | RunEnded
)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event with its time and its peer: a line of events.jsonl."""

    at: Seconds
    peer: PeerId
    event: AnyEvent


Emit: TypeAlias = Callable[[AnyEvent], None]
"""What the engine is given to speak through; a sink adds the time and the peer."""
