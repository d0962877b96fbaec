"""Custody of one frame: it is somebody's duty until the next stage has counted it.

The sender of an input keeps the frame and is responsible until the microbatch stands in a
live bitmap of the receiving stage; the sender of a gradient likewise, one stage down.
One machine serves both, because they differ only in how they begin and in who acts when
the holder dies:

    forward   LOCATING --nobody has it--> IDLE --ask--> ASKING --offer--> OFFERED
                 |                         ^  busy, timeout |              | frame is ready
                 |                         +----------------+              v
                 |    recalled / holder lost / not counted any more      SENT --accepted--> HELD
                 |                         +--------- RECALLING <--late, link broke--------+ |
                 +--a seat has it--> (repath) COMPUTED <-----------------computed------------+
                                        `--in a live bitmap--> COUNTED (until its gradient
              is back, whoever counted it is looked for now and then, and told the path; a
              forward that is counted before it begins, begins here)
              (a seat that counts it and has no frame of it is sent it from any state, if its
              gradient is owed or the stage above lacks it: see core/deposits)
    gradient  IDLE --> SENT --accepted--> HELD --in a live bitmap--> COUNTED
              WAITING: the seat that parked the input is gone; whoever replays the input
              says so (moved), or the seat is found again, and the gradient goes there.

Invariants:
    * at most one seat is asked to compute a forward at a time, false suspicion apart: a
      frame is sent elsewhere only after the holder gave it back, is lost, or has left
      several questions in a row unanswered;
    * the sender of the input is the single writer of who holds it. That is why a lost seat
      is replayed from below alone: the gradient's keeper waits to be told (a second
      replay, driven from above, would need the two to agree on the new holder);
    * every state has a deadline but WAITING and a COUNTED that owes no gradient; also where
      nothing is owed but a bitmap: the holder may have closed its seat, and would say so
      only if asked;
    * an offer is taken or declined; what others say can be late, doubled or a lie, and then
      costs a question or a replay, never the microbatch.

Bound: retries go on until the microbatch is counted, which the step's end forces, each
after a pause. Refused: hedging. A copy computed twice costs work and an overlap to undo
(DESIGN 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, assert_never

from p2ptrain.core.duties import (
    Again,
    Answered,
    Arrived,
    AskSeat,
    AskWhere,
    DeclineOffer,
    Finished,
    Found,
    LinkBroke,
    Located,
    Lost,
    Moved,
    Owed,
    Ready,
    RecallFrame,
    Returned,
    SendFailed,
    SendFrame,
    State,
    Tallied,
    TellPath,
)
from p2ptrain.core.sparing import Spare

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.core.duties import Action, CustodyLimits, Event, Held, What
    from p2ptrain.core.routing import Choice, Quote, Router
    from p2ptrain.core.stragglers import Delays
    from p2ptrain.units import Microbatch, PeerId, Seconds

TAKEN_OUT_SECONDS = 1.5  # a bitmap is gossiped within one
ASK_GAP_SECONDS = 0.01  # an Ask costs a control message: at most 100 a second and microbatch

_UNPLACED = frozenset({State.LOCATING, State.IDLE, State.ASKING, State.OFFERED})
_PLACED = frozenset({State.SENT, State.HELD, State.RECALLING, State.COMPUTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What all forwards of one seat share: whom to ask next, and what they usually take."""

    router: Router
    delays: Delays
    spare: Spare = field(default_factory=Spare)


class Custody:
    """See the module. Feed it events; look at the clock no later than ``due_at``.

    A forward needs its ``way``, a gradient its ``target``. ``replay``: somebody of the next
    stage may have it already. ``returns``: a gradient will come back (not when evaluating).
    """

    def __init__(
        self,
        work: Microbatch,
        limits: CustodyLimits,
        *,
        way: Way | None = None,
        target: PeerId | None = None,
        replay: bool = False,
        returns: bool = False,
    ) -> None:
        self.work: Final = work
        self.what: Final[What] = "gradient" if way is None else "forward"
        self.holder: PeerId | None = target
        self.attempt = 0
        self.replay: Final = replay
        self.ready = self.what == "gradient"
        self.due_at: Seconds | None = None
        self.state = State.IDLE
        self._limits = limits
        self._owed = returns  # a gradient
        self._back = False  # it is here
        self._spare = way.spare if way is not None else Spare()
        self._router = way.router if way is not None else None
        self._delays = way.delays if way is not None else None
        self._choice: Choice | None = None
        self._answers: dict[PeerId, Quote | None] = {}
        self._leases: dict[PeerId, Seconds] = {}  # of an offer; when to ask again who is busy
        self._waits_since: Seconds | None = None  # a slower seat has offered
        self._offered_seconds = 0.0
        self._held_at = 0.0
        self._silences = 0
        self._unheard: set[PeerId] = set()  # asked where it is, not heard yet
        self._next: PeerId | None = None  # of a gradient: where to, if it is needed again
        self._bare_at: PeerId | None = None  # who has counted it and lacks it (core/deposits)

    @property
    def spare(self) -> bool:
        """Whether nobody below waits for it: the next stage alone lacks it (core/sparing)."""
        return self._back and not self._spare.over

    def start(
        self, *, now: Seconds, seats: Iterable[PeerId] = (), counted: bool = False
    ) -> tuple[Action, ...]:
        """Begin; call once. ``seats``: of the next stage, who may have a replayed forward.

        ``counted``: it stands in a live bitmap there already. Only who counted it is of use
        then: a mate of that one that has it as well gets no gradient while the count lives.
        """
        if counted:
            return self._counted(now)
        self._unheard = set(seats) if self.replay and self.what == "forward" else set()
        if not self._unheard:
            return self._begin(now)
        self.state, self.due_at = State.LOCATING, now + self._limits.answer_seconds
        return (AskWhere(None),)

    def handle(self, event: Event, *, now: Seconds) -> tuple[Action, ...]:  # noqa: C901, PLR0911, PLR0912 - one arm per event
        """Take ``event`` into account and return what to do about it."""
        match event:
            case Ready():
                return self._made_ready(now)
            case Answered():
                return self._answered(event, now)
            case SendFailed(peer, attempt):
                return self._send_failed(peer, attempt, now)
            case LinkBroke(peer) if peer == self.holder and self.state is State.SENT:
                return self._overdue(now)
            case Arrived(peer) if peer == self.holder and self.state is State.SENT:
                self._hold(self._patience(peer), now)
            case Finished(peer, service):
                self._finished(peer, service, now)
            case Located(peer, held):
                return self._located(peer, held, now)
            case Moved(peer) if self.what == "gradient":
                return self._moved(peer, now)
            case Lost(peer):
                return self._lost(peer, now)
            case Found(peer) if self.state is State.WAITING and peer == self._next:
                return self._moved(peer, now)
            case Tallied(live):
                return self._counted(now) if live else self._uncounted(now)
            case Returned():
                self._owed, self._back = False, True
                self.due_at = None if self.state is State.COUNTED else self.due_at
            case Owed():
                return self._owe(now)
            case LinkBroke() | Arrived() | Moved() | Found():
                pass  # of an attempt that is over
            case _:
                assert_never(event)
        return ()

    def tick(self, *, now: Seconds) -> tuple[Action, ...]:  # noqa: PLR0911 - one arm per state
        """Act on a deadline that has passed, if one has."""
        if self.due_at is None or now < self.due_at:
            return ()
        match self.state:
            case State.LOCATING | State.IDLE:
                return self._begin(now)
            case State.ASKING:
                return self._settle(now)
            case State.OFFERED:  # the lease has run out while we computed
                return self._unused_offers() + self._begin(now)
            case State.SENT | State.HELD | State.RECALLING | State.COMPUTED:
                return self._overdue(now)
            case State.COUNTED:
                return self._find_counter(now)
            case State.WAITING:
                self.due_at = None
                return ()
            case _:
                assert_never(self.state)

    # --- finding a seat ---------------------------------------------------------------

    def _begin(self, now: Seconds) -> tuple[Action, ...]:
        """From IDLE: ask somebody, or send at once where the way is given."""
        if self._router is None:
            return self._send(now)
        self._unheard, self._answers = set(), {}
        if self.spare and not self._spare.may_ask(self.work, now=now):
            return self._rest(now)
        self._choice = self._router.choose(now=now)
        if self._choice is None:  # everybody is busy, backed off or gone
            return self._rest(now)
        self.state, self.due_at = State.ASKING, now + self._limits.answer_seconds
        return tuple(AskSeat(peer, self.attempt) for peer in self._asked())

    def _rest(self, now: Seconds, *, at: Seconds | None = None) -> tuple[Action, ...]:
        """Wait until ``at``, or until the first seat may be asked again."""
        if self.spare:
            self.state, self.due_at = State.IDLE, self._spare.turn(now=now)
            return ()
        assert self._router is not None
        at = self._router.retry_at(now=now) if at is None else at
        soonest = now + (self._limits.retry_seconds if at is None else ASK_GAP_SECONDS)
        latest = now + self._limits.idle_seconds
        self.state, self.due_at = State.IDLE, min(max(at or 0.0, soonest), latest)
        return ()

    def _answered(self, event: Answered, now: Seconds) -> tuple[Action, ...]:
        assert self._router is not None
        current = self.state is State.ASKING and event.attempt == self.attempt
        if not current or event.peer not in self._asked() or event.peer in self._answers:
            taken = self.holder if self.state in (State.OFFERED, State.SENT) else None
            known = event.attempt == self.attempt and (
                event.peer == taken or self._answers.get(event.peer) is not None
            )  # it repeats itself: its first word counts
            late = event.quote is not None and not known
            return (DeclineOffer(event.peer, event.attempt),) if late else ()
        self._answers[event.peer] = event.quote
        self._leases[event.peer] = event.seconds
        if event.quote is None and not self.spare:
            self._router.busy(event.peer, event.seconds, now=now)
        return self._settle_if_heard(now)

    def _settle_if_heard(self, now: Seconds) -> tuple[Action, ...]:
        return self._settle(now) if len(self._answers) == len(self._asked()) else ()

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
            answers.get(choice.first),
            answers.get(other) if other is not None else None,
            now=now,
            patient=not self.spare and self._patient(now),
            asked=self._asked(),
        )
        taken = {"first": choice.first, "alternative": other, None: None}[settlement.take]
        declined = self._unused_offers(but=taken)
        quote = answers[taken] if taken is not None else None
        if self.spare:
            retries = [self._leases.get(peer, math.inf) for peer, had in answers.items() if not had]
            pause = 0.0 if taken is not None else min(retries, default=math.inf)
            self._spare.answered(self.work, pause_seconds=pause, now=now)
        if taken is None or quote is None:
            return declined + self._rest(now, at=settlement.retry_at)
        self.holder, self.state = taken, State.OFFERED
        self._offered_seconds = quote.delay
        lease = min(self._leases[taken], self._limits.send_seconds)  # its own word, within reason
        self.due_at = now + max(lease, self._limits.retry_seconds)
        return declined + (self._send(now) if self.ready else ())

    def _patient(self, now: Seconds) -> bool:
        """Whether to wait for a busy seat: not for longer than a slower one would have taken."""
        delays = [quote.delay for quote in self._answers.values() if quote is not None]
        if self._waits_since is None and delays:
            self._waits_since = now
        return self._waits_since is not None and now - self._waits_since < min(delays, default=0.0)

    def _unused_offers(self, *, but: PeerId | None = None) -> tuple[Action, ...]:
        """Give back every offer but one: those that were answered, or the one we had taken."""
        unused = [peer for peer, quote in self._answers.items() if quote is not None]
        if self.state is State.OFFERED and self.holder is not None:
            unused = [self.holder]
            self.holder = None
        elif self.state is not State.ASKING:
            unused = []
        self._choice, self._answers = None, {}
        return tuple(DeclineOffer(peer, self.attempt) for peer in unused if peer != but)

    # --- at its holder ----------------------------------------------------------------

    def _send(self, now: Seconds) -> tuple[Action, ...]:
        if self.holder is None:
            self.state, self.due_at = State.WAITING, None
            return ()
        self.state, self.due_at = State.SENT, now + self._limits.send_seconds
        self._silences = 0
        return (SendFrame(self.holder, self.attempt),)

    def _send_failed(self, peer: PeerId, attempt: int, now: Seconds) -> tuple[Action, ...]:
        on_its_way = self.state in (State.SENT, State.RECALLING)
        if peer != self.holder or attempt != self.attempt or not on_its_way:
            return ()
        if peer == self._bare_at:  # it is counted there: nobody else is to compute it
            self._asks_soon(now)
            return ()
        return self._again("the frame did not go out", now, delay=self._limits.retry_seconds)

    def _hold(self, seconds: Seconds, now: Seconds) -> None:
        if self.state is State.SENT:
            self._held_at = now
        self.state, self._silences = State.HELD, 0
        self.due_at = now + seconds

    def _patience(self, peer: PeerId) -> Seconds:
        """How long to leave a frame with ``peer`` before asking; a gradient has no hurry."""
        if self._delays is None:
            return self._limits.check_seconds
        floor = self._limits.recall_floor_seconds
        return self._delays.deadline(peer, self._offered_seconds, floor_seconds=floor)

    def _finished(self, peer: PeerId, service: Seconds, now: Seconds) -> None:
        if self._router is None or self._delays is None or peer != self.holder:
            return
        self._router.observed(peer, service)
        if self.state in (State.HELD, State.RECALLING) and not self.spare:
            self._delays.observe(peer, now - self._held_at)
        if self.state in _PLACED:
            self._compute_done(now)

    def _compute_done(self, now: Seconds) -> None:
        self.state, self._silences = State.COMPUTED, 0
        self.due_at = now + self._limits.check_seconds

    def _overdue(self, now: Seconds) -> tuple[Action, ...]:
        """The holder is late: a gradient's is asked, a forward's must give it back."""
        assert self.holder is not None
        if self._silences >= self._limits.most_silences:
            return self._give_up(self.holder, "it answers no question", now)
        self._silences += 1
        self.due_at = now + self._limits.answer_seconds
        if self.what == "gradient" or self.state is State.COMPUTED:
            return (AskWhere(self.holder),)
        slow = self.state is State.HELD and not self.spare  # that waits for all else, as it should
        if slow and self._router is not None and self._delays is not None:
            waited = now - self._held_at
            self._delays.observe(self.holder, waited)
            self._router.timed_out(self.holder, waited, now=now)
        self.state = State.RECALLING
        return (RecallFrame(self.holder),)

    def _located(self, peer: PeerId, held: Held, now: Seconds) -> tuple[Action, ...]:  # noqa: C901, PLR0911 - one for each thing it can mean
        if held in ("bare", "wanted"):
            return self._located_bare(peer, now, wanted=held == "wanted")
        if self.state is State.COUNTED and self._owed and held == "counted":
            return (TellPath(peer),)
        if self.what == "forward" and self.state in _UNPLACED:
            return self._located_early(peer, held, now)
        if peer != self.holder or self.state not in _PLACED:
            return ()
        if self._router is None:
            return self._located_gradient(peer, held, now)
        if held == "none":
            if self.state is State.SENT:  # offered, then bounced
                self._router.busy(peer, self._limits.idle_seconds, now=now)
                return self._again("it bounced", now, delay=self._limits.retry_seconds)
            return self._given_back(now)
        if held in ("queued", "computing"):
            self._hold(max(self._patience(peer), self._limits.answer_seconds), now)
            return ()
        self._compute_done(now)  # if the step is over there, its sum is on its way to us
        return (TellPath(peer),) if self._owed and held == "counted" else ()

    def _located_bare(self, peer: PeerId, now: Seconds, *, wanted: bool) -> tuple[Action, ...]:
        """``peer`` counts it, of a mate that is gone, and has no frame of it.

        If somebody waits for what only that frame leads to, it goes there, past all queues.
        """
        there, placed = peer == self.holder, self.state in _PLACED
        under_way = there and placed and self.state is not State.COMPUTED
        if self.what == "gradient" or (placed and not there) or (wanted and under_way):
            return ()
        if under_way:  # it bounced, or was dropped
            self._asks_soon(now)
            return ()
        if wanted or self._owed:
            self._bare_at = peer
            return self._send_bare(now) if self.ready else self._wait_for_it(peer, now)
        if placed:
            self._compute_done(now)
            return ()
        return self._located_early(peer, "counted", now) if self.state in _UNPLACED else ()

    def _asks_soon(self, now: Seconds) -> None:
        """Whoever counts it is asked before long: no bitmap may tell, if the step is over."""
        self._compute_done(now)
        self.due_at = now + (
            self._limits.idle_seconds if self._owed else self._limits.check_seconds
        )

    def _wait_for_it(self, peer: PeerId, now: Seconds) -> tuple[Action, ...]:
        """It goes there, past all queues, as soon as it is ready."""
        unused = self._unused_offers()
        self.holder, self.state, self.attempt = peer, State.OFFERED, self.attempt + 1
        self.due_at = now + self._limits.send_seconds
        return unused

    def _send_bare(self, now: Seconds) -> tuple[Action, ...]:
        unused = self._unused_offers()
        self.holder, self._offered_seconds = self._bare_at, 0.0
        self.attempt += 1
        return unused + self._send(now)

    def _made_ready(self, now: Seconds) -> tuple[Action, ...]:
        self.ready = True
        if self.state is State.OFFERED:
            return self._send(now)
        waits = self._bare_at is not None and self.state is State.COUNTED
        return self._send_bare(now) if waits else ()

    def _given_back(self, now: Seconds) -> tuple[Action, ...]:
        if self.state is State.COMPUTED and not self._silences:
            # It has taken it out again, for another seat had counted it, too. If that one lives,
            # its bitmap is on its way here; if not, ask again before much time is lost.
            self.due_at = min(self.due_at or now, now + TAKEN_OUT_SECONDS)
            return ()
        return self._again("recalled", now, recalled=True)

    def _located_early(self, peer: PeerId, held: Held, now: Seconds) -> tuple[Action, ...]:
        """No seat has it from us yet: one that has it from another path is taken."""
        if held not in ("none", "committed"):
            return self._adopt(peer, held, now)
        if self.state is State.LOCATING:
            self._unheard.discard(peer)
            return () if self._unheard else self._begin(now)
        if self.state is State.ASKING and peer in self._asked():
            self._answers.setdefault(peer, None)  # no offer, and no fault of its
            return self._settle_if_heard(now)
        return ()

    def _located_gradient(self, peer: PeerId, held: Held, now: Seconds) -> tuple[Action, ...]:
        if held == "none":  # nobody waits for it there: whoever replays will say
            self.state, self.due_at, self.holder, self._next = State.WAITING, None, None, peer
            return ()
        if held in ("parked", "queued"):  # it waits there, so ours has not come
            return self._send(now)
        self._hold(self._limits.check_seconds, now)
        return ()

    def _adopt(self, peer: PeerId, held: Held, now: Seconds) -> tuple[Action, ...]:
        """A seat of the next stage has it already, from a path that died below it."""
        given_back = tuple(
            a for a in self._unused_offers() if a != DeclineOffer(peer, self.attempt)
        )
        self.holder, self._offered_seconds = peer, 0.0
        if held in ("parked", "counted"):
            self._compute_done(now)
        else:
            self._held_at = now
            self._hold(self._patience(peer), now)
        return (*given_back, TellPath(peer))

    # --- new ways -----------------------------------------------------------------------

    def _moved(self, peer: PeerId, now: Seconds) -> tuple[Action, ...]:
        self._next = peer
        there = peer == self.holder and self.state in _PLACED
        if there and self.state is State.HELD:  # it has taken it out again, and ours with it
            return self._send(now)
        if there or self.state is State.COUNTED:
            return ()  # remembered, should the count vanish
        self.holder = peer
        return self._send(now)

    def _lost(self, peer: PeerId, now: Seconds) -> tuple[Action, ...]:
        if self.state is State.LOCATING:
            self._unheard.discard(peer)
            return () if self._unheard else self._begin(now)
        if self.state is State.ASKING and peer in self._asked():
            self._answers.setdefault(peer, None)
            return self._settle_if_heard(now)
        self._bare_at = None if peer == self._bare_at else self._bare_at
        if peer != self.holder or self.state is State.COUNTED:  # the ledger decides: see Tallied
            return ()
        if self.state is State.OFFERED:
            self.holder = None
            return self._begin(now)
        return self._give_up(peer, "the holder is lost", now) if self.state in _PLACED else ()

    def _give_up(self, peer: PeerId, reason: str, now: Seconds) -> tuple[Action, ...]:
        if self.what == "gradient":
            self.state, self.due_at, self.holder, self._next = State.WAITING, None, None, peer
            return ()
        return self._again(reason, now)

    def _counted(self, now: Seconds) -> tuple[Action, ...]:
        if self.state is State.COUNTED:
            return ()
        unused, ours = self._unused_offers(), self.state in _PLACED and self.attempt == 0
        self.state, self.due_at, self._next = State.COUNTED, None, None
        if not self._owed:
            return unused
        self.due_at = now + self._limits.check_seconds
        # Counted on another path than ours: its gradient would go where that one began.
        return unused if ours and not self.replay else unused + self._find_counter(now)

    def _find_counter(self, now: Seconds) -> tuple[Action, ...]:
        self.due_at = now + self._limits.check_seconds if self._owed else None
        return (AskWhere(None),) if self._owed else ()

    def _owe(self, now: Seconds) -> tuple[Action, ...]:
        """The gradient came and is gone: its keeper took us to have it, or sent it elsewhere."""
        spare, self._owed, self._back = self.spare, True, False
        if self.state is State.COUNTED:
            return self._find_counter(now)
        if spare and self.state is State.IDLE:
            return self._begin(now)
        has = self.state is State.COMPUTED or (spare and self.state is State.HELD)
        if has and self.holder is not None:
            return (TellPath(self.holder),)
        return ()

    def _uncounted(self, now: Seconds) -> tuple[Action, ...]:
        """It was counted by a seat that is lost, or was taken out again."""
        self._bare_at = None
        if self.state is not State.COUNTED:
            return ()
        if self.what == "forward":
            return self._again("not counted any more", now)
        self.holder = self._next
        return self._send(now)

    def _again(
        self, reason: str, now: Seconds, *, recalled: bool = False, delay: Seconds = 0.0
    ) -> tuple[Action, ...]:
        """Send a forward a new way. A gradient has only one: the same seat."""
        self.attempt += 1
        self._silences, self._waits_since, self._bare_at = 0, None, None
        self.state, self.due_at = State.IDLE, now + delay
        if self.what == "gradient":
            self.due_at = now + self._limits.idle_seconds  # there is no other way to try first
            return ()
        told = () if self.holder is None else (Again(self.holder, reason, recalled),)
        self.holder = None
        return told if delay else told + self._begin(now)

    def _asked(self) -> tuple[PeerId, ...]:
        if self._choice is None:
            return ()
        other = self._choice.alternative
        return (self._choice.first,) if other is None else (self._choice.first, other)
