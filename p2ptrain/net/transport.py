"""Streams between peers: raw libp2p byte streams, long-lived, with backpressure to the byte.

Intuition: p2pd turns a unix socket into an authenticated stream to another peer. We write
256 KiB and wait until the kernel has it; when the reader at the far end stops, its p2pd
stops reading, libp2p's window fills (1.05 MB), our p2pd stops reading our socket, and
``send`` waits. Nothing in between grows.

Invariants: ``send`` returns only when every byte has left this process, so buffers may be
reused; received bytes go straight into the caller's buffer; at most ``STREAMS_PER_PEER``
incoming streams per peer (more are closed at once); after ``close`` no stream is open.
The transport outlives p2pd: while that restarts, ``open`` fails with LinkError and old
streams break; the owner of a link opens it again.

Refused: unary calls (4 MiB cap, an unbounded queue, one pipe for all) and
``P2P.send_raw_data`` (buffers 150 MB before it waits once).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from p2ptrain.errors import LinkError, PeerError
from p2ptrain.net.identity import public_key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from p2ptrain.net.control import Control
    from p2ptrain.ports import Buffer, Stream, StreamHandler
    from p2ptrain.units import PeerId

log = logging.getLogger(__name__)

PROTOCOL: Final = "/p2ptrain/1"
WRITE_BYTES: Final = 256 * 1024  # measured: larger writes gain nothing, smaller ones cost CPU
READ_BYTES: Final = 1024 * 1024  # measured: chunked reads are 1.6 times faster than readexactly
JOIN_BYTES: Final = 64 * 1024  # below this one copy is cheaper than a second system call
OPEN_SECONDS: Final = 20.0  # libp2p's own dial takes up to 15 s
LISTEN_SECONDS: Final = 15.0  # a restart of p2pd may be in between
STREAMS_PER_PEER: Final = 64  # two channels and a few transfers each way; more is an attack
KNOWN_PEERS: Final = 4096  # addresses remembered; the one learnt longest ago is dropped
PLACES_PER_PEER: Final = 8  # interfaces times transports; more is noise


class Libp2pStream:
    """One byte stream to one peer (ports.Stream). One sender and one receiver at a time."""

    def __init__(
        self,
        peer: PeerId,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        forget: Callable[[Libp2pStream], None],
    ) -> None:
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._forget = forget
        # drain() then waits until the kernel has everything: no copy of ours, no reuse hazard
        writer.transport.set_write_buffer_limits(high=0)

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        return self._peer

    async def send(self, *buffers: Buffer) -> None:
        """Write all of ``buffers``; wait while the peer does not read.

        Cancelled or failed, an unknown prefix may have gone out: close the stream then.

        Raises:
            LinkError: the stream is broken or closed.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(views) > 1 and sum(map(len, views)) <= JOIN_BYTES:
            views = [memoryview(b"".join(views))]
        try:
            for view in views:
                for start in range(0, len(view), WRITE_BYTES):
                    if self._writer.is_closing():
                        raise LinkError("stream closed", peer=self._peer)
                    self._writer.write(view[start : start + WRITE_BYTES])
                    await self._writer.drain()
        except OSError as error:
            raise LinkError(f"stream broke: {error}", peer=self._peer) from error

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill all of ``buffer``.

        Raises:
            LinkError: the stream ended or broke first.
        """
        view, filled = buffer.cast("B"), 0
        try:
            while filled < len(view):
                piece = await self._reader.read(min(READ_BYTES, len(view) - filled))
                if not piece:
                    raise LinkError("stream ended", peer=self._peer)
                view[filled : filled + len(piece)] = piece
                filled += len(piece)
        except OSError as error:
            raise LinkError(f"stream broke: {error}", peer=self._peer) from error

    async def close(self) -> None:
        """Close both directions; never raises, waits for nobody."""
        self.close_now()

    def close_now(self) -> None:
        """The same, for callers that cannot wait. What a finished ``send`` wrote still arrives."""
        self._forget(self)
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()  # a cancelled send's rest would wait for the reader
        else:
            self._writer.close()


class Libp2pTransport:
    """Streams by peer id (ports.Transport). The Network owns it and attaches p2pd's lives."""

    def __init__(self, peer: PeerId, tasks: asyncio.TaskGroup) -> None:
        self._peer = peer
        self._tasks = tasks
        self._control: Control | None = None
        self._handler: StreamHandler | None = None
        self._wanted = asyncio.Event()
        self._serving = asyncio.Event()
        self._addresses: tuple[str, ...] = ()
        self._opened: set[Libp2pStream] = set()
        self._accepted: dict[PeerId, set[Libp2pStream]] = {}
        self._handling: set[asyncio.Task[None]] = set()
        self._closed = False
        self._known: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self._peer

    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses to share, ending in ``/p2p/<peer id>``."""
        return self._addresses

    def known(self) -> dict[PeerId, tuple[str, ...]]:
        """Peers with the places where they were last said to be."""
        return dict(self._known)

    async def listen(self, handler: StreamHandler) -> None:
        """Hand every incoming stream to ``handler`` from now on; call once.

        Raises:
            LinkError: p2pd does not answer.
        """
        assert self._handler is None, "listen once"
        self._handler = handler
        self._wanted.set()
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                await self._serving.wait()
        except TimeoutError as error:
            raise LinkError("p2pd does not answer") from error

    async def open(self, peer: PeerId) -> Stream:
        """Open a stream to ``peer``: known to libp2p, or at an address we remember.

        Raises:
            LinkError: it cannot be reached.
        """
        if public_key_of(peer) is None:
            raise LinkError(f"{peer!r} is not a peer id", peer=peer)
        if self._control is None:
            raise LinkError("p2pd is restarting", peer=peer)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                reader, writer = await self._dial(self._control, peer)
        except TimeoutError as error:
            raise LinkError(f"no answer in {OPEN_SECONDS:.0f} s", peer=peer) from error
        stream = Libp2pStream(peer, reader, writer, self._opened.discard)
        self._opened.add(stream)
        return stream

    async def _dial(
        self, control: Control, peer: PeerId
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await control.open(peer, PROTOCOL)
        except LinkError:
            if peer not in self._known:
                raise
        await control.connect(peer, self._known[peer])
        return await control.open(peer, PROTOCOL)

    async def connect(self, peer: PeerId, places: Sequence[str]) -> None:
        """Connect to ``peer`` at one of ``places`` (without ``/p2p/``) and remember them.

        Raises:
            LinkError: it cannot be reached.
        """
        if self._control is None:
            raise LinkError("p2pd is restarting", peer=peer)
        await self._control.connect(peer, places)
        self.learn(peer, places)

    def learn(self, peer: PeerId, places: Iterable[str]) -> None:
        """Remember where ``peer`` says it is (places without ``/p2p/``)."""
        kept = tuple(place for place in places if "/p2p-circuit" not in place)[:PLACES_PER_PEER]
        if peer == self._peer or not kept:
            return
        self._known[peer] = kept
        self._known.move_to_end(peer)
        if len(self._known) > KNOWN_PEERS:
            self._known.popitem(last=False)

    # --- for the Network -------------------------------------------------------------

    def attach(self, control: Control, places: tuple[str, ...]) -> None:
        """Use this life of p2pd from now on; ``places``: where it listens."""
        self._control = control
        self._addresses = tuple(f"{place}/p2p/{self._peer}" for place in places)

    def detach(self) -> None:
        """There is no p2pd for now."""
        self._control = None

    async def serve(self, control: Control) -> None:
        """Take the streams that others open, once somebody listens; until cancelled."""
        await self._wanted.wait()
        async with control.serving(PROTOCOL, self._accept):
            self._serving.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._serving.clear()

    def close(self) -> None:
        """Close every stream and end its handler; other users see LinkError."""
        self._closed = True
        for task in self._handling:
            task.cancel()
        accepted = [stream for streams in self._accepted.values() for stream in streams]
        for stream in (*self._opened, *accepted):
            stream.close_now()

    def _accept(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._closed:
            writer.close()
            return
        if len(self._accepted.get(peer, ())) >= STREAMS_PER_PEER:
            log.warning("refused a stream of %s: it has %d open", peer, STREAMS_PER_PEER)
            writer.close()
            return
        stream = Libp2pStream(peer, reader, writer, self._forget)
        self._accepted.setdefault(peer, set()).add(stream)
        task = self._tasks.create_task(self._handle(stream))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, stream: Libp2pStream) -> None:
        assert self._handler is not None
        try:
            await self._handler(stream)
        except PeerError as error:
            log.debug("stream of %s ended: %s", stream.peer, error)
            stream.close_now()
        except BaseException:
            stream.close_now()
            raise

    def _forget(self, stream: Libp2pStream) -> None:
        streams = self._accepted.get(stream.peer, set())
        streams.discard(stream)
        if not streams:
            self._accepted.pop(stream.peer, None)
