"""A real peer that stops at a named step of the protocol, so that it can be killed just there.

    what it sends (the transport's tap) --> Watch (sim/points) --> the n-th time, and nobody
    else of the swarm has stopped yet --> a Halted event --> SIGSTOP to itself

Whoever started the peer sees the event and kills it: the blow falls at that step, not a
fifth of a second later, and the event proves it.

Invariants: of all peers that share a claim (a file that only one can make) one stops; what
is not asked for costs nothing, as the transport is then not tapped.

Refused: exiting by itself. A process that ends runs its farewells; a killed one runs none.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2ptrain.errors import UserError
from p2ptrain.observe import events as ev
from p2ptrain.sim.points import POINTS, OnWire, Watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.ports import Buffer, Stream, StreamHandler, Transport
    from p2ptrain.units import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class HaltAt:
    """The ``times``-th time at ``point`` (a name of sim/points, on its sending side)."""

    point: str
    times: int
    claim: Path


def parse(text: str) -> HaltAt:
    """Read ``TIMES:POINT:CLAIM``.

    Raises:
        UserError: it is not of that form, or there is no such point on a sending side.
    """
    times, _, rest = text.partition(":")
    name, _, claim = rest.partition(":")
    point = POINTS.get(name)
    sending = isinstance(point, OnWire) and point.side == "sent"
    if not (times.isdecimal() and claim and sending):
        raise UserError(f"--halt-at {text!r}: write TIMES:POINT:FILE, as in 3:plan sent:claim")
    return HaltAt(point=name, times=int(times), claim=Path(claim))


class Failpoint:
    """Counts one peer's passages of its point (None: of none). Set ``emit`` before it talks."""

    def __init__(self, halt: HaltAt | None, *, stop: Callable[[], None] | None = None) -> None:
        self.emit: ev.Emit = lambda _event: None
        self._watch = Watch(self._reached)
        if halt is not None:
            self._watch.arm(halt.point)
        self._halt, self._passed = halt, 0
        self._stop = stop or _stop

    def tapped(self, transport: Transport) -> Transport:
        """``transport``, looked at if there is a point to look for."""
        return transport if self._halt is None else TappedTransport(transport, self._watch)

    def _reached(self, point: str, _actor: PeerId) -> None:
        self._passed += 1
        if self._halt is None or self._passed != self._halt.times:
            return
        try:
            self._halt.claim.touch(exist_ok=False)
        except FileExistsError:
            return  # another has stopped
        self.emit(ev.Halted(point=point, times=self._passed))
        self._stop()


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


class TappedStream:
    """A stream whose sent bytes are looked at (ports.Stream)."""

    def __init__(self, stream: Stream, me: PeerId, watch: Watch) -> None:
        self._stream, self._me, self._watch = stream, me, watch

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self._stream.peer

    async def send(self, *buffers: Buffer) -> None:
        """As ports.Stream; looked at once it has gone out."""
        await self._stream.send(*buffers)
        self._watch.heard("sent", (self._me, self.peer), b"".join(buffers))

    async def receive_into(self, buffer: memoryview) -> None:
        """As ports.Stream."""
        await self._stream.receive_into(buffer)

    async def close(self) -> None:
        """As ports.Stream."""
        await self._stream.close()


class TappedTransport:
    """A transport of tapped streams (ports.Transport)."""

    def __init__(self, transport: Transport, watch: Watch) -> None:
        self._transport, self._watch = transport, watch

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self._transport.peer

    def addresses(self) -> tuple[str, ...]:
        """As ports.Transport."""
        return self._transport.addresses()

    async def listen(self, handler: StreamHandler) -> None:
        """As ports.Transport."""

        async def tapped(stream: Stream) -> None:
            await handler(self._tapped(stream))

        await self._transport.listen(tapped)

    async def open(self, peer: PeerId) -> Stream:
        """As ports.Transport."""
        return self._tapped(await self._transport.open(peer))

    def _tapped(self, stream: Stream) -> Stream:
        return TappedStream(stream, self.peer, self._watch)
