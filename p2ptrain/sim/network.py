"""A seeded network: streams between simulated peers, and all the ways they fail.

``SimNetwork`` knows who can reach whom; ``SimTransport`` is one peer's port into it, with
the behaviour of libp2p as measured: opening costs a round trip, a dead peer refuses at
once, a cut wire says nothing at all (streams hang, and are given up after 40 s), and a
reader that stops stops the writer a window later.

    kill(peer)        its process dies: streams to it end, opening is refused
    isolate(peer)     its machine is off, its daemon hangs, its cable is out: silence
    partition(groups) silence between groups;  cut(a, b): between two peers
    reset(a, b)       the streams between two peers break; they may open new ones
    mend()            ends every silence

All randomness comes from the seed and the two names of a stream, so that a fault in one
corner does not reshuffle the rest. Callbacks of the network run in a context of their
own: freezing a peer's process (see loop) never holds back what it has already sent.

Refused: one event per packet, and an engine that knows it is simulated.
"""

from __future__ import annotations

import asyncio
import contextvars
from random import Random
from typing import TYPE_CHECKING

from p2ptrain.errors import InternalError, LinkError
from p2ptrain.sim.pipes import Link, Pipe, Uplink
from p2ptrain.sim.transport import SimStream, SimTransport, Wire

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from p2ptrain.sim.pipes import Tap
    from p2ptrain.units import PeerId, Seconds

SWEEP_WIRES = 64
"""A peer's ended streams are forgotten when they are as many as the live ones and this many."""

RETIRING_TURNS = 4
"""Of the loop, in which what was let in at the very end is closed by whoever let it in."""


class SimNetwork:
    """The network of one simulated world; use as ``async with`` around everything in it.

    ``links``: a peer's way in (default ``link``); ``pairs``: (from, to) with another one,
    whose rate is not used: the uplink is the sender's. ``tap``: hears all that is sent and
    all that arrives.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        link: Link | None = None,
        links: Mapping[PeerId, Link] | None = None,
        pairs: Mapping[tuple[PeerId, PeerId], Link] | None = None,
        tap: Tap | None = None,
    ) -> None:
        self._tap = tap
        self.context = contextvars.Context()
        self._loop = asyncio.get_running_loop()
        self._seed = seed
        self._link = link or Link()
        self._links = dict(links or {})
        self._pairs = dict(pairs or {})
        self._group = asyncio.TaskGroup()
        self._transports: dict[PeerId, SimTransport] = {}
        self._randoms: dict[tuple[PeerId, PeerId], Random] = {}
        self._wires: dict[PeerId, list[Wire]] = {}  # each under both of its peers
        self._sweep_at: dict[PeerId, int] = {}
        self._isolated: set[PeerId] = set()
        self._cuts: set[tuple[PeerId, PeerId]] = set()
        self._side: dict[PeerId, int] = {}

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for transport in self._transports.values():
            if transport.alive:
                self.kill(transport.peer)
        try:
            await self._group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if group.exceptions != (error,):
                raise
            # nothing of ours failed: the error of the body goes on by itself

    def transport(self, peer: PeerId) -> SimTransport:
        """Plug ``peer`` in; again only after its death."""
        old = self._transports.get(peer)
        if old is not None and old.alive:
            msg = f"{peer} is already in the network"
            raise InternalError(msg)
        uplink = Uplink(self._loop, self.context, self._links.get(peer, self._link), self._tap)
        self._transports[peer] = SimTransport(self, peer, uplink)
        return self._transports[peer]

    def set_link(self, peer: PeerId, link: Link) -> None:
        """From now on ``peer`` sends over ``link``, on open streams too."""
        self._links[peer] = link
        if peer in self._transports:
            self._transports[peer].uplink.link = link

    # --- faults ---------------------------------------------------------------------------

    def kill(self, peer: PeerId) -> None:
        """The process of ``peer`` dies; the caller ends the tasks that it started itself.

        Who has not come yet leaves nothing behind.
        """
        if peer in self._transports:
            self._transports[peer].die()
        for wire in self._wires.pop(peer, ()):
            for end in wire.ends:
                if end.peer != peer:  # its own end: the other one hears of it over the wire
                    end.shut("the peer died", flush=False)

    def reset(self, one: PeerId, other: PeerId) -> None:
        """Break the streams between two peers; they may open new ones."""
        for wire in self._wires.get(one, ()):
            if other in wire.peers:
                for end in wire.ends:
                    end.fail("connection reset")

    def isolate(self, peer: PeerId) -> None:
        """Silence between ``peer`` and everybody."""
        self._isolated.add(peer)
        self._rewire()

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Silence between two peers."""
        self._cuts |= {(one, other), (other, one)}
        self._rewire()

    def partition(self, groups: Sequence[Collection[PeerId]]) -> None:
        """Silence between groups; peers named in none belong to the first."""
        self._side = {peer: side for side, group in enumerate(groups) for peer in group}
        self._rewire()

    def mend(self, peer: PeerId | None = None) -> None:
        """End every silence, or only the isolation of ``peer``."""
        if peer is not None:
            self._isolated.discard(peer)
        else:
            self._isolated.clear()
            self._cuts.clear()
            self._side.clear()
        self._rewire()

    def reachable(self, one: PeerId, other: PeerId) -> bool:
        """Whether bytes get from one to the other at all."""
        return (
            one not in self._isolated
            and other not in self._isolated
            and (one, other) not in self._cuts
            and self._side.get(one, 0) == self._side.get(other, 0)
        )

    async def retire(self, peer: PeerId) -> int:
        """``peer`` has done: let nobody in; how many streams it has left open then."""
        self._transports[peer].retired = True
        for _ in range(RETIRING_TURNS):
            await asyncio.sleep(0)
        return self.streams_of(peer)

    def streams_of(self, peer: PeerId) -> int:
        """Ends of streams that ``peer`` has not closed."""
        ends = (end for wire in self._wires.get(peer, ()) for end in wire.ends)
        own = (end for end in ends if end.peer != peer)
        return sum(end.handed_over and not end.closed for end in own)

    def _rewire(self) -> None:
        for wire in [wire for wires in self._wires.values() for wire in wires]:
            if self.reachable(*wire.peers):
                wire.mend(self._loop, self.context)
            else:
                wire.hold(self._loop, self.context)

    # --- opening streams ------------------------------------------------------------------

    def knock(self, opener: SimTransport, peer: PeerId, answer: asyncio.Future[SimStream]) -> None:
        """Set out to ``peer``; ``answer`` gets the opener's end, an error, or nothing ever."""
        self._loop.call_later(
            self._delay(opener.peer, peer), self._ask, opener, peer, answer, context=self.context
        )

    def _ask(self, opener: SimTransport, peer: PeerId, answer: asyncio.Future[SimStream]) -> None:
        if not self.reachable(opener.peer, peer):
            return
        back = self._delay(peer, opener.peer)
        acceptor = self._transports.get(peer)
        if acceptor is None or not acceptor.listening:
            error = LinkError("connection refused", peer=peer)
            self._loop.call_later(back, _refuse, answer, error, context=self.context)
            return
        if not opener.alive:
            return
        near, far = self._stretch(opener, acceptor)
        acceptor.accept(far, self._group)
        self._loop.call_later(back, _welcome, answer, near, context=self.context)

    def _stretch(self, opener: SimTransport, acceptor: SimTransport) -> tuple[SimStream, SimStream]:
        there = self._pipe(opener, acceptor)
        back = self._pipe(acceptor, opener)
        ends = (SimStream(acceptor.peer, there, back), SimStream(opener.peer, back, there))
        wire = Wire(ends, (there, back))
        for peer in dict.fromkeys(wire.peers):
            self._keep(peer, wire)
        return ends

    def _keep(self, peer: PeerId, wire: Wire) -> None:
        wires = self._wires.setdefault(peer, [])
        wires.append(wire)
        if len(wires) > self._sweep_at.get(peer, SWEEP_WIRES):
            self._wires[peer] = wires = [wire for wire in wires if not wire.over]
            self._sweep_at[peer] = 2 * len(wires) + SWEEP_WIRES

    def _pipe(self, writer: SimTransport, reader: SimTransport) -> Pipe:
        pair = (writer.peer, reader.peer)
        return Pipe(writer.uplink, pair, self._random(pair), self._pairs.get(pair))

    def _random(self, pair: tuple[PeerId, PeerId]) -> Random:
        if pair not in self._randoms:
            self._randoms[pair] = Random(f"{self._seed}/{pair[0]}/{pair[1]}")
        return self._randoms[pair]

    def _delay(self, one: PeerId, other: PeerId) -> Seconds:
        link = self._pairs.get((one, other)) or self._links.get(one, self._link)
        return link.latency_seconds + self._random((one, other)).random() * link.jitter_seconds


def _refuse(answer: asyncio.Future[SimStream], error: LinkError) -> None:
    if not answer.done():
        answer.set_exception(error)


def _welcome(answer: asyncio.Future[SimStream], stream: SimStream) -> None:
    if answer.done():
        stream.shut("the opener gave up", flush=True)
    else:
        stream.handed_over = True
        answer.set_result(stream)
