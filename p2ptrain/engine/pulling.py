"""The taking side of transfers: snapshots and the corpus, verified, from one donor or the next.

    WantManifest -> StageManifest (size, leaves, root)
    WantChunk x WINDOW -> Chunk, checked against its leaf
    a donor fails, is silent or lies -> the next one; what was verified under the same root
    stays

Invariants:
    * every wait has a deadline; every chunk of state is checked before it counts;
    * a size is believed only within the bound that the RunSpec gives;
    * a donor whose bytes do not match its own leaves is named, and its link is closed.

Refused: several donors at once. One fills the joiner's link in most swarms; the window and
the merge of answers would be the same code, so it can still come.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, assert_never

from p2ptrain.core.merkle import leaf_digest, merkle_root
from p2ptrain.errors import LinkError, MisbehaviourError, PeerError
from p2ptrain.observe.events import FrameRefused
from p2ptrain.run import corpus_root
from p2ptrain.wire.limits import CHUNK_BYTES, CORPUS_BYTES, CORPUS_CHUNK_BYTES
from p2ptrain.wire.messages import (
    Chunk,
    CorpusChunk,
    NoSuch,
    StageManifest,
    WantChunk,
    WantCorpus,
    WantManifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.engine.links import Links
    from p2ptrain.observe.events import Emit
    from p2ptrain.units import Bytes, Digest, PeerId, Seconds, Stage

MANIFEST_SECONDS = 30.0  # the donor saves its state first, behind what its device computes
CHUNK_SECONDS = 30.0  # 4 MiB at 2 Mbit/s take 17 s; slower donors are not worth waiting for
WINDOW = 4  # chunks asked for at a time: hides the round trip, costs 16 MiB

STATE_BYTES_PER_ELEMENT = 64  # weights and optimizer state take 16 in fp32; room for more
STATE_BYTES_EXTRA = 1 << 20  # names, shapes, the schedule

_Key: TypeAlias = tuple[str, "PeerId", int, bytes]  # what, donor, stage / index / offset, root
_Answer: TypeAlias = "StageManifest | memoryview"


@dataclass(slots=True, kw_only=True)
class _Partial:
    """What has arrived and been verified of the snapshot with ``root``."""

    root: Digest
    blob: bytearray
    have: set[int] = field(default_factory=set)


class Puller:
    """What this peer takes from others. Feed answers to :meth:`heard`."""

    def __init__(self, links: Links, emit: Emit) -> None:
        self._links = links
        self._emit = emit
        self._waiting: dict[_Key, asyncio.Future[_Answer]] = {}

    async def pull(
        self, stage: Stage, donors: Sequence[PeerId], *, min_version: int = 0
    ) -> tuple[StageManifest, bytearray]:
        """The newest state of ``stage`` that a donor gives, verified.

        Raises:
            LinkError: none of ``donors`` gave one; the reason names each and why.
        """
        partial: list[_Partial] = []
        problems = []
        for donor in donors:
            try:
                return await self._pull_from(donor, stage, min_version, partial)
            except PeerError as error:
                problems.append(self._blame(donor, error))
        raise LinkError("; ".join(problems) or "nobody to take it from")

    async def pull_corpus(self, donors: Sequence[PeerId], size_bytes: Bytes, root: str) -> bytes:
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
                return await self._pull_corpus_from(donor, size_bytes, root)
            except PeerError as error:
                problems.append(self._blame(donor, error))
        raise LinkError("; ".join(problems) or "nobody to take it from")

    def heard(
        self,
        peer: PeerId,
        message: StageManifest | NoSuch | Chunk | CorpusChunk,
        payload: memoryview | None,
    ) -> None:
        """An answer; one that nobody waits for (any more) changes nothing."""
        key: _Key
        answer: _Answer | None = payload
        match message:
            case NoSuch():
                self._fail(peer, message.what, message.reason)
                return
            case StageManifest():
                key, answer = ("snapshot", peer, message.stage, b""), message
            case Chunk():
                key = ("chunk", peer, message.index, message.root)
            case CorpusChunk():
                key = ("corpus", peer, message.offset, b"")
            case _:
                assert_never(message)
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting.done() and answer is not None:
            waiting.set_result(answer)

    def lost(self, peer: PeerId) -> None:
        """The link to ``peer`` broke: who waits for it waits no longer."""
        self._fail(peer, None, "the link broke")

    # --- one donor -----------------------------------------------------------------------

    async def _pull_from(
        self, donor: PeerId, stage: Stage, min_version: int, partial: list[_Partial]
    ) -> tuple[StageManifest, bytearray]:
        key: _Key = ("snapshot", donor, stage, b"")
        asked = self._ask(key, WantManifest(stage=stage))
        manifest = await self._answer(key, asked, MANIFEST_SECONDS)
        assert isinstance(manifest, StageManifest)
        self._check(manifest, donor, min_version)
        if not partial or partial[0].root != manifest.root:
            partial[:] = [_Partial(root=manifest.root, blob=bytearray(manifest.size_bytes))]
        todo = [index for index in range(len(manifest.leaves)) if index not in partial[0].have]
        await self._pull_all(
            [
                (
                    ("chunk", donor, index, manifest.root),
                    WantChunk(stage=stage, root=manifest.root, index=index),
                )
                for index in todo
            ],
            lambda key, chunk: _place(partial[0], manifest, key[2], chunk),
        )
        return manifest, partial[0].blob

    async def _pull_corpus_from(self, donor: PeerId, size_bytes: Bytes, root: str) -> bytes:
        blob = bytearray(size_bytes)

        def place(key: _Key, piece: memoryview) -> None:
            wanted = min(CORPUS_CHUNK_BYTES, size_bytes - key[2])
            if len(piece) != wanted:
                raise MisbehaviourError(
                    f"gave {len(piece)} bytes of the corpus instead of {wanted}", peer=donor
                )
            blob[key[2] : key[2] + wanted] = piece

        await self._pull_all(
            [
                (
                    ("corpus", donor, offset, b""),
                    WantCorpus(
                        offset=offset, size_bytes=min(CORPUS_CHUNK_BYTES, size_bytes - offset)
                    ),
                )
                for offset in range(0, size_bytes, CORPUS_CHUNK_BYTES)
            ],
            place,
        )
        if corpus_root(memoryview(blob)) != root:
            raise MisbehaviourError("gave another corpus than the run pins", peer=donor)
        return bytes(blob)

    async def _pull_all(
        self,
        wants: Sequence[tuple[_Key, WantChunk | WantCorpus]],
        place: Callable[[_Key, memoryview], None],
    ) -> None:
        """Ask for all of ``wants``, at most WINDOW at a time, and place what comes."""
        asked: deque[tuple[_Key, asyncio.Future[_Answer]]] = deque()
        todo = deque(wants)
        try:
            while asked or todo:
                while todo and len(asked) < WINDOW:
                    key, want = todo.popleft()
                    asked.append((key, self._ask(key, want)))
                key, future = asked[0]
                piece = await self._answer(key, future, CHUNK_SECONDS)
                asked.popleft()
                assert isinstance(piece, memoryview)
                place(key, piece)
        finally:
            for key, future in asked:
                self._waiting.pop(key, None)
                if not future.cancel() and not future.cancelled():
                    future.exception()  # retrieved: the first one has told

    def _check(self, manifest: StageManifest, donor: PeerId, min_version: int) -> None:
        """Believe a manifest only if it fits the run and itself."""
        bound = STATE_BYTES_PER_ELEMENT * self._links.limits.elements(manifest.stage)
        sound = (
            manifest.chunk_bytes == CHUNK_BYTES
            and 0 < manifest.size_bytes <= bound + STATE_BYTES_EXTRA
            and len(manifest.leaves) == -(-manifest.size_bytes // CHUNK_BYTES)
            and merkle_root(manifest.leaves) == manifest.root
        )
        if not sound:
            raise MisbehaviourError("gave a manifest that does not fit itself", peer=donor)
        if not manifest.available or manifest.version < min_version:
            raise LinkError(f"has version {manifest.version}, want {min_version}", peer=donor)

    # --- waiting -------------------------------------------------------------------------

    def _ask(
        self, key: _Key, want: WantManifest | WantChunk | WantCorpus
    ) -> asyncio.Future[_Answer]:
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        self._links.send(key[1], want)
        return future

    async def _answer(
        self, key: _Key, future: asyncio.Future[_Answer], seconds: Seconds
    ) -> _Answer:
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise LinkError(f"no answer within {seconds:.0f} s", peer=key[1]) from None
        finally:
            self._waiting.pop(key, None)

    def _fail(self, peer: PeerId, what: str | None, reason: str) -> None:
        for key in [key for key in self._waiting if key[1] == peer and what in (None, key[0])]:
            waiting = self._waiting.pop(key)
            if not waiting.done():
                waiting.set_exception(LinkError(reason, peer=peer))

    def _blame(self, donor: PeerId, error: PeerError) -> str:
        if isinstance(error, MisbehaviourError):
            self._emit(FrameRefused(peer=donor, reason=error.reason))
            self._links.close_peer(donor, error.reason)
        return f"{donor}: {error.reason}"


def _place(partial: _Partial, manifest: StageManifest, index: int, chunk: memoryview) -> None:
    start = index * CHUNK_BYTES
    wanted = min(CHUNK_BYTES, manifest.size_bytes - start)
    if len(chunk) != wanted or leaf_digest(chunk) != manifest.leaves[index]:
        raise MisbehaviourError(f"chunk {index} does not match its own leaf")
    partial.blob[start : start + wanted] = chunk
    partial.have.add(index)
