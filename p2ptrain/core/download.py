"""Taking over a stage's state: which step's, from whom, which chunk next.

Intuition: one owner may err or lie, two that do not know of each other's answer hardly the
same way. So the state is believed whose Merkle root two owners give for one and the same
step, and then every chunk is believed for its own sake, whoever sends it.

    AGREEING  ask everybody for the snapshot of step v
              an owner behind v answers when it gets there, one past v with a newer one
              two give the same -> FETCHING
              all have answered, no two the same -> again, with a v that all can reach
              nobody else to ask -> FETCHING from one owner, with a warning
    FETCHING  every chunk from the owner that would have it here first (core/sources)
              corrupt -> its sender is out; late -> somebody else is asked
              no owner left -> AGREEING again, what has come stays if the root stays
    DONE      every chunk is there
    FAILED    nobody is left, or owners contradict each other and no two agree

Invariants:
    * nothing counts that does not match its leaf, and no leaf that does not match its root;
    * every wait ends: by an answer, a deadline that follows from the measured rate, or a
      bound on the rounds;
    * an owner that is refused is named, with the reason.

Refused: agreeing on the newest step. Owners commit while they answer, so the newest of
one is never the newest of the other for long; a step that lies ahead of both is common.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, assert_never

from p2ptrain.core.sources import STRIKES, Source, next_source
from p2ptrain.core.transfer import (
    Arrived,
    AskChunk,
    AskSnapshot,
    Denied,
    Gone,
    Keep,
    Offered,
    Refuse,
    Take,
    Warn,
    most_given,
)
from p2ptrain.units import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.transfer import Action, Event, Snapshot
    from p2ptrain.units import Bytes, PeerId, Seconds

OWNERS: Final = 2
"""Who must give the same root; one, with a warning, where there are no two."""

ANSWER_SECONDS: Final = 30.0
"""For a snapshot to be saved, behind what the owner's device computes, or to be reached."""

AHEAD: Final = (0, 0, 1, 2, 4)
"""By round: how far before the foremost owner the common step is sought. The owners' next
step comes within ANSWER_SECONDS or nobody needs to wait for it: who is past it then would
have been at the one before."""

AHEAD_MOST: Final = 64
"""Steps beyond what was asked for: further ahead no honest owner gets while it answers."""


class Phase(Enum):
    """Where a download stands."""

    AGREEING = "agreeing"
    FETCHING = "fetching"
    DONE = "done"
    FAILED = "failed"


class Download:
    """One download. Perform :meth:`begin`'s actions, then feed events and deadlines.

    ``donors``: who may have it. ``version``: where the run stands, as far as we know.
    ``owners``: how many must agree (see OWNERS). ``most_bytes``: a larger state is refused;
    ``difference_bytes``: as is a difference of another size.
    When ``phase`` is DONE or FAILED there is nothing more to do; ``reason`` says why.
    """

    def __init__(
        self,
        donors: Sequence[PeerId],
        *,
        version: Step,
        most_bytes: Bytes,
        owners: int = OWNERS,
        difference_bytes: Bytes = 0,
    ) -> None:
        self.phase = Phase.AGREEING
        self.reason = ""
        self.snapshot: Snapshot | None = None
        self._version = version
        self._most_bytes, self._difference_bytes = most_bytes, difference_bytes
        self._owners = owners
        self._round = 0
        self._until: Seconds = 0.0
        self._sources = {peer: Source(peer) for peer in sorted(set(donors))}
        self._refused: dict[PeerId, str] = {}
        self._offers: dict[PeerId, Snapshot] = {}
        self._asked: dict[PeerId, Step] = {}  # the lowest version asked for: none is older
        self._missing: set[int] = set()  # chunks neither here nor on order
        self._left = 0  # chunks that are not here
        self._actions: list[Action] = []

    @property
    def sources(self) -> tuple[PeerId, ...]:
        """Who has given something of what is here."""
        return tuple(peer for peer, source in self._sources.items() if source.given)

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next; None: never again."""
        if self.phase is Phase.AGREEING:
            return self._until
        if self.phase is not Phase.FETCHING:
            return None
        dues = [source.due_at for source in self._working()]
        return min((due for due in dues if due is not None), default=None)

    def begin(self, *, now: Seconds) -> tuple[Action, ...]:
        """Ask everybody."""
        self._ask_all(now)
        self._settle(now)
        return self._done()

    def handle(self, event: Event, *, now: Seconds) -> tuple[Action, ...]:
        """An answer, or its absence for good; from strangers and out of place, nothing."""
        if event.peer not in self._sources or self.phase in (Phase.DONE, Phase.FAILED):
            return ()
        match event:
            case Offered():
                self._offered(event.peer, event.snapshot, now)
            case Denied() | Gone():
                self._out(event.peer, event.reason, lied=False)
                self._go_on(now)
            case Arrived():
                self._arrived(event, now)
            case _:
                assert_never(event)
        return self._done()

    def tick(self, *, now: Seconds) -> tuple[Action, ...]:
        """Act on the deadlines that have passed."""
        if self.phase is Phase.AGREEING and now >= self._until:
            self._settle(now, over=True)
        elif self.phase is Phase.FETCHING:
            for source in self._working():
                if source.due_at is not None and now >= source.due_at:
                    self._stalled(source)
            self._go_on(now)
        return self._done()

    # --- agreeing ---------------------------------------------------------------------------

    def _ask_all(self, now: Seconds) -> None:
        self._until = now + ANSWER_SECONDS
        for source in self._working():
            offer = self._offers.get(source.peer)
            if offer is None or offer.version != self._version:
                self._asked.setdefault(source.peer, self._version)
                self._actions.append(AskSnapshot(source.peer, self._version))

    def _offered(self, peer: PeerId, snapshot: Snapshot, now: Seconds) -> None:
        first = self._asked[peer]
        if not snapshot.sound or not self._fits(snapshot):
            self._out(peer, "gave a manifest that does not fit itself", lied=True)
        elif not first <= snapshot.version <= self._version + AHEAD_MOST:
            reason = f"is at step {snapshot.version}, asked for {self._version}"
            self._out(peer, reason, lied=False)
        elif peer not in self._refused:
            self._offers[peer] = snapshot
            if self.phase is Phase.FETCHING:
                self._compare(peer)
        self._go_on(now)

    def _fits(self, snapshot: Snapshot) -> bool:
        if snapshot.base is None:
            return snapshot.size_bytes <= self._most_bytes
        return snapshot.size_bytes == self._difference_bytes

    def _settle(self, now: Seconds, *, over: bool = False) -> None:
        """Whether enough is known to begin; ``over``: nobody is waited for any more."""
        working = [source.peer for source in self._working()]
        offers = {peer: self._offers[peer] for peer in working if peer in self._offers}
        best = most_given(offers)
        silent = [peer for peer in working if peer not in offers]
        late = [peer for peer, offer in offers.items() if offer.version < self._version]
        if best is not None and list(offers.values()).count(best) >= self._owners:
            self._take(best, now)
        elif (silent or late) and not over:
            return
        elif best is None:
            self._give_up_on(silent)
            self._fail(self._reasons())
        elif len({offer.version for offer in offers.values()}) > 1 and self._may_go_on(over=over):
            self._again(max(offer.version for offer in offers.values()), now)
        else:
            self._give_up_on(silent)
            self._take_one(offers, now)

    def _may_go_on(self, *, over: bool) -> bool:
        return not over and self._round + 1 < len(AHEAD)

    def _again(self, foremost: Step, now: Seconds) -> None:
        self._round += 1
        self._version = Step(foremost + AHEAD[self._round])
        self._ask_all(now)

    def _take_one(self, offers: dict[PeerId, Snapshot], now: Seconds) -> None:
        """Nobody confirms anybody: the newest of those who gave what they were asked for."""
        asked = {p: o for p, o in offers.items() if o.version in (self._asked[p], self._version)}
        chosen = max((asked or offers).values(), key=lambda offer: offer.version)
        givers = sorted(p for p, offer in offers.items() if offer.version == chosen.version)
        if len(givers) > 1:
            self._fail(f"{', '.join(givers)} give different states of step {chosen.version}")
            return
        self._actions.append(Warn(f"only {givers[0]} vouches for the state of {chosen.version}"))
        self._take(chosen, now)

    def _take(self, snapshot: Snapshot, now: Seconds) -> None:
        self.phase = Phase.FETCHING
        owners = tuple(peer for peer, offer in self._offers.items() if offer == snapshot)
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self._left = len(snapshot.leaves)
            self._missing = set(range(self._left))
            for source in self._sources.values():
                source.begin_anew()
        self._actions.append(Take(snapshot, tuple(sorted(owners))))
        for peer in sorted(self._offers):
            self._compare(peer)
        self._go_on(now)

    def _compare(self, peer: PeerId) -> None:
        """Name who gives something else than what we take."""
        taken, offer = self.snapshot, self._offers[peer]
        assert taken is not None
        if offer == taken or peer in self._refused:
            return
        if offer.version == taken.version:
            self._out(peer, f"gives another state of step {taken.version}", lied=False)
        else:
            reason = f"gives the state of step {offer.version}, not {taken.version}"
            self._actions.append(Refuse(peer, reason, lied=False))

    # --- fetching ---------------------------------------------------------------------------

    def _go_on(self, now: Seconds) -> None:
        if self.phase is Phase.AGREEING:
            self._settle(now)
        elif self.phase is Phase.FETCHING:
            if not self._left:
                self.phase = Phase.DONE
            else:
                self._ask_chunks(now)

    def _ask_chunks(self, now: Seconds) -> None:
        assert self.snapshot is not None
        owners = self._owning()
        if all(source.aside for source in owners):
            owners = [source for source in owners if source.strikes < STRIKES]
            for source in owners:
                source.aside = False
        if not owners:
            self._start_over(now)
            return
        for index in sorted(self._missing):
            size_bytes = self.snapshot.bytes_of(index)
            chosen = next_source(owners, size_bytes)
            if chosen is None:
                return
            chosen.ask(index, size_bytes, now=now)
            self._missing.discard(index)
            self._actions.append(AskChunk(chosen.peer, self.snapshot.root, index))

    def _arrived(self, event: Arrived, now: Seconds) -> None:
        source, snapshot = self._sources[event.peer], self.snapshot
        if snapshot is None or event.root != snapshot.root or not source.owes(event.index):
            return
        right = event.size_bytes == snapshot.bytes_of(event.index)
        if not right or event.digest != snapshot.leaves[event.index]:
            self._out(event.peer, f"chunk {event.index} does not match its leaf", lied=True)
        else:
            source.came(event.index, now=now)
            for other in self._sources.values():
                other.forget(event.index)
            self._missing.discard(event.index)
            self._left -= 1
            self._actions.append(Keep(event.index))
        self._go_on(now)

    def _stalled(self, source: Source) -> None:
        self._missing.update(source.set_aside())
        reason = f"stalls, after {source.given} chunks"
        self._actions.append(Refuse(source.peer, reason, lied=False))
        if source.strikes >= STRIKES:
            self._refused[source.peer] = reason

    def _start_over(self, now: Seconds) -> None:
        """Nobody gives this snapshot any more: agree on another, if anybody is left."""
        self._offers = {p: offer for p, offer in self._offers.items() if p not in self._refused}
        if not self._working() or self._round + 1 >= len(AHEAD):
            self._fail(self._reasons())
            return
        assert self.snapshot is not None
        self.phase = Phase.AGREEING
        self._again(self.snapshot.version, now)

    # --- donors -----------------------------------------------------------------------------

    def _working(self) -> list[Source]:
        return [source for peer, source in self._sources.items() if peer not in self._refused]

    def _owning(self) -> list[Source]:
        return [one for one in self._working() if self._offers.get(one.peer) == self.snapshot]

    def _out(self, peer: PeerId, reason: str, *, lied: bool) -> None:
        """Use ``peer`` no more; of one who lied, nothing that may still come is believed."""
        source = self._sources[peer]
        if peer in self._refused and not lied:
            return
        self._refused[peer] = reason
        self._offers.pop(peer, None)
        self._missing.update(source.set_aside())
        if lied:
            source.begin_anew()
        self._actions.append(Refuse(peer, reason, lied=lied))

    def _give_up_on(self, silent: Sequence[PeerId]) -> None:
        for peer in silent:
            self._out(peer, f"no answer within {ANSWER_SECONDS:.0f} s", lied=False)

    def _reasons(self) -> str:
        return "; ".join(f"{peer}: {why}" for peer, why in self._refused.items())

    def _fail(self, reason: str) -> None:
        self.phase, self.reason = Phase.FAILED, reason or "nobody to take it from"

    def _done(self) -> tuple[Action, ...]:
        actions, self._actions = tuple(self._actions), []
        return actions
