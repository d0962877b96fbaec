"""The taking side of the corpus: piece after piece from one peer of stage 0 or the next.

    WantCorpus x WINDOW -> CorpusChunk, checked as a whole against the RunSpec's root

Invariants:
    * every wait has a deadline, every piece the size that was asked for;
    * a donor whose corpus is another one is named, and its link is closed.

Refused: several donors at once, as for state. The corpus has one digest for the whole (a
RunSpec of many leaves would not fit a record), so nobody could tell which of them lied.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from p2ptrain.errors import LinkError, MisbehaviourError, PeerError
from p2ptrain.observe.events import FrameRefused
from p2ptrain.run import corpus_root
from p2ptrain.wire.limits import CORPUS_BYTES, CORPUS_CHUNK_BYTES
from p2ptrain.wire.messages import WantCorpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.engine.links import Links
    from p2ptrain.observe.events import Emit
    from p2ptrain.units import Bytes, PeerId

PIECE_SECONDS = 30.0  # 1 MiB at 0.3 Mbit/s; slower donors are not worth waiting for
WINDOW = 4  # pieces asked for at a time: hides the round trip, costs 4 MiB


class CorpusPuller:
    """Takes the corpus from others. Feed answers to :meth:`heard` and :meth:`failed`."""

    def __init__(self, links: Links, emit: Emit) -> None:
        self._links = links
        self._emit = emit
        self._waiting: dict[tuple[PeerId, int], asyncio.Future[memoryview]] = {}

    async def pull(self, donors: Sequence[PeerId], size_bytes: Bytes, root: str) -> bytes:
        """The corpus of ``size_bytes`` whose BLAKE2b is ``root`` (see RunSpec.data).

        It has one digest for the whole, so a wrong one costs a whole pull, from the donor
        that is then named.

        Raises:
            LinkError: none of ``donors`` gave it, or it is too large to be pulled.
        """
        if size_bytes > CORPUS_BYTES:
            raise LinkError(f"a corpus of {size_bytes} bytes is not pulled; bring it with --data")
        problems = []
        for donor in donors:
            try:
                return await self._pull_from(donor, size_bytes, root)
            except PeerError as error:
                problems.append(self._blame(donor, error))
        raise LinkError("; ".join(problems) or "nobody to take it from")

    def heard(self, peer: PeerId, offset: int, payload: memoryview) -> None:
        """A piece; one that nobody waits for (any more) changes nothing."""
        waiting = self._waiting.pop((peer, offset), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(payload)

    def failed(self, peer: PeerId, reason: str) -> None:
        """``peer`` gives none, or is gone: who waits for it waits no longer."""
        for key in [key for key in self._waiting if key[0] == peer]:
            waiting = self._waiting.pop(key)
            if not waiting.done():
                waiting.set_exception(LinkError(reason, peer=peer))

    async def _pull_from(self, donor: PeerId, size_bytes: Bytes, root: str) -> bytes:
        blob = bytearray(size_bytes)
        todo = deque(range(0, size_bytes, CORPUS_CHUNK_BYTES))
        asked: deque[tuple[int, asyncio.Future[memoryview]]] = deque()
        try:
            while asked or todo:
                while todo and len(asked) < WINDOW:
                    offset = todo.popleft()
                    asked.append((offset, self._ask(donor, offset, size_bytes)))
                offset, future = asked[0]
                piece = await self._answer(donor, future)
                asked.popleft()
                wanted = min(CORPUS_CHUNK_BYTES, size_bytes - offset)
                if len(piece) != wanted:
                    raise MisbehaviourError(
                        f"gave {len(piece)} bytes of the corpus instead of {wanted}", peer=donor
                    )
                blob[offset : offset + wanted] = piece
        finally:
            for offset, future in asked:
                self._waiting.pop((donor, offset), None)
                if not future.cancel() and not future.cancelled():
                    future.exception()  # retrieved: the first one has told
        if corpus_root(memoryview(blob)) != root:
            raise MisbehaviourError("gave another corpus than the run pins", peer=donor)
        return bytes(blob)

    def _ask(self, donor: PeerId, offset: int, size_bytes: Bytes) -> asyncio.Future[memoryview]:
        future: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self._waiting[donor, offset] = future
        wanted = min(CORPUS_CHUNK_BYTES, size_bytes - offset)
        self._links.send(donor, WantCorpus(offset=offset, size_bytes=wanted))
        return future

    async def _answer(self, donor: PeerId, future: asyncio.Future[memoryview]) -> memoryview:
        try:
            async with asyncio.timeout(PIECE_SECONDS):
                return await future
        except TimeoutError:
            raise LinkError(f"no answer within {PIECE_SECONDS:.0f} s", peer=donor) from None

    def _blame(self, donor: PeerId, error: PeerError) -> str:
        if isinstance(error, MisbehaviourError):
            self._emit(FrameRefused(peer=donor, reason=error.reason))
            self._links.close_peer(donor, error.reason)
        return f"{donor}: {error.reason}"
