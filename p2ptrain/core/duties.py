"""What the custody of a frame hears and asks for: limits, states, events and actions.

Kept apart from the machine (core/custody) so that its one file of transitions stays
readable, as rounds is kept apart from step. Values only: nothing here decides.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from p2ptrain.core.routing import Quote
    from p2ptrain.units import PeerId, Seconds

What: TypeAlias = Literal["forward", "gradient"]
Held: TypeAlias = Literal[
    "none", "queued", "computing", "parked", "counted", "committed", "bare", "wanted"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyLimits:
    """Deadlines in seconds.

    ``answer_seconds``: control messages are answered by the loop, never behind compute, so
    a wide-area round trip and some loop lag bound them. ``retry_seconds``: pause after
    nobody could be asked, or a frame bounced. ``idle_seconds``: most between two looks
    for a seat; one may have come. ``send_seconds``: from offer to the acceptance of the
    whole frame. ``recall_floor_seconds``: no forward is recalled sooner; estimates start
    rough. ``check_seconds``: a holder that owes us nothing but a bitmap is asked so often
    whether it still has the microbatch: it may have closed its seat.
    ``most_silences``: questions in a row that a live peer may leave unanswered.
    """

    answer_seconds: Seconds = 3.0
    retry_seconds: Seconds = 0.1
    idle_seconds: Seconds = 1.0
    send_seconds: Seconds = 30.0
    recall_floor_seconds: Seconds = 5.0
    check_seconds: Seconds = 10.0
    most_silences: int = 3


class State(enum.Enum):
    """Where a frame stands; drawn in core/custody."""

    LOCATING = enum.auto()
    IDLE = enum.auto()
    ASKING = enum.auto()
    OFFERED = enum.auto()
    SENT = enum.auto()
    HELD = enum.auto()
    RECALLING = enum.auto()
    COMPUTED = enum.auto()
    WAITING = enum.auto()
    COUNTED = enum.auto()


# --- events -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The frame is encoded and can be sent."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An asked seat answered: ``quote`` is its offer, None is BUSY.

    ``seconds``: how long the offer holds, or when to come again.
    """

    peer: PeerId
    attempt: int
    quote: Quote | None
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The frame of this attempt did not go out whole to ``peer``."""

    peer: PeerId
    attempt: int


@dataclass(frozen=True, slots=True)
class LinkBroke:
    """The link to ``peer`` broke: what was on its way may have arrived or not."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Arrived:
    """``peer`` has accepted the frame."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Finished:
    """``peer`` has computed the forward; it takes ``service_seconds`` for one, it says."""

    peer: PeerId
    service_seconds: Seconds


@dataclass(frozen=True, slots=True)
class Located:
    """``peer`` says what it holds of the microbatch.

    Of a gradient's stage, ``parked`` means that it still waits for the gradient.
    """

    peer: PeerId
    held: Held


@dataclass(frozen=True, slots=True)
class Moved:
    """``peer`` holds the input of this gradient's stage now (it replays it)."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Lost:
    """``peer`` is suspected, has left, has closed its seat, or is another incarnation."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Found:
    """``peer`` was suspected falsely: it still has what it had."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Returned:
    """The gradient of this forward has come back."""


@dataclass(frozen=True, slots=True)
class Owed:
    """The gradient of this forward is awaited (again): what it went into was taken out."""


@dataclass(frozen=True, slots=True)
class Tallied:
    """Whether the microbatch stands in a live bitmap of the receiving stage."""

    live: bool


Event: TypeAlias = (
    Ready
    | Answered
    | SendFailed
    | LinkBroke
    | Arrived
    | Finished
    | Located
    | Moved
    | Lost
    | Found
    | Returned
    | Owed
    | Tallied
)


# --- actions ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskSeat:
    """Ask ``peer`` for a slot."""

    peer: PeerId
    attempt: int


@dataclass(frozen=True, slots=True)
class DeclineOffer:
    """Give ``peer`` its slot back."""

    peer: PeerId
    attempt: int


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send the frame to ``peer``."""

    peer: PeerId
    attempt: int


@dataclass(frozen=True, slots=True)
class RecallFrame:
    """Ask ``peer`` to give the microbatch back."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class AskWhere:
    """Ask ``peer`` (None: every live seat of the stage) what it holds."""

    peer: PeerId | None


@dataclass(frozen=True, slots=True)
class TellPath:
    """Tell ``peer``, who holds the output, that its gradient comes here."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Again:
    """The microbatch goes a new way; ``reason`` for the log. ``recalled``: given back."""

    peer: PeerId
    reason: str
    recalled: bool


Action: TypeAlias = AskSeat | DeclineOffer | SendFrame | RecallFrame | AskWhere | TellPath | Again
