"""The taking side of snapshots: does what ``core/download`` decides, for one stage at a time.

    WantManifest -> StageManifest (size, leaves, root), from every donor
    WantChunk    -> Chunk, from whoever would have it here first, checked against its leaf

Chunks go straight to their place in the one buffer that the state takes; what is on its way
is bounded by the machine.

Invariants:
    * every wait has a deadline; every chunk is checked before it counts;
    * a size is believed only within the bound that the RunSpec gives;
    * who is refused is named in an event; whose bytes do not match loses its link as well.

Refused: a task for each donor. They would share the list of what is missing, and the
decision whom to ask would be spread over them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core import transfer as t
from p2ptrain.core.agreement import Position
from p2ptrain.core.download import OWNERS, Download, Phase
from p2ptrain.core.merkle import leaf_digest
from p2ptrain.errors import InternalError, LinkError
from p2ptrain.observe import events as ev
from p2ptrain.wire.messages import Chunk, NoSuch, StageManifest, WantChunk, WantManifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.agreement import Sum
    from p2ptrain.engine.links import Links
    from p2ptrain.observe.events import Emit
    from p2ptrain.units import Bytes, Digest, PeerId, Stage, Step

STATE_BYTES_PER_ELEMENT = 64  # weights and optimizer state take 16 in fp32; room for more
STATE_BYTES_EXTRA = 1 << 20  # names, shapes, the schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A stage's state: where it stands, the last step record's peers, and who gave it.

    ``root``: over its chunks; None if it comes from our own disk. ``result``: the blob is a
    difference to the state that was asked for, and leads to the one with this root. ``taken``:
    as its owner says, the SUMs that led there.
    """

    at: Position
    members: tuple[tuple[PeerId, ...], ...]
    blob: bytes | bytearray
    sources: tuple[PeerId, ...]
    root: Digest | None = None
    result: Digest | None = None
    taken: tuple[Sum, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The state that we hold, and the one size of a difference to it."""

    root: Digest
    size_bytes: Bytes


class Puller:
    """What this peer takes from others. Feed answers to :meth:`heard`."""

    def __init__(self, links: Links, emit: Emit) -> None:
        self._links = links
        self._emit = emit
        self._pulls: dict[Stage, _Pull] = {}

    async def pull(
        self,
        stage: Stage,
        donors: Sequence[PeerId],
        *,
        version: Step,
        owners: int = OWNERS,
        base: Base | None = None,
    ) -> Pulled:
        """The state of ``stage`` that ``owners`` agree on, verified; see ``core/download``.

        ``version``: the step that the run is at, as far as we know. ``owners``: so many must
        agree. ``base``: a difference to this is as good. Cancelled, it leaves nothing behind;
        answers on their way are ignored.

        Raises:
            LinkError: there is none to be had; the reason says why, of every donor.
        """
        if stage in self._pulls:
            raise InternalError(f"the state of stage {stage} is being pulled already")
        most = STATE_BYTES_PER_ELEMENT * self._links.limits.elements(stage) + STATE_BYTES_EXTRA
        download = Download(
            donors,
            version=version,
            most_bytes=most,
            owners=owners,
            difference_bytes=0 if base is None else base.size_bytes,
        )
        pull = self._pulls[stage] = _Pull(stage, download, self._links, self._emit, base)
        try:
            return await pull.run()
        finally:
            del self._pulls[stage]

    def heard(
        self,
        peer: PeerId,
        message: StageManifest | NoSuch | Chunk,
        payload: memoryview | None,
    ) -> None:
        """An answer; one that nobody waits for (any more) changes nothing."""
        pull = self._pulls.get(message.stage)
        if pull is not None:
            pull.heard(peer, message, payload)

    def lost(self, peer: PeerId) -> None:
        """The link to ``peer`` broke: who waits for it waits no longer."""
        for pull in list(self._pulls.values()):
            pull.feed(t.Gone(peer, "the link broke"))


class _Pull:
    """One download with its buffer."""

    def __init__(
        self, stage: Stage, download: Download, links: Links, emit: Emit, base: Base | None
    ) -> None:
        self._stage, self._download, self._base = stage, download, base
        self._links, self._emit = links, emit
        self._changed = asyncio.Event()
        self._manifests: dict[PeerId, StageManifest] = {}
        self._members: tuple[tuple[PeerId, ...], ...] = ()
        self._taken: tuple[Sum, ...] = ()
        self._blob = bytearray()

    async def run(self) -> Pulled:
        download = self._download
        self._perform(download.begin(now=_now()), b"")
        while (due_at := download.due_at) is not None:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(due_at):
                    await self._changed.wait()
            except TimeoutError:
                self._perform(download.tick(now=_now()), b"")
        if download.phase is not Phase.DONE or download.snapshot is None:
            raise LinkError(download.reason)
        got = download.snapshot
        return Pulled(
            at=Position(epoch=got.epoch, step=got.version, chain=got.chain),
            members=self._members,
            blob=self._blob,
            sources=download.sources,
            root=got.root,
            result=got.result,
            taken=self._taken,
        )

    def heard(
        self, peer: PeerId, message: StageManifest | NoSuch | Chunk, payload: memoryview | None
    ) -> None:
        if isinstance(message, NoSuch):
            self.feed(t.Denied(peer, message.reason))
        elif isinstance(message, StageManifest):
            if message.base in (None, None if self._base is None else self._base.root):
                self._manifests[peer] = message
                self.feed(t.Offered(peer, _snapshot(message)))
        elif payload is not None:
            digest = leaf_digest(payload)
            arrived = t.Arrived(peer, message.root, message.index, len(payload), digest)
            self.feed(arrived, payload)

    def feed(self, event: t.Event, payload: memoryview | bytes = b"") -> None:
        self._perform(self._download.handle(event, now=_now()), payload)
        self._changed.set()

    def _perform(self, actions: tuple[t.Action, ...], payload: memoryview | bytes) -> None:
        for action in actions:
            match action:
                case t.AskSnapshot(peer, version):
                    base = None if self._base is None else self._base.root
                    want_all = WantManifest(stage=self._stage, version=version, base=base)
                    self._links.send(peer, want_all)
                case t.AskChunk(peer, root, index):
                    want = WantChunk(stage=self._stage, root=root, index=index)
                    self._links.send(peer, want)
                case t.Take(snapshot, owners):
                    self._take(snapshot, owners)
                case t.Keep(index):
                    self._keep(index, payload)
                case t.Refuse(peer, reason, lied):
                    self._refuse(peer, reason, lied=lied)
                case t.Warn(reason):
                    self._emit(ev.Alarm(reason=f"stage {self._stage}: {reason}"))

    def _take(self, snapshot: t.Snapshot, owners: tuple[PeerId, ...]) -> None:
        if len(self._blob) != snapshot.size_bytes:  # else what is right there stays
            self._blob = bytearray(snapshot.size_bytes)
        told = Counter(self._manifests[owner].members for owner in owners)
        self._members = told.most_common(1)[0][0]  # not under the root, so the most told
        self._taken = self._manifests[owners[0]].taken  # the chain says whether it is right

    def _keep(self, index: int, payload: memoryview | bytes) -> None:
        snapshot = self._download.snapshot
        assert snapshot is not None
        start = index * snapshot.chunk_bytes
        self._blob[start : start + len(payload)] = payload

    def _refuse(self, peer: PeerId, reason: str, *, lied: bool) -> None:
        self._emit(ev.DonorRefused(peer=peer, stage=self._stage, reason=reason))
        if lied:
            self._emit(ev.FrameRefused(peer=peer, reason=reason))
            self._links.close_peer(peer, reason)


def _snapshot(manifest: StageManifest) -> t.Snapshot:
    return t.Snapshot(
        epoch=manifest.epoch,
        version=manifest.version,
        chain=manifest.chain,
        size_bytes=manifest.size_bytes,
        chunk_bytes=manifest.chunk_bytes,
        leaves=manifest.leaves,
        root=manifest.root,
        base=manifest.base,
        result=manifest.result,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
