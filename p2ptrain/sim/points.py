"""Failpoints: the steps of the protocol by name, recognised from outside the system.

A point is reached when a message of its kind leaves a peer (``sent``) or gets to one
(``arrived``), seen on the wire, or when a peer says so in its event log. The actor is the
peer that has just done the step, so "kill the actor of *plan sent*" is the leader's death
with its plan on the way, and "kill the actor of *plan arrived*" a member's that has not
answered. No production code knows of any of this.

    armed points -> Watch.heard (the network's tap), Watch.happened (the event log)
                 -> reached(point, actor)

Invariant: what is not armed costs a search of the bytes for nothing, and changes nothing.

Refused: named hooks in the engine. Each would be a line there for the tests' sake, and a
refactoring could move it away from the step whose name it bears.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from p2ptrain.core import agreement as a
from p2ptrain.core.lineage import Rollback
from p2ptrain.errors import WireError
from p2ptrain.observe import events as ev
from p2ptrain.wire import framing
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from p2ptrain.units import PeerId

Side: TypeAlias = Literal["sent", "arrived"]

KIND_OFFSET = 5
"""Of the byte in a frame's header that says what it carries; see wire/framing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnWire:
    """A message on the wire; ``what``: of those messages that come in kinds."""

    message: type[m.Control | m.Data]
    side: Side
    what: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InLog:
    """An event; ``later``: only of a seat that did not begin with the run."""

    event: type[ev.AnyEvent]
    later: bool = False


Point: TypeAlias = OnWire | InLog


def _both(name: str, message: type[m.Control | m.Data], what: str = "") -> dict[str, Point]:
    return {
        f"{name} {side}": OnWire(message=message, side=side, what=what)
        for side in ("sent", "arrived")
    }


POINTS: Final[dict[str, Point]] = {
    # a microbatch on its way up and back
    **_both("ask", m.Ask),
    **_both("offer", m.Offer),
    **_both("forward", m.Forward),
    **_both("forward ack", m.Accepted, "forward"),
    **_both("forward computed", m.Computed),
    **_both("gradient", m.Gradient),
    **_both("gradient ack", m.Accepted, "gradient"),
    "counting": InLog(event=ev.SlotCounted),
    # ... when something went wrong
    **_both("where", m.Where),
    "replay": InLog(event=ev.Replayed),
    "subtracted": InLog(event=ev.Subtracted),
    "repath sent": OnWire(message=m.Repath, side="sent"),
    # the round: a leader sends plan and go and hears bitmaps and acks, a member the reverse
    **_both("bitmap", a.Bitmap),
    **_both("plan", a.Plan),
    **_both("ack", a.Ack),
    **_both("nack", a.Nack),
    **_both("go", a.Go),
    **_both("own part", m.Part, "own"),
    **_both("summed part", m.Part, "sum"),
    **_both("sum", a.Sum),
    **_both("sum pulled", m.PullSum),
    "round": InLog(event=ev.RoundBegan),
    "sum published": InLog(event=ev.SumPublished),
    "committed": InLog(event=ev.StepCommitted),
    # a newcomer takes over a stage's state
    **_both("manifest asked", m.WantManifest),
    **_both("manifest", m.StageManifest),
    **_both("chunk asked", m.WantChunk),
    **_both("chunk", m.Chunk),
    "state loaded": InLog(event=ev.StateLoaded),
    "seat opened later": InLog(event=ev.SeatOpened, later=True),
    # a seat of stage 0 has nothing left to begin, and is handed some
    **_both("slots wanted", m.WantSlots),
    **_both("slots given", m.GiveSlots),
    # a peer beside each stage has a copy; it is asked for as a newcomer asks for a state
    "copy kept": InLog(event=ev.StateKept),
    # a stage is lost: who holds what, and where the run falls back to
    **_both("holdings asked", m.WantHeld),
    **_both("holdings told", m.Held),
    **_both("rollback", Rollback),
    "rolled back": InLog(event=ev.RolledBack),
    # a seat leaves what it has counted with a mate, which takes it up
    **_both("deposit", m.Deposit),
    "deposit taken": InLog(event=ev.DepositTaken),
    "deposit returned": InLog(event=ev.DepositReturned),
}
"""All failpoints by name."""

IN_TROUBLE: Final = frozenset(
    {"where sent", "where arrived", "replay", "subtracted", "repath sent", "round"}
    | {"nack sent", "nack arrived", "sum pulled sent", "sum pulled arrived"}
)
"""Points that a swarm comes to only when something has gone wrong already."""

IN_TRANSFER: Final = frozenset(
    {f"{what} {side}" for what in ("manifest asked", "manifest") for side in ("sent", "arrived")}
    | {f"{what} {side}" for what in ("chunk asked", "chunk") for side in ("sent", "arrived")}
    | {"state loaded", "seat opened later"}
)
"""Points that only a newcomer to a run that has taken steps brings about."""

IN_SHARING: Final = frozenset(
    f"slots {what} {side}" for what in ("wanted", "given") for side in ("sent", "arrived")
)
"""Points that the seats of stage 0 come to near the end of a step, once they know their speeds."""

IN_ADOPTING: Final = IN_TRANSFER - {"state loaded", "seat opened later"}
"""Those that replicas come to where they adopt states: no newcomer is needed."""

IN_COPYING: Final = IN_ADOPTING | {"copy kept"}
"""Points that the peer beside a stage comes to, where states are kept: no newcomer is needed."""

IN_LOSS: Final = frozenset(
    {f"holdings {what} {side}" for what in ("asked", "told") for side in ("sent", "arrived")}
    | {"rollback sent", "rollback arrived", "rolled back"}
)
"""Points that a swarm comes to only when a stage is lost, and falls back."""

IN_DEPOSITING: Final = frozenset(
    {"deposit sent", "deposit arrived", "deposit taken", "deposit returned"}
)
"""Points that a swarm comes to only where deposits are made."""

PHASES: Final[dict[str, tuple[str, ...]]] = {
    "counting": ("counting",),
    "planning as leader": ("bitmap arrived",),
    "planning as member": ("bitmap sent",),
    "frozen as leader": ("plan sent", "ack arrived"),
    "frozen as member": ("plan arrived", "ack sent"),
    "reducing as leader": ("go sent",),
    "reducing as member": ("go arrived",),
    "reducing as the owner of a shard": ("own part arrived", "summed part sent"),
    "waiting for all sums as leader": ("sum published",),
    "waiting for all sums as member": ("sum arrived",),
    "committed": ("committed",),
}
"""The phases of a round (core/step), and at which points a seat stands in each."""


class Watch:
    """Tells ``reached`` of each armed point that somebody has come to."""

    def __init__(self, reached: Callable[[str, PeerId], None]) -> None:
        self._reached = reached
        self._armed: Counter[str] = Counter()
        self._tags: dict[Side, tuple[bytes, ...]] = {"sent": (), "arrived": ()}
        self._events: dict[type[ev.AnyEvent], list[str]] = {}

    def arm(self, name: str) -> None:
        """Look out for ``name`` from now on."""
        self._armed[name] += 1
        self._index()

    def disarm(self, name: str) -> None:
        """Undo one :meth:`arm`."""
        self._armed -= Counter((name,))
        self._index()

    def _index(self) -> None:
        armed = {name: POINTS[name] for name in self._armed}
        wire = [point for point in armed.values() if isinstance(point, OnWire)]
        for side in self._tags:
            names = sorted({each.message.__name__ for each in wire if each.side == side})
            self._tags[side] = tuple(name.encode() for name in names)
        self._events = {}
        for name, point in armed.items():
            if isinstance(point, InLog):
                self._events.setdefault(point.event, []).append(name)

    def heard(self, side: Side, ends: tuple[PeerId, PeerId], data: bytes | memoryview) -> None:
        """Something was sent, or has arrived, between two peers."""
        tags = self._tags[side]
        if not tags:
            return
        whole = bytes(data)
        for tag in tags:  # hardly ever one: any() would cost as much again
            if tag in whole:
                break
        else:
            return
        actor = ends[0] if side == "sent" else ends[1]
        for message in read_frames(whole):
            for name in self._names(side, message):
                self._reached(name, actor)

    def happened(self, peer: PeerId, event: ev.AnyEvent) -> None:
        """``peer`` has written ``event`` into its log."""
        for name in list(self._events.get(type(event), ())):
            point = POINTS[name]
            assert isinstance(point, InLog)
            if not point.later or (isinstance(event, ev.SeatOpened) and event.version > 0):
                self._reached(name, peer)

    def _names(self, side: Side, message: m.Control | m.Data) -> list[str]:
        what = message.what if isinstance(message, m.Accepted | m.Part) else ""
        return [
            name
            for name in self._armed
            if isinstance(point := POINTS[name], OnWire)
            and point.side == side
            and type(message) is point.message
            and point.what in ("", what)
        ]


def read_frames(data: bytes) -> Iterator[m.Control | m.Data]:
    """The messages in what was written at once; nothing of what is torn or damaged."""
    start = 0
    while start + framing.HEADER_BYTES <= len(data):
        begins, kind = start + framing.HEADER_BYTES, data[start + KIND_OFFSET]
        try:
            header = framing.decode_header(data[start:begins], framing.Kind(kind))
            body = data[begins : begins + header.message_bytes]
            if header.kind is framing.Kind.CONTROL:
                yield framing.decode_control(header, body)
            elif header.kind is framing.Kind.DATA:
                yield framing.decode_data(body)
        except (WireError, ValueError):
            return
        start = begins + header.message_bytes + header.payload_bytes
