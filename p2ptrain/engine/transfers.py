"""State and corpus from peer to peer: both sides of every transfer.

    puller  WantManifest -> StageManifest (size, leaves, root)     | NoSuch   donor
            WantChunk    -> Chunk + payload, a few at a time       | NoSuch
            WantCorpus   -> CorpusChunk + payload, a few at a time | NoSuch

This is where messages of transfers enter; ``serving`` gives, ``pulling`` takes state,
``corpora`` the corpus. Which snapshots there are to give, ``keeping`` decides.

Invariant: a message that belongs to a transfer is taken here, whether anybody waits for it
or not; an answer that comes too late changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.download import OWNERS
from p2ptrain.engine.corpora import CorpusPuller
from p2ptrain.engine.pulling import Puller
from p2ptrain.engine.serving import Donor
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
    from collections.abc import Sequence

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.engine.links import Links
    from p2ptrain.engine.pulling import Base, Pulled
    from p2ptrain.observe.events import Emit
    from p2ptrain.ports import Buffer, Corpus
    from p2ptrain.units import Bytes, Digest, PeerId, Seconds, Stage, Step
    from p2ptrain.wire.messages import Control, Data


class Snapshots:
    """Transfers of one peer. Feed :meth:`handle` with what the links deliver."""

    def __init__(self, links: Links, emit: Emit) -> None:
        self._donor = Donor(links)
        self._puller = Puller(links, emit)
        self._corpora = CorpusPuller(links, emit)
        self._pulling: dict[Stage, asyncio.Lock] = {}

    def handle(
        self, peer: PeerId, message: Control | Data, payload: memoryview | None = None
    ) -> bool:
        """Take a message if it belongs to a transfer; False: it is somebody else's."""
        match message:
            case WantManifest() | WantChunk() | WantCorpus():
                self._donor.asked(peer, message)
            case StageManifest() | Chunk():
                self._puller.heard(peer, message, payload)
            case CorpusChunk():
                if payload is not None:
                    self._corpora.heard(peer, message.offset, payload)
            case NoSuch(what="corpus"):
                self._corpora.failed(peer, message.reason)
            case NoSuch() if message.what != "sum":
                self._puller.heard(peer, message, None)
            case _:
                return False
        return True

    def lost(self, peer: PeerId) -> None:
        """The link to ``peer`` broke: fail at once what waits for it."""
        self._puller.lost(peer)
        self._corpora.failed(peer, "the link broke")

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

        The blob must not change any more. ``leads``: it is a difference, from the one state to
        the other. ``taken``: the SUMs that led there. Gives way between the chunks it hashes;
        returns the root over them.
        """
        return await self._donor.offer(stage, at, members, blob, leads=leads, taken=taken)

    def holds(self, stage: Stage, version: Step) -> bool:
        """Whether a snapshot of ``version`` or a later step can be given."""
        return self._donor.holds(stage, version)

    def expire(self, now: Seconds) -> None:
        """Drop what nobody has asked for lately."""
        self._donor.expire(now)

    def offer_corpus(self, corpus: Corpus) -> None:
        """Serve the run's corpus."""
        self._donor.corpus = corpus

    async def pull(
        self,
        stage: Stage,
        donors: Sequence[PeerId],
        *,
        version: Step,
        owners: int = OWNERS,
        base: Base | None = None,
    ) -> Pulled:
        """The state of ``stage`` that ``owners`` agree on, around step ``version``, verified.

        ``base``: a difference to this will do. One at a time of a stage: whoever comes to serve
        it may guard it as well.

        Raises:
            LinkError: there is none to be had; the reason says why, of every donor.
        """
        async with self._pulling.setdefault(stage, asyncio.Lock()):
            return await self._puller.pull(stage, donors, version=version, owners=owners, base=base)

    async def pull_corpus(self, donors: Sequence[PeerId], size_bytes: Bytes, root: str) -> bytes:
        """The run's corpus, verified against ``spec.data.root``.

        Raises:
            LinkError: none of ``donors`` gave it, or it is too large to be pulled.
        """
        return await self._corpora.pull(donors, size_bytes, root)
