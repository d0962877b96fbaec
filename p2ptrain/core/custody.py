"""Custody of one frame: it is somebody's duty until the next stage has counted it.

The sender of an input keeps the frame and is responsible until the microbatch stands in a
live bitmap of the receiving stage; the sender of a gradient likewise, one stage down.
One machine serves both, because they differ only in how they begin and in who acts when
the holder dies:

    forward   LOCATING --nobody has it--> IDLE --ask--> ASKING --offer--> OFFERED
                 |                         ^  busy, timeout |              | frame is ready
                 |                         +----------------+              v
                 |    recalled / holder lost / not counted any more      SENT --accepted--> HELD
                 |                         +-----------------------------------------------+ |
                 +--a seat has it--> (repath) COMPUTED <-----------------computed------------+
                                        `--in a live bitmap--> COUNTED
    gradient  IDLE --> SENT --accepted--> HELD --in a live bitmap--> COUNTED
              WAITING: the seat that parked the input is gone; whoever replays the input
              says so (repath), and the gradient goes there.

Invariants:
    * at most one seat is asked to compute a forward at a time, false suspicion apart: a
      frame is sent elsewhere only after the holder gave it back or is lost;
    * the sender of the input is the single writer of who holds it. That is why a lost seat
      is replayed from below alone: the gradient's keeper waits to be told (a second
      replay, driven from above, would need the two to agree on the new holder);
    * every state but WAITING and COUNTED has a deadline.

Refused: hedging. A copy computed twice costs work and an overlap to undo (DESIGN 4).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, assert_never

if TYPE_CHECKING:
    from p2ptrain.core.routing import Choice, Quote, Router
    from p2ptrain.units import Microbatch, PeerId, Seconds

What = Literal["forward", "gradient"]
Held = Literal["none", "queued", "computing", "parked", "counted", "committed"]

RECALL_FACTOR = 2.5  # a forward this many times later than expected is recalled (DESIGN 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyLimits:
    """Deadlines in seconds.

    ``answer_seconds``: control messages are answered by the loop, never behind compute, so
    a wide-area round trip and some loop lag bound them. ``retry_seconds``: pause after
    nobody offered. ``send_seconds``: from offer to the acceptance of the whole frame.
    ``recall_floor_seconds``: no forward is recalled sooner; estimates start rough.
    """

    answer_seconds: Seconds = 3.0
    retry_seconds: Seconds = 0.1
    send_seconds: Seconds = 30.0
    recall_floor_seconds: Seconds = 5.0


class State(enum.Enum):
    """Where a frame stands; see the drawing."""

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
    """The frame did not go out whole to ``peer``."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Arrived:
    """``peer`` has accepted the frame."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Finished:
    """``peer`` has computed the forward in ``service_seconds``."""

    peer: PeerId
    service_seconds: Seconds


@dataclass(frozen=True, slots=True)
class Located:
    """``peer`` says what it holds of the microbatch."""

    peer: PeerId
    held: Held


@dataclass(frozen=True, slots=True)
class Moved:
    """``peer`` holds the input of this gradient's stage now (it replays it)."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Lost:
    """``peer`` is suspected, has left, or is another incarnation."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Tallied:
    """Whether the microbatch stands in a live bitmap of the receiving stage."""

    live: bool


Event = Ready | Answered | SendFailed | Arrived | Finished | Located | Moved | Lost | Tallied


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


Action = AskSeat | DeclineOffer | SendFrame | RecallFrame | AskWhere | TellPath | Again


class Custody:
    """See the module. Feed it events; look at the clock no later than ``due_at``."""

    def __init__(
        self,
        work: Microbatch,
        what: What,
        limits: CustodyLimits,
        *,
        router: Router | None = None,
        target: PeerId | None = None,
        replay: bool = False,
    ) -> None:
        self.work: Final = work
        self.what: Final = what
        self.holder: PeerId | None = target
        self.attempt = 0
        self.replay: Final = replay
        self.ready = what == "gradient"
        self.due_at: Seconds | None = None
        self.state = State.LOCATING if replay and what == "forward" else State.IDLE
        self._limits = limits
        self._router = router
        self._choice: Choice | None = None
        self._answers: dict[PeerId, Quote | None] = {}
        self._leases: dict[PeerId, Seconds] = {}
        self._retry_seconds = 0.0
        self._quote: Quote | None = None

    def start(self, *, now: Seconds) -> tuple[Action, ...]:
        """Begin; call once."""
        if self.state is State.LOCATING:
            self.due_at = now + self._limits.answer_seconds
            return (AskWhere(None),)
        return self._begin(now)

    def handle(self, event: Event, *, now: Seconds) -> tuple[Action, ...]:  # noqa: C901, PLR0911, PLR0912 - one arm per event
        """Take ``event`` into account and return what to do about it."""
        match event:
            case Ready():
                self.ready = True
                return self._send(now) if self.state is State.OFFERED else ()
            case Answered():
                return self._answered(event, now)
            case SendFailed(peer) if peer == self.holder and self.state is State.SENT:
                return self._again(
                    "the frame did not go out", now, delay=self._limits.retry_seconds
                )
            case Arrived(peer) if peer == self.holder and self.state is State.SENT:
                return self._held(now)
            case Finished(peer, service) if peer == self.holder and self._router is not None:
                self._router.observed(peer, service)
                self.state, self.due_at = State.COMPUTED, None
            case Located(peer, held):
                return self._located(peer, held, now)
            case Moved(peer) if self.what == "gradient" and self.state is not State.COUNTED:
                self.holder = peer
                return self._send(now)
            case Lost(peer):
                return self._lost(peer, now)
            case Tallied(live):
                return self._tallied(live=live, now=now)
            case SendFailed() | Arrived() | Finished() | Moved():
                pass  # of an attempt that is over
            case _:
                assert_never(event)
        return ()

    def tick(self, *, now: Seconds) -> tuple[Action, ...]:
        """Act on a deadline that has passed, if one has."""
        if self.due_at is None or now < self.due_at:
            return ()
        match self.state:
            case State.LOCATING | State.IDLE:
                return self._begin(now)
            case State.ASKING:
                return self._settle(now)
            case State.OFFERED:  # the lease has run out while we computed
                self._choice, self._quote = None, None
                return self._begin(now)
            case State.SENT | State.HELD | State.RECALLING:
                return self._overdue(now)
            case State.COMPUTED | State.WAITING | State.COUNTED:
                self.due_at = None
                return ()
            case _:
                assert_never(self.state)

    # --- transitions ----------------------------------------------------------------

    def _begin(self, now: Seconds) -> tuple[Action, ...]:
        """From IDLE: ask somebody, or send at once where the way is given."""
        if self.what == "gradient":
            return self._send(now)
        assert self._router is not None
        choice = self._router.choose(now=now)
        if choice is None:  # everybody is busy, backed off or gone
            self.state, self.due_at = State.IDLE, now + self._limits.retry_seconds
            return ()
        self.state, self._choice, self._answers = State.ASKING, choice, {}
        self._retry_seconds = self._limits.retry_seconds
        self.due_at = now + self._limits.answer_seconds
        asked = (
            (choice.first,) if choice.alternative is None else (choice.first, choice.alternative)
        )
        return tuple(AskSeat(peer, self.attempt) for peer in asked)

    def _answered(self, event: Answered, now: Seconds) -> tuple[Action, ...]:
        asked = self._asked()
        current = self.state is State.ASKING and event.attempt == self.attempt
        if not current or event.peer not in asked or event.peer in self._answers:
            late = event.quote is not None and not (
                event.peer == self.holder and event.attempt == self.attempt
            )
            return (DeclineOffer(event.peer, event.attempt),) if late else ()
        self._answers[event.peer] = event.quote
        self._leases[event.peer] = event.seconds
        if event.quote is None:
            assert self._router is not None
            self._retry_seconds = max(self._retry_seconds, event.seconds)
            self._router.busy(event.peer, event.seconds, now=now)
        return self._settle(now) if len(self._answers) == len(asked) else ()

    def _settle(self, now: Seconds) -> tuple[Action, ...]:
        """All asked seats have answered, or the deadline has passed: take one or none."""
        assert self._router is not None
        assert self._choice is not None
        choice, answers = self._choice, self._answers
        for peer in self._asked():
            if peer not in answers:
                self._router.timed_out(peer, self._limits.answer_seconds, now=now)
        other = choice.alternative
        settlement = self._router.settle(
            answers.get(choice.first), answers.get(other) if other is not None else None
        )
        taken = {"first": choice.first, "alternative": other, None: None}[settlement.take]
        declined = tuple(
            DeclineOffer(peer, self.attempt)
            for peer in self._asked()
            if peer != taken and answers.get(peer) is not None
        )
        self._choice = None
        if taken is None:
            self.state, self.due_at = State.IDLE, now + self._retry_seconds
            return declined
        quote = answers[taken]
        assert quote is not None
        self.holder, self._quote, self.state = taken, quote, State.OFFERED
        self.due_at = now + self._leases[taken]
        return declined + (self._send(now) if self.ready else ())

    def _send(self, now: Seconds) -> tuple[Action, ...]:
        if self.holder is None:
            self.state, self.due_at = State.WAITING, None
            return ()
        self.state, self.due_at = State.SENT, now + self._limits.send_seconds
        return (SendFrame(self.holder, self.attempt),)

    def _held(self, now: Seconds) -> tuple[Action, ...]:
        self.state = State.HELD
        if self.what == "gradient":
            self.due_at = None  # a gradient is never refused and never recalled
        else:
            expected = self._quote.delay if self._quote is not None else 0.0
            patience = max(RECALL_FACTOR * expected, self._limits.recall_floor_seconds)
            self.due_at = now + patience
        return ()

    def _overdue(self, now: Seconds) -> tuple[Action, ...]:
        """The holder is late: a gradient's is asked, a forward's must give it back."""
        assert self.holder is not None
        self.due_at = now + self._limits.answer_seconds
        if self.what == "gradient":
            return (AskWhere(self.holder),)
        if self.state is not State.RECALLING and self._router is not None and self._quote:
            waited = max(RECALL_FACTOR * self._quote.delay, self._limits.recall_floor_seconds)
            self._router.timed_out(self.holder, waited, now=now)
        self.state = State.RECALLING  # silence here feeds suspicion; Lost ends it
        return (RecallFrame(self.holder),)

    def _located(self, peer: PeerId, held: Held, now: Seconds) -> tuple[Action, ...]:
        if self.state in (State.LOCATING, State.ASKING) and held not in ("none", "committed"):
            return self._adopt(peer, now)
        if peer != self.holder or self.state not in (State.SENT, State.HELD, State.RECALLING):
            return ()
        if held in ("none", "committed"):
            if self.what == "gradient":  # nobody waits for it there: whoever replays will say
                self.state, self.due_at, self.holder = State.WAITING, None, None
                return ()
            return self._again("recalled", now, recalled=True)
        if held in ("queued", "computing"):
            self.state, self.due_at = State.HELD, now + self._limits.recall_floor_seconds
        else:
            self.state, self.due_at = State.COMPUTED, None
        return ()

    def _adopt(self, peer: PeerId, now: Seconds) -> tuple[Action, ...]:
        """A seat of the next stage has it already, from a path that died below it."""
        others = tuple(
            DeclineOffer(other, self.attempt)
            for other, quote in self._answers.items()
            if quote is not None and other != peer
        )
        self._choice, self._answers = None, {}
        self.holder, self.state = peer, State.HELD
        self.due_at = now + self._limits.send_seconds
        return (*others, TellPath(peer))

    def _lost(self, peer: PeerId, now: Seconds) -> tuple[Action, ...]:
        if self.state is State.ASKING and peer in self._asked():
            self._answers.setdefault(peer, None)
            return self._settle(now) if len(self._answers) == len(self._asked()) else ()
        if peer != self.holder or self.state in (State.IDLE, State.LOCATING, State.WAITING):
            return ()
        if self.state is State.COUNTED:  # the ledger decides: see Tallied
            return ()
        if self.what == "gradient":
            self.state, self.due_at, self.holder = State.WAITING, None, None
            return ()
        return self._again("the holder is lost", now)

    def _tallied(self, *, live: bool, now: Seconds) -> tuple[Action, ...]:
        if live and self.state is not State.COUNTED:
            unused = tuple(
                DeclineOffer(peer, self.attempt)
                for peer, quote in self._answers.items()
                if self.state is State.ASKING and quote is not None
            )
            if self.state is State.OFFERED and self.holder is not None:
                unused = (DeclineOffer(self.holder, self.attempt),)
            self.state, self.due_at, self._choice, self._answers = State.COUNTED, None, None, {}
            return unused
        if not live and self.state is State.COUNTED:
            if self.what == "gradient":
                self.state, self.holder = State.WAITING, None
                return ()
            return self._again("not counted any more", now)
        return ()

    def _again(
        self, reason: str, now: Seconds, *, recalled: bool = False, delay: Seconds = 0.0
    ) -> tuple[Action, ...]:
        """Send the frame a new way. A gradient has only one: the same seat."""
        peer = self.holder
        assert peer is not None
        if self.what == "gradient":
            self.state, self.due_at = State.IDLE, now + delay
            return (Again(peer, reason, recalled),)
        self.attempt += 1
        self.holder, self._quote, self._choice, self._answers = None, None, None, {}
        self.state, self.due_at = State.IDLE, now + delay
        return (Again(peer, reason, recalled), *(self._begin(now) if delay == 0.0 else ()))

    def _asked(self) -> tuple[PeerId, ...]:
        if self._choice is None:
            return ()
        other = self._choice.alternative
        return (self._choice.first,) if other is None else (self._choice.first, other)
