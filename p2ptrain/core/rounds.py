"""What the round machine hears and asks for: the events, actions and limits of core/step.

Kept apart from the machine so that its one file of transitions stays readable.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Ack, Ballot, Bitmap, Go, Nack, Plan, Sum
    from p2ptrain.units import Digest, PeerId, Seconds, Stage


class Phase(enum.Enum):
    """Where a seat stands in a step; drawn in core/step."""

    COUNTING = "counting"
    PLANNING = "planning"
    FROZEN = "frozen"
    REDUCING = "reducing"
    NORM = "norm"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Deadlines of one round, in seconds; the engine derives them from measured rates.

    ``plan_seconds``: from the complete union to the leader's plan. ``ack_seconds``: from the
    plan to Go. ``reduce_seconds``: from Go to the whole sum, or for one attempt to fetch it.
    ``norm_seconds``: before asking around for missing SUMs; asking decides nothing.
    ``round_growth``: factor per round, up to 8 in all, because views need time to converge.
    """

    plan_seconds: Seconds
    ack_seconds: Seconds
    reduce_seconds: Seconds
    norm_seconds: Seconds
    round_growth: float = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the compute says of a whole sum (``ports.Whole``, which core cannot import)."""

    digest: Digest
    norms: tuple[float, ...]
    finite: bool


# --- events ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Live:
    """The live seats of this stage at this position; me included or not, I always am."""

    peers: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class Seen:
    """A verified bitmap, own or foreign. Feed every change of the own one at once."""

    bitmap: Bitmap


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the round from ``sender``.

    Of a Nack's bitmaps the engine leaves those with a valid signature and position only.
    """

    sender: PeerId
    message: Plan | Ack | Nack | Go | Sum


@dataclass(frozen=True, slots=True)
class Quiet:
    """Since the latest Freeze the own compute has stopped, and its last bitmap was Seen."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """The whole sum is here: by the reduction of ``round``, or fetched (then the SUM's)."""

    outcome: Outcome
    round: int


@dataclass(frozen=True, slots=True)
class ReduceFailed:
    """The reduction under ``ballot`` cannot end."""

    ballot: Ballot
    reason: str


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """``holder`` did not give the sum, or gave one with another digest.

    ``spoilt``: the latter, so the compute no longer holds what it held before.
    """

    holder: PeerId
    reason: str
    spoilt: bool = False


@dataclass(frozen=True, slots=True)
class Caught:
    """``peer`` has signed two SUMs of one stage: none of its words counts."""

    peer: PeerId


Event: TypeAlias = Live | Seen | Received | Quiet | Reduced | ReduceFailed | FetchFailed | Caught


# --- actions --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``message`` to each of these peers; never contains me."""

    to: tuple[PeerId, ...]
    message: Plan | Ack | Nack | Go | Sum


@dataclass(frozen=True, slots=True)
class Freeze:
    """Begin no further accumulation; say Quiet once what runs has ended and was Seen."""


@dataclass(frozen=True, slots=True)
class Unfreeze:
    """Accumulate again; a Quiet not yet said, and any fetch, is void."""


@dataclass(frozen=True, slots=True)
class Subtract:
    """Take these slots out of the accumulator and show the smaller bitmap with a Seen.

    Until that Seen no other Subtract, Freeze, Reduce or FetchSum is asked for, so it may be
    the seat's one running job; it must end.
    """

    mask: int


@dataclass(frozen=True, slots=True)
class Reduce:
    """Run the butterfly of ``plan``; answer with Reduced or ReduceFailed."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class AbortReduce:
    """Stop the reduction under ``ballot``; its answer is no longer wanted."""

    ballot: Ballot


@dataclass(frozen=True, slots=True)
class FetchSum:
    """Pull the whole integer sum from ``holder``, superseding an earlier fetch.

    Finish it, compare with the digest in ``sum``, and answer with Reduced(round of ``sum``)
    or FetchFailed.
    """

    holder: PeerId
    sum: Sum


@dataclass(frozen=True, slots=True)
class Publish:
    """Send ``sum`` to every seat of every stage."""

    sum: Sum


@dataclass(frozen=True, slots=True)
class WantSums:
    """Ask around for the SUMs of these stages; ``everyone``: seats of all stages."""

    stages: tuple[Stage, ...]
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class Commit:
    """All SUMs are known, in stage order: step."""

    sums: tuple[Sum, ...]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Two SUMs for one stage and position, in one arithmetic: somebody errs or lies.

    This seat will not commit the step.
    """

    reason: str


Action: TypeAlias = (
    Send
    | Freeze
    | Unfreeze
    | Subtract
    | Reduce
    | AbortReduce
    | FetchSum
    | Publish
    | WantSums
    | Commit
    | Alarm
)
