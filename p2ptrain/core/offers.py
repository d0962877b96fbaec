"""The two bounds of one seat: what it has accepted, and what it has parked.

    NONE      --ask-->               RESERVED, if there is room
    NONE      --arrived, source-->   QUEUED, if there is room
    RESERVED  --arrived-->           QUEUED
    RESERVED  --decline, expire-->   NONE
    QUEUED    --started-->           COMPUTING
    COMPUTING --computed-->          PARKED, or NONE if no gradient will come
    PARKED    --returned-->          NONE
    any       --forget, clear-->     NONE

A microbatch is a guest: it knocks (ask), and is given one of a few slots of the queue or
told when to come again. A slot is free when the result lies in the retention store, *not*
when the next seat has taken it. After its forward the microbatch is parked: without a
slot, it waits for its gradient.

Why nothing can wait in a circle: a slot waits for this seat's compute, or, when parked
is at its bound, for a gradient; a gradient waits for a slot one stage *up*; and the
last stage parks nothing. Every wait points up, to a stage that needs nobody. Two duties
of the caller keep it so, and tests/core/test_offers_pipeline.py shows what happens without:
    * a returning gradient is taken always, without asking (its place is the parked one);
    * only what can be computed at once holds a slot: ask for the next stage only once
      computing has begun, and fetch a replay's input *before* asking for its slot.

Invariants:
    * queue <= queue_slots + replay_slots, and what is no replay uses queue_slots at most;
    * parked never grows past its bound, if forwards start only when `may_start` says so
      (a lowered bound is reached by draining);
    * one microbatch holds one place, however often it is asked for or arrives.

At the bounds: a full queue declines (the sender comes again), full parking stops forwards
(`may_start`), so that the queue fills. Refused: one slot from forward to gradient. Simulated
with four it reached .70 of capacity at 4 stages, .21 at 16; so 1.0 and .92 (DESIGN 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from p2ptrain.run import Limits
    from p2ptrain.units import Microbatch, Seconds

State: TypeAlias = Literal["none", "reserved", "queued", "computing", "parked"]

RETRY_MIN_SECONDS = 0.01  # an Ask costs a control message: at most 100 a second and sender
RETRY_MAX_SECONDS = 2.0  # a freed slot must not lie idle for long, however slow this seat is
UNKNOWN_SERVICE_SECONDS = 0.1  # before the first measurement: soon, without flooding


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A slot is reserved until ``expires_at``; ``ahead`` accepted ones are computed before."""

    expires_at: Seconds
    ahead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """No slot is free. ``reason``: why not; ``text``: the same for a log."""

    reason: Literal["queue", "parked"]
    retry_seconds: Seconds
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """This seat has the microbatch already: tell the asker where it stands."""

    state: Literal["queued", "computing", "parked"]


@dataclass(slots=True)
class _Place:
    """A place before PARKED. ``sourced`` ones count in the parked bound only."""

    state: Literal["reserved", "queued", "computing"]
    replay: bool
    sourced: bool = False
    expires_at: Seconds = math.inf


def parked_bound(
    *,
    stages: int,
    stage: int,
    share: float,
    replicas: int,
    total_slots: int,
    window_per_stage: int,
) -> int:
    """How many microbatches a seat may park: its part of what the stages above can hold.

    Args:
        stages: number of stages S.
        stage: the seat's stage s.
        share: the seat's fraction of its stage's rate, 0..1.
        replicas: seats serving the stage, this one included.
        total_slots: slots of a step, G + E: more can never be parked.
        window_per_stage: in flight per stage and average seat. On 16 stages of unequal seats
            4 / 8 reach 89 / 95% of capacity; it costs so many encoded inputs.
    """
    average = window_per_stage * (stages - stage)
    wanted = math.ceil(average * share * replicas - 1e-9)  # 1/3 times 3 is not one place more
    return max(1, min(wanted, total_slots))


class OfferBook:
    """Keep the places of one seat. Illegal events change nothing and answer False.

    Ask it for every microbatch that another seat wants to pass on, tell it what
    happens to those it took, and call :meth:`expire` no later than :attr:`due_at`.
    """

    def __init__(self, limits: Limits, *, parked_bound: int) -> None:
        self.limits = limits
        self._places: dict[Microbatch, _Place] = {}
        self._parked: set[Microbatch] = set()
        self._bound = parked_bound
        self._ceiling = parked_bound  # the bound, or what is left above a lowered one

    def ask(
        self,
        work: Microbatch,
        *,
        replay: bool,
        now: Seconds,
        service_seconds: Seconds = UNKNOWN_SERVICE_SECONDS,
    ) -> Offered | Declined | Held:
        """Reserve a slot for ``work``, or say why not. Asking again renews the lease.

        Args:
            work: what the asker wants to send.
            replay: it is a replay, and may use the slots kept for those.
            now: the loop's time.
            service_seconds: this seat's measured time per microbatch; the asker is told
                to come again after about one, for then a slot will have been freed.
        """
        self.expire(now=now)
        if work in self._parked:
            return Held(state="parked")
        place = self._places.get(work)
        if place is None:
            if not self._room(replay=replay):
                return self._declined(service_seconds)
            place = self._places[work] = _Place("reserved", replay)
        if place.state != "reserved":
            return Held(state=place.state)
        place.expires_at = now + self.limits.lease_seconds
        return Offered(expires_at=place.expires_at, ahead=self._ahead(work))

    def decline(self, work: Microbatch) -> bool:
        """The asker does not come: free the reservation."""
        return self.state(work) == "reserved" and self.forget(work)

    def arrived(self, work: Microbatch, *, now: Seconds, replay: bool = False) -> bool:
        """The frame is here whole. True: it holds a slot. False: drop it.

        A frame whose lease has lapsed, or that was never asked for, is taken while there
        is room; one that is here already is not taken twice.
        """
        place = self._places.get(work)
        if place is not None and place.state == "reserved":
            place.state, place.expires_at = "queued", math.inf
            return True
        self.expire(now=now)
        if place is not None or work in self._parked or not self._room(replay=replay):
            return False
        self._places[work] = _Place("queued", replay)
        return True

    def source(self, work: Microbatch, *, parks: bool = True) -> bool:
        """Stage 0 takes its own ``work`` from the data. True: it is queued; False: not now.

        It needs no queue slot, for nobody sends it; the parked bound is its window if it parks.
        """
        if self.state(work) != "none" or (parks and not self.source_room):
            return False
        self._places[work] = _Place("queued", replay=False, sourced=True)
        return True

    @property
    def source_room(self) -> int:
        """How many more could be sourced now."""
        return max(0, self._bound - self._window)

    def may_start(self, *, parks: bool = True) -> bool:
        """Whether a forward may start; what will not park (``parks`` False) always may."""
        computing = sum(place.state == "computing" for place in self._places.values())
        return not parks or len(self._parked) + computing < self._bound

    def started(self, work: Microbatch) -> bool:
        """Computing ``work`` has begun."""
        if self.state(work) != "queued":
            return False
        self._places[work].state = "computing"
        return True

    def computed(self, work: Microbatch, *, parks: bool = True) -> bool:
        """The result lies in the retention store: the slot is free, and ``work`` parked.

        ``parks`` False: no gradient will come for it (or it has been counted already).
        """
        if self.state(work) != "computing":
            return False
        del self._places[work]
        if parks:
            self._parked.add(work)
        self._drained()
        return True

    def returned(self, work: Microbatch) -> bool:
        """The gradient of a parked microbatch has been counted: its place is free."""
        return work in self._parked and self.forget(work)

    def forget(self, work: Microbatch) -> bool:
        """Free whatever place ``work`` holds (recalled, failed, rerouted)."""
        known = self._places.pop(work, None) is not None or work in self._parked
        self._parked.discard(work)
        self._drained()
        return known

    def clear(self) -> None:
        """Forget everything: the step was rolled back."""
        self._places.clear()
        self._parked.clear()
        self._drained()

    def expire(self, *, now: Seconds) -> tuple[Microbatch, ...]:
        """Free the reservations whose lease has lapsed, and name them."""
        lapsed = sorted([work for work, place in self._places.items() if place.expires_at <= now])
        for work in lapsed:
            del self._places[work]
        return tuple(lapsed)

    @property
    def due_at(self) -> Seconds | None:
        """When the next lease lapses; None: none is out."""
        first = min([place.expires_at for place in self._places.values()], default=math.inf)
        return None if first == math.inf else first

    def state(self, work: Microbatch) -> State:
        """Where ``work`` stands here."""
        if work in self._parked:
            return "parked"
        place = self._places.get(work)
        return "none" if place is None else place.state

    def waiting(self) -> tuple[Microbatch, ...]:
        """What is queued, oldest step first, then replays (all wait for them), then by slot."""
        queued = (work for work, place in self._places.items() if place.state == "queued")
        return tuple(sorted(queued, key=self._order))

    @property
    def queue(self) -> int:
        """Slots in use: reserved, waiting or computing."""
        return sum(not place.sourced for place in self._places.values())

    @property
    def reserved(self) -> int:
        """Slots that are offered and whose frame has not come."""
        return sum(place.state == "reserved" for place in self._places.values())

    @property
    def queue_bound(self) -> int:
        """What `queue` never exceeds."""
        return self.limits.queue_slots + self.limits.replay_slots

    @property
    def parked(self) -> int:
        """Microbatches that wait here for their gradient."""
        return len(self._parked)

    @property
    def parked_bound(self) -> int:
        """What `parked` never exceeds; after the bound was lowered, what has yet to drain."""
        return self._ceiling

    def set_parked_bound(self, bound: int) -> None:
        """Take over a new bound (the stage's rates changed); nothing parked is dropped."""
        self._bound = max(1, bound)
        self._drained()

    @property
    def _window(self) -> int:
        """Places that are parked, or surely will be: computing, or sourced and waiting."""
        begun = (p.sourced or p.state == "computing" for p in self._places.values())
        return len(self._parked) + sum(begun)

    def _drained(self) -> None:
        """Follow a lowered bound down; never up, so that a bound overrun would show."""
        self._ceiling = max(self._bound, min(self._ceiling, self._window))

    def _room(self, *, replay: bool) -> bool:
        """Replays fill their own slots first, then ordinary ones; nobody else uses theirs."""
        replays = sum(p.replay for p in self._places.values() if not p.sourced)
        free = self.queue_bound - self.queue
        return free > (0 if replay else max(0, self.limits.replay_slots - replays))

    def _order(self, work: Microbatch) -> tuple[int, bool, int]:
        return work.step, not self._places[work].replay, work.slot

    def _ahead(self, work: Microbatch) -> int:
        own = self._order(work)
        return sum(
            place.state == "computing" or self._order(other) < own
            for other, place in self._places.items()
        )

    def _declined(self, service_seconds: Seconds) -> Declined:
        retry = min(RETRY_MAX_SECONDS, max(RETRY_MIN_SECONDS, service_seconds))
        text = f"{self.queue} of {self.queue_bound} slots are taken, the rest is for replays"
        if self.may_start():
            return Declined(reason="queue", retry_seconds=retry, text=text)
        text = f"{self.parked} of {self._bound} microbatches wait here for their gradient"
        return Declined(reason="parked", retry_seconds=retry, text=text)
