"""The giving side of transfers: snapshots and corpus pieces, a few chunks at a time.

Serving needs no task: a chunk is handed to the donor's data lane, and the next follows when
it has been written, so that a transfer takes its turns among the frames of training.

Invariants: at most SENDING chunks are on their way, MOST_WAITING requests wait, KEPT
snapshots of a stage are held; beyond: wait, refuse, drop the one not asked for longest. One
that nobody asks for goes after IDLE_SECONDS: a state is as large as the seat.

The alternative, every replica serving from files, would need a disk on every peer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from p2ptrain.core.merkle import chunk_size, chunks, leaf_digest, merkle_root
from p2ptrain.errors import LinkError
from p2ptrain.units import Stage
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

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.engine.links import Links
    from p2ptrain.ports import Buffer, Corpus
    from p2ptrain.units import Digest, PeerId, Seconds, Step
    from p2ptrain.wire.messages import Data

SENDING = 2  # chunks on their way: one being written, one ready
MOST_WAITING = 256  # requests: a full window of sixty-four joiners
KEPT = 3  # snapshots of a stage: one being pulled may be two steps old
IDLE_SECONDS = 60.0  # longer than a puller waits for any chunk


@dataclass(slots=True, kw_only=True)
class _Snapshot:
    manifest: StageManifest
    blob: memoryview
    used_at: Seconds


class Donor:
    """What this peer gives to others. ``corpus``: set it to serve it."""

    def __init__(self, links: Links) -> None:
        self.corpus: Corpus | None = None
        self._links = links
        self._held: dict[Stage, list[_Snapshot]] = {}
        self._differences: dict[Stage, _Snapshot] = {}  # the last of each
        self._requests: deque[tuple[PeerId, WantChunk | WantCorpus]] = deque()
        self._sending = 0

    async def offer(
        self,
        stage: Stage,
        at: Position,
        members: tuple[tuple[PeerId, ...], ...],
        blob: Buffer,
        *,
        leads: tuple[Digest, Digest] | None = None,
        taken: tuple[Sum, ...] = (),
    ) -> Digest:
        """Serve ``blob``, the state of ``stage`` at the beginning of step ``at.step``.

        The blob must not change any more. ``leads``: it is the difference of two states, which
        have these roots. ``taken``: see StageManifest. Gives way between the chunks it hashes;
        returns the root over them.
        """
        view = memoryview(blob).cast("B").toreadonly()
        leaves = await leaves_of(view)
        manifest = StageManifest(
            stage=stage,
            available=True,
            epoch=at.epoch,
            version=at.step,
            chain=at.chain,
            size_bytes=len(view),
            chunk_bytes=chunk_size(len(view)),
            leaves=leaves,
            root=merkle_root(leaves),
            members=members,
            base=None if leads is None else leads[0],
            result=None if leads is None else leads[1],
            taken=taken,
        )
        snapshot = _Snapshot(manifest=manifest, blob=view, used_at=_now())
        if leads is not None:
            self._differences[stage] = snapshot
            return manifest.root
        held = [one for one in self._held.get(stage, ()) if not _same(one.manifest, at)]
        held.append(snapshot)
        self._held[stage] = sorted(held, key=attrgetter("used_at"))[-KEPT:]
        return manifest.root

    def holds(self, stage: Stage, version: Step) -> bool:
        """Whether a snapshot of ``version`` or a later step can be given."""
        return self._from(stage, version) is not None

    def expire(self, now: Seconds) -> None:
        """Drop what nobody has asked for lately."""
        for stage, held in self._held.items():
            self._held[stage] = [one for one in held if now - one.used_at < IDLE_SECONDS]
        for stage, one in list(self._differences.items()):
            if now - one.used_at >= IDLE_SECONDS:
                del self._differences[stage]

    def asked(self, peer: PeerId, request: WantManifest | WantChunk | WantCorpus) -> None:
        """Answer now, or queue for the data lane, or refuse."""
        if isinstance(request, WantManifest):
            snapshot = self._difference(request) or self._from(request.stage, request.version)
            if snapshot is not None:
                snapshot.used_at = _now()
                self._links.send(peer, snapshot.manifest)
            else:
                self._refuse(peer, request, "this peer holds no state of that stage")
        elif len(self._requests) < MOST_WAITING:
            self._requests.append((peer, request))
            self._serve()
        else:
            self._refuse(peer, request, "too many ask at once; try again")

    def _difference(self, request: WantManifest) -> _Snapshot | None:
        """The one that leads on from where the puller stands."""
        found = self._differences.get(request.stage)
        if request.base is None or found is None:
            return None
        fits = (found.manifest.version, found.manifest.base) == (request.version, request.base)
        return found if fits else None

    def _from(self, stage: Stage, version: Step) -> _Snapshot | None:
        """The first snapshot from ``version`` on: most likely the one that others give, too."""
        fit = [one for one in self._held.get(stage, ()) if one.manifest.version >= version]
        return min(fit, key=lambda one: one.manifest.version, default=None)

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
        difference = self._differences.get(request.stage)
        differences = () if difference is None else (difference,)
        for snapshot in (*self._held.get(request.stage, ()), *differences):
            chunk_bytes = snapshot.manifest.chunk_bytes
            start = request.index * chunk_bytes
            if snapshot.manifest.root == request.root and start < len(snapshot.blob):
                snapshot.used_at = _now()
                chunk = snapshot.blob[start : start + chunk_bytes]
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


async def leaves_of(view: memoryview) -> tuple[Digest, ...]:
    """Of all chunks of a state; gives way between them."""
    leaves = []
    for chunk in chunks(view, chunk_size(len(view))):
        leaves.append(leaf_digest(chunk))
        await asyncio.sleep(0)
    return tuple(leaves)


def _same(manifest: StageManifest, at: Position) -> bool:
    return (manifest.epoch, manifest.version, manifest.chain) == (at.epoch, at.step, at.chain)


def _now() -> float:
    return asyncio.get_running_loop().time()
