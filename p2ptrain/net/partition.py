"""A network cut in two, played on real peers: what we send beyond the cut waits.

    a file, written by whoever plays it    Cut: whom can we not reach now?
        only 12D3KooWa 12D3KooWb             streams: bytes to them wait until it heals
        not  12D3KooWc                       directory: requests to them wait, and time out

Intuition: TCP does the same. A cut line loses nothing that its ends still hold; they notice
by silence alone, and when it heals in time the bytes go on. As both sides hold back what
they send, nothing crosses, and root is not needed to pull a cable.

Invariants: without a file everybody is reached; a file that is half written, gone or not
understood changes nothing. One leak is known: a stream closed during the cut is closed at
its far end, too, where a pulled cable would leave silence.

Refused: a firewall (root, and it cannot tell peers of one machine apart).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from p2ptrain.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from p2ptrain.ports import Buffer, Stream, StreamHandler, Transport
    from p2ptrain.units import PeerId, Seconds

LOOK_SECONDS: Final = 0.1  # a file cannot wake us; a tenth of a heartbeat
OPEN_SECONDS: Final = 20.0  # as libp2p's dial: then the other is unreachable


class Cut:
    """Whom we cannot reach, by the file at ``path``. Run ``watch`` in a task."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._only = False
        self._named: frozenset[str] = frozenset()
        self._healed = asyncio.Event()

    def severs(self, peer: str) -> bool:
        """Whether ``peer`` is beyond the cut now."""
        return (peer in self._named) != self._only

    async def healed(self, peer: str) -> None:
        """Wait until ``peer`` can be reached."""
        while self.severs(peer):
            await self._healed.wait()

    async def watch(self) -> None:
        """Read the file whenever it changes; never returns."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Read the file now."""
        try:
            text = self._path.read_text()
        except OSError:
            return
        word, *names = text.split() or ["not"]
        if text == self._text or word not in {"only", "not"}:
            return
        self._text, self._only, self._named = text, word == "only", frozenset(names)
        self._healed.set()
        self._healed = asyncio.Event()


def write_cut(
    path: Path, *, only: Iterable[str] | None = None, without: Iterable[str] = ()
) -> None:
    """Tell the peer that watches ``path`` whom it reaches: ``only`` these, or all ``without``.

    Raises:
        OSError: the disk refused.
    """
    words = ["not", *sorted(without)] if only is None else ["only", *sorted(only)]
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(" ".join(words))
    unfinished.replace(path)


class CutStream:
    """A stream that holds back what it sends beyond the cut (ports.Stream)."""

    def __init__(self, stream: Stream, cut: Cut) -> None:
        self._stream, self._cut = stream, cut
        self._closed = asyncio.Event()

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self._stream.peer

    async def send(self, *buffers: Buffer) -> None:
        """As ports.Stream; waits while the peer is beyond the cut."""
        if self._cut.severs(self.peer):
            await self._pause()
        await self._stream.send(*buffers)

    async def _pause(self) -> None:
        async with asyncio.TaskGroup() as group:
            closed: asyncio.Task[object] = group.create_task(self._closed.wait())
            healed: asyncio.Task[object] = group.create_task(self._cut.healed(self.peer))
            waits = {closed, healed}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self._closed.is_set():
            raise LinkError("stream closed", peer=self.peer)

    async def receive_into(self, buffer: memoryview) -> None:
        """As ports.Stream: the other end holds back what it sends."""
        await self._stream.receive_into(buffer)

    async def close(self) -> None:
        """As ports.Stream; what a ``send`` still held back is dropped."""
        self._closed.set()
        await self._stream.close()


class CutTransport:
    """A transport whose streams end at the cut (ports.Transport)."""

    def __init__(self, transport: Transport, cut: Cut) -> None:
        self._transport, self._cut = transport, cut

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self._transport.peer

    def addresses(self) -> tuple[str, ...]:
        """As ports.Transport."""
        return self._transport.addresses()

    async def listen(self, handler: StreamHandler) -> None:
        """As ports.Transport; answers on incoming streams are held back, too."""

        async def held(stream: Stream) -> None:
            await handler(CutStream(stream, self._cut))

        await self._transport.listen(held)

    async def open(self, peer: PeerId, *, within: Seconds = OPEN_SECONDS) -> Stream:
        """As ports.Transport; beyond the cut nobody answers.

        Raises:
            LinkError: ``peer`` cannot be reached.
        """
        try:
            async with asyncio.timeout(within):
                await self._cut.healed(peer)
        except TimeoutError as error:
            raise LinkError(f"no answer in {within:.0f} s", peer=peer) from error
        return CutStream(await self._transport.open(peer), self._cut)
