"""Requests to p2pd over its unix socket: who am I, connect, open a stream, serve streams.

Intuition: each request is one short connection that carries one protobuf message there and
one back. For a stream the same connection then *becomes* the byte stream, and for incoming
streams p2pd connects to a unix socket of ours.

Invariants: every request has a deadline; a request that fails or is cancelled closes its
connection; every foreign error leaves here as a LinkError with a reason for people.

Refused: hivemind's ControlClient for these, because a timed-out or cancelled call leaks its
connection there, and its reads cannot be sized. Its message types and framing are used.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from p2ptrain.errors import LinkError
from p2ptrain.net.binding import (
    Multiaddr,
    P2PDaemonError,
    PeerID,
    p2pd_pb2,
    raise_if_failed,
    read_pbmsg_safe,
    write_pbmsg,
)
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from p2ptrain.units import Seconds

# p2pd answers local requests in milliseconds; ten seconds mean that it hangs.
ANSWER_SECONDS: Final = 10.0
# libp2p gives up a dial to a silent address after 15 s by itself; we hear its reason then.
DIAL_SECONDS: Final = 16.0
# Half of what asyncio may hold per stream before it stops reading: one read of 1 MiB is
# the measured optimum, and a stopped reader must not hold more than that.
READ_LIMIT_BYTES: Final = 512 * 1024

# What libp2p says, and what it means for a person; the first match speaks.
_MEANINGS: Final = (
    ("connection refused", "connection refused: nothing listens there"),
    ("peer id mismatch", "another peer answers there: the /p2p/ part is not its id"),
    ("i/o timeout", "no answer: a firewall, or a wrong address"),
    ("deadline exceeded", "no answer: a firewall, or a wrong address"),
    ("no route to host", "no route to that host"),
    ("network is unreachable", "that network cannot be reached from here"),
    ("no such host", "that name does not resolve"),
    ("no good addresses", "no such host, or an address that nobody can dial"),
    ("dial backoff", "failed a moment ago; libp2p waits 5 s before it tries again"),
    ("routing: not found", "nobody knows its address"),
    ("protocols not supported", "it does not speak this protocol"),
    ("dial to self", "that is this peer itself"),
)


def plain_reason(text: str) -> str:
    """Reduce libp2p's nested error text to the cause that a person can act on."""
    causes = re.findall(r"\* \[[^\]]*\] ([^\n]*)", text)
    telling = [cause for cause in causes if "dial backoff" not in cause] or causes
    cause: str = telling[0] if telling else text
    for words, meaning in _MEANINGS:
        if words in cause:
            return meaning
    return " ".join(cause.split()).removeprefix("Connect failed. msg=")[:200] or "p2pd is gone"


class Control:
    """Speaks to one p2pd. ``path``: its socket; ``listen_path``: ours for incoming streams."""

    def __init__(self, *, path: Path, listen_path: Path) -> None:
        self._path = path
        self._listen_path = listen_path

    async def identify(self, *, deadline: Seconds = ANSWER_SECONDS) -> tuple[str, ...]:
        """Places where this peer can be reached, without ``/p2p/``.

        Raises:
            LinkError: p2pd does not answer.
        """
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        response = await self._short(request, deadline)
        return tuple(str(Multiaddr(place)) for place in response.identify.addrs)

    async def connect(self, peer: PeerId, places: Sequence[str]) -> None:
        """Connect to ``peer`` at any of ``places`` (without ``/p2p/``).

        Raises:
            LinkError: libp2p's reason.
        """
        target = p2pd_pb2.ConnectRequest(
            peer=PeerID.from_base58(peer).to_bytes(),
            addrs=[Multiaddr(place).to_bytes() for place in places],
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=target)
        await self._short(request, DIAL_SECONDS, peer)

    async def peers(self) -> dict[PeerId, str]:
        """Peers that p2pd is connected to, with the place of the connection.

        Raises:
            LinkError: p2pd does not answer.
        """
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS)
        response = await self._short(request, ANSWER_SECONDS)
        return {
            PeerId(str(PeerID(found.id))): str(Multiaddr(found.addrs[0]))
            for found in response.peers
            if found.addrs
        }

    async def open(
        self, peer: PeerId, protocol: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a byte stream to the handler of ``protocol`` at ``peer``.

        Raises:
            LinkError: it cannot be reached or does not speak ``protocol``.
        """
        target = p2pd_pb2.StreamOpenRequest(
            peer=PeerID.from_base58(peer).to_bytes(), proto=[protocol]
        )
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=target)
        _, reader, writer = await self._ask(request, DIAL_SECONDS, peer)
        return reader, writer

    @asynccontextmanager
    async def serving(
        self,
        protocol: str,
        accept: Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], None],
    ) -> AsyncIterator[None]:
        """Hand incoming streams of ``protocol`` to ``accept`` inside the ``with``.

        Raises:
            LinkError: p2pd does not answer.
        """

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            info = p2pd_pb2.StreamInfo()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await read_pbmsg_safe(reader, info)
            except (TimeoutError, OSError, EOFError):
                writer.close()  # p2pd died, or somebody else found our socket
                return
            accept(PeerId(str(PeerID(info.peer))), reader, writer)

        server = await asyncio.start_unix_server(receive, self._listen_path, limit=READ_LIMIT_BYTES)
        async with server:
            handler = p2pd_pb2.StreamHandlerRequest(
                addr=Multiaddr(f"/unix{self._listen_path}").to_bytes(),
                proto=[protocol],
                balanced=False,
            )
            request = p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
            await self._short(request, ANSWER_SECONDS)
            yield

    async def _short(self, request: Any, deadline: Seconds, peer: PeerId | None = None) -> Any:
        response, _, writer = await self._ask(request, deadline, peer)
        writer.close()
        return response

    async def _ask(
        self, request: Any, deadline: Seconds, peer: PeerId | None = None
    ) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(deadline):
                reader, writer = await asyncio.open_unix_connection(
                    self._path, limit=READ_LIMIT_BYTES
                )
                try:
                    await write_pbmsg(writer, request)
                    response = p2pd_pb2.Response()
                    await read_pbmsg_safe(reader, response)
                    raise_if_failed(response)
                except BaseException:
                    writer.close()
                    raise
        except TimeoutError as error:
            raise LinkError(f"no answer in {deadline:.0f} s", peer=peer) from error
        except (P2PDaemonError, OSError, EOFError) as error:
            raise LinkError(plain_reason(str(error)), peer=peer) from error
        return response, reader, writer
