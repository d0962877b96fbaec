"""Every message that peers exchange, as strict frozen values.

Control messages travel alone; the data messages (``Forward``, ``Gradient``, ``Part``,
``Chunk``, ``CorpusChunk``) are followed by a payload whose exact size the receiver
computes from the RunSpec and checks *before* it allocates (see limits).

All step-bound messages carry ``Position``: (epoch, step, chain of step-1). A foreign
chain is refused. Unknown fields, wrong types and unknown tags are refused.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from p2ptrain.core.agreement import Ack, Ballot, Bitmap, Go, Message, Nack, Plan, Position, Sum
from p2ptrain.core.lineage import Rollback
from p2ptrain.core.resuming import Holding
from p2ptrain.units import Chain, Digest, PeerId, RunId, Slot, Stage, Step

# --- opening a link ---------------------------------------------------------------


class Hello(Message, frozen=True, tag=True):
    """First message of the opener of a stream. ``incarnation`` grows with every start."""

    protocol: int
    run: RunId
    channel: Literal["control", "data"]
    incarnation: int
    arithmetic: str


class Welcome(Message, frozen=True, tag=True):
    """The stream is accepted; it flows from the opener to the acceptor only from here on."""

    incarnation: int


class Refused(Message, frozen=True, tag=True):
    """The stream is refused; ``reason`` is one line that says what to do."""

    reason: str


# --- presence ---------------------------------------------------------------------


class SeatStatus(Message, frozen=True, array_like=True):
    """What a peer says of one of its seats. ``rate``: microbatches per second.

    ``parted``: it drains, and has stopped behind the step before ``version``: it counts no more,
    and answers for what it has counted (engine/parting).
    ``least_above``, ``least_below``: the least version of all live seats of all stages above
    or below, as far as it knows; its own where there are none.
    """

    stage: Stage
    state: Literal["joining", "serving", "draining", "parted"]
    version: Step
    rate: float
    queue: int
    parked: int
    least_above: Step = Step(0)
    least_below: Step = Step(0)
    epoch: int = 0


class Heartbeat(Message, frozen=True, tag=True):
    """I live; ``lag_seconds`` is my event loop's own delay.

    ``begun``: as far as I know the run has begun, whatever is left of its first step.
    """

    count: int
    lag_seconds: float
    seats: tuple[SeatStatus, ...]
    begun: bool = False


class Leaving(Message, frozen=True, tag=True):
    """I am going; ``reason`` for the log. Not a failure."""

    reason: str


# --- flow: offers (DESIGN 4) ---------------------------------------------------------


class Ask(Message, frozen=True, tag=True, omit_defaults=True):
    """May I send you this microbatch for ``stage``? ``replay`` asks for a replay slot.

    ``spare``: its gradient is back below already, so ``stage`` alone lacks it, and computes it
    where it has time to spare.
    """

    at: Position
    slot: Slot
    stage: Stage
    attempt: int
    replay: bool
    spare: bool = False


class Offer(Message, frozen=True, tag=True):
    """A queue slot is reserved for ``lease_seconds``; expected ``delay_seconds`` until computed."""

    at: Position
    slot: Slot
    stage: Stage
    attempt: int
    delay_seconds: float
    service_seconds: float
    lease_seconds: float


class Busy(Message, frozen=True, tag=True):
    """Not now: ask again after ``retry_seconds``. ``behind``: this seat is not at that step yet."""

    at: Position
    slot: Slot
    stage: Stage
    attempt: int
    retry_seconds: float
    reason: Literal["queue", "parked", "behind", "draining", "foreign", "unknown"]


class Decline(Message, frozen=True, tag=True):
    """I do not take up your offer; free the slot."""

    at: Position
    slot: Slot
    stage: Stage
    attempt: int


class Accepted(Message, frozen=True, tag=True):
    """The frame (``what``) for ``stage`` has arrived whole and holds its place."""

    at: Position
    slot: Slot
    stage: Stage
    what: Literal["forward", "gradient"]


class Computed(Message, frozen=True, tag=True):
    """The forward result lies in this seat's retention store. ``service_seconds``: its compute."""

    at: Position
    slot: Slot
    stage: Stage
    service_seconds: float


class Recall(Message, frozen=True, tag=True):
    """Give the microbatch back if you have not begun to compute it."""

    at: Position
    slot: Slot
    stage: Stage


class Where(Message, frozen=True, tag=True):
    """What do you hold of this microbatch at ``stage``?"""

    at: Position
    slot: Slot
    stage: Stage


class Whereabouts(Message, frozen=True, tag=True):
    """Answer to Ask, Recall, Where or a superfluous frame.

    ``state``: ``none`` (also the answer RECALLED), ``queued``, ``computing``, ``parked``,
    ``counted`` or ``committed`` (the step is over); ``bare``: it is counted here, but its frames
    died with the mate that had counted it first. ``wanted`` is no answer: it is bare, and the
    stage above lacks its input, so send it here (core/deposits).
    """

    at: Position
    slot: Slot
    stage: Stage
    state: Literal[
        "none", "queued", "computing", "parked", "counted", "committed", "bare", "wanted"
    ]


class Repath(Message, frozen=True, tag=True, omit_defaults=True):
    """I hold this microbatch for ``stage`` now: send its gradient to me.

    ``bare``: even if ``stage`` has counted it; I have, but lack the gradient.
    """

    at: Position
    slot: Slot
    stage: Stage
    bare: bool = False


class Forward(Message, frozen=True, tag=True, omit_defaults=True):
    """Input of ``stage`` for a microbatch. Payload: token ids, then the encoded activations.

    ``path``: the peer that serves each stage below ``stage``. ``spare``: as in the Ask; a first
    send does not name it, and is as long as a codec was sized for (run/frames).
    """

    at: Position
    slot: Slot
    stage: Stage
    attempt: int
    replay: bool
    path: tuple[PeerId, ...]
    spare: bool = False


class Gradient(Message, frozen=True, tag=True):
    """Gradient of the output of ``stage``, for the seat that parked its input.

    Payload: the encoded gradient.
    """

    at: Position
    slot: Slot
    stage: Stage


# --- stage 0: what is taken from the data (core/sourcing) -------------------------------


class WantSlots(Message, frozen=True, tag=True):
    """I have nothing left to take from the data, and place for so many: hand me some of yours."""

    at: Position
    room: int


class GiveSlots(Message, frozen=True, tag=True):
    """These are yours now: all that I have handed you in this step; I shall not begin them."""

    at: Position
    slots: bytes


# --- reduction and barrier (DESIGN 5) ---------------------------------------------------


PartKind: TypeAlias = Literal["own", "sum"]


class Part(Message, frozen=True, tag=True):
    """Payload: integers of elements start..stop; a member's own, or the shard owner's sum."""

    at: Position
    stage: Stage
    ballot: Ballot
    what: PartKind
    start: int
    stop: int


class Deposit(Message, frozen=True, tag=True):
    """Payload: integers of elements start..stop of the sender's accumulator (core/deposits).

    ``bitmap``: the sender's own, of the moment at which the accumulator was that.
    """

    at: Position
    stage: Stage
    bitmap: Bitmap
    start: int
    stop: int


class PullSum(Message, frozen=True, tag=True):
    """Send me the whole sum of this stage (as Parts under your ballot)."""

    at: Position
    stage: Stage


class WantSums(Message, frozen=True, tag=True):
    """Tell me the SUMs of these stages, if you know them."""

    at: Position
    stages: tuple[Stage, ...]


# --- state and corpus transfer (DESIGN 6) --------------------------------------------


class WantManifest(Message, frozen=True, tag=True, omit_defaults=True):
    """Give me the snapshot of ``stage`` at the beginning of step ``version``, or the next.

    Who has not got so far answers when it has. ``base``: the difference to this one does, of
    that very version.
    """

    stage: Stage
    version: Step
    base: Digest | None = None


class StageManifest(Message, frozen=True, tag=True, omit_defaults=True):
    """A snapshot after a commit. ``root``: Merkle root over its chunks.

    ``members``: the step record's peers per stage, so that a joiner hashes like the others.
    ``taken``: the SUMs of all stages that led here, where a step can have two names (core/forks).
    ``base``, ``result``: the chunks are a difference, that leads from the one state to the other
    (these are roots, too).
    """

    stage: Stage
    available: bool
    epoch: int
    version: Step
    chain: Chain
    size_bytes: int
    chunk_bytes: int
    leaves: tuple[Digest, ...]
    root: Digest
    members: tuple[tuple[PeerId, ...], ...]
    base: Digest | None = None
    result: Digest | None = None
    taken: tuple[Sum, ...] = ()


class WantChunk(Message, frozen=True, tag=True):
    """Send me chunk ``index`` of the snapshot with this root."""

    stage: Stage
    root: Digest
    index: int


class Chunk(Message, frozen=True, tag=True):
    """Payload: the chunk's bytes."""

    stage: Stage
    root: Digest
    index: int


class WantCorpus(Message, frozen=True, tag=True):
    """Send me ``size_bytes`` bytes of the corpus from ``offset``."""

    offset: int
    size_bytes: int


class CorpusChunk(Message, frozen=True, tag=True):
    """Payload: bytes of the corpus (files in manifest order, concatenated)."""

    offset: int


class Held(Message, frozen=True, tag=True, omit_defaults=True):
    """The states that I hold.

    ``waiting``: I wait with others to resume a run that was stopped. ``let_go``: stages beside
    my seats, and where they began the last step; I cannot help them to count it again. It is
    left out where it is empty: releases without it do not know the field.
    """

    held: tuple[Holding, ...]
    waiting: bool
    let_go: tuple[Holding, ...] = ()


class WantHeld(Message, frozen=True, tag=True):
    """Tell me which states you hold, of stages that you serve or guard or have on disk."""


class NoSuch(Message, frozen=True, tag=True):
    """I cannot give what you asked for; ``reason`` for the log."""

    what: Literal["snapshot", "chunk", "corpus", "sum"]
    stage: Stage
    reason: str


Handshake: TypeAlias = Hello | Welcome | Refused
Control: TypeAlias = (
    Heartbeat
    | Leaving
    | Ask
    | Offer
    | Busy
    | Decline
    | Accepted
    | Computed
    | Recall
    | Where
    | Whereabouts
    | Repath
    | WantSlots
    | GiveSlots
    | Bitmap
    | Plan
    | Ack
    | Nack
    | Go
    | PullSum
    | Sum
    | WantSums
    | WantManifest
    | StageManifest
    | WantChunk
    | WantCorpus
    | Held
    | WantHeld
    | Rollback
    | NoSuch
)
Data: TypeAlias = Forward | Gradient | Part | Deposit | Chunk | CorpusChunk
AnyMessage: TypeAlias = Handshake | Control | Data
