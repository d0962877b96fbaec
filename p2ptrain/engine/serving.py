"""The giving side of transfers: snapshots and corpus pieces, a few chunks at a time.

Serving needs no task: a chunk is handed to the donor's data lane, and the next follows when
it has been written, so that a transfer takes its turns among the frames of training.

Invariants: at most SENDING chunks are on their way, MOST_WAITING requests wait, KEPT
snapshots of a stage are held; beyond: wait, refuse, drop the oldest.

The alternative, every replica serving from files, would need a disk on every peer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.merkle import chunks, leaf_digest, merkle_root
from p2ptrain.errors import LinkError
from p2ptrain.units import Stage
from p2ptrain.wire.limits import CHUNK_BYTES
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
    from typing import Literal

    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.links import Links
    from p2ptrain.ports import Buffer, Corpus
    from p2ptrain.units import PeerId
    from p2ptrain.wire.messages import Data

SENDING = 2  # chunks on their way: one being written, one ready
MOST_WAITING = 64  # requests: a full window of sixteen joiners
KEPT = 3  # snapshots of a stage: one being pulled may be two steps old


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    manifest: StageManifest
    blob: memoryview


class Donor:
    """What this peer gives to others. ``corpus``: set it to serve it."""

    def __init__(self, links: Links) -> None:
        self.corpus: Corpus | None = None
        self._links = links
        self._held: dict[Stage, deque[_Snapshot]] = {}
        self._requests: deque[tuple[PeerId, WantChunk | WantCorpus]] = deque()
        self._sending = 0

    async def offer(
        self,
        stage: Stage,
        at: Position,
        members: tuple[tuple[PeerId, ...], ...],
        blob: Buffer,
    ) -> None:
        """Serve ``blob``, the state of ``stage`` at the beginning of step ``at.step``.

        The blob must not change any more. Gives way between the chunks it hashes.
        """
        held = self._held.setdefault(stage, deque(maxlen=KEPT))
        if any(
            (one.manifest.epoch, one.manifest.version, one.manifest.chain)
            == (at.epoch, at.step, at.chain)
            for one in held
        ):
            return
        view = memoryview(blob).cast("B").toreadonly()
        leaves = []
        for chunk in chunks(view, CHUNK_BYTES):
            leaves.append(leaf_digest(chunk))
            await asyncio.sleep(0)
        manifest = StageManifest(
            stage=stage,
            available=True,
            epoch=at.epoch,
            version=at.step,
            chain=at.chain,
            size_bytes=len(view),
            chunk_bytes=CHUNK_BYTES,
            leaves=tuple(leaves),
            root=merkle_root(leaves),
            members=members,
        )
        held.append(_Snapshot(manifest=manifest, blob=view))

    def withdraw(self, stage: Stage) -> None:
        """Serve no state of ``stage`` any more."""
        self._held.pop(stage, None)

    def asked(self, peer: PeerId, request: WantManifest | WantChunk | WantCorpus) -> None:
        """Answer now, or queue for the data lane, or refuse."""
        if isinstance(request, WantManifest):
            held = self._held.get(request.stage)
            if held:
                self._links.send(peer, held[-1].manifest)
            else:
                self._refuse(peer, request, "this peer holds no state of that stage")
        elif len(self._requests) < MOST_WAITING:
            self._requests.append((peer, request))
            self._serve()
        else:
            self._refuse(peer, request, "too many ask at once; try again")

    def _serve(self) -> None:
        while self._sending < SENDING and self._requests:
            peer, request = self._requests.popleft()
            found = self._find(peer, request)
            if found is None:
                continue
            try:
                sent = self._links.submit(peer, *found)
            except LinkError:
                continue  # it will ask again, or somebody else
            self._sending += 1
            sent.add_done_callback(self._served)

    def _served(self, sent: asyncio.Future[None]) -> None:
        if not sent.cancelled():
            sent.exception()  # retrieved: a broken link ends its requests, nothing else
        self._sending -= 1
        self._serve()

    def _find(
        self, peer: PeerId, request: WantChunk | WantCorpus
    ) -> tuple[Data, tuple[Buffer]] | None:
        """The frame that answers ``request``; None: it was refused."""
        if isinstance(request, WantCorpus):
            piece = b""
            if self.corpus is not None:
                piece = self.corpus.read(request.offset, request.size_bytes)
            if piece:
                return CorpusChunk(offset=request.offset), (piece,)
            self._refuse(peer, request, "this peer does not hold those bytes")
            return None
        for snapshot in self._held.get(request.stage, ()):
            start = request.index * CHUNK_BYTES
            if snapshot.manifest.root == request.root and start < len(snapshot.blob):
                chunk = snapshot.blob[start : start + CHUNK_BYTES]
                return Chunk(stage=request.stage, root=request.root, index=request.index), (chunk,)
        self._refuse(peer, request, "this peer no longer holds that snapshot")
        return None

    def _refuse(
        self, peer: PeerId, request: WantManifest | WantChunk | WantCorpus, reason: str
    ) -> None:
        what: Literal["snapshot", "chunk", "corpus"] = "corpus"
        stage = Stage(0)
        if not isinstance(request, WantCorpus):
            what = "chunk" if isinstance(request, WantChunk) else "snapshot"
            stage = request.stage
        self._links.send(peer, NoSuch(what=what, stage=stage, reason=reason))
