"""The directory: small signed records in hivemind's Kademlia DHT, inside our own loop.

Intuition: each peer is one DHT node. Records are a hint that anybody may read and that only
their owner may write; what they say and why they can be trusted stands in ``records``.

Invariants: readers never see a forged or expired record, nor one older than they have
already seen; one liar or one stale record never hides the others under its key. Every call
ends within ``DEADLINE_SECONDS``; at most ``SEARCHES`` run at once, the others wait inside
their deadline. The directory outlives p2pd: while that restarts, calls fail at once.

hivemind's searches leave tasks behind when cancelled. So a search is never cancelled: it
runs in a task of its own, its caller leaves at the deadline, and ``detach`` makes every
pending request fail, after which all searches end. (That also keeps hivemind's ``wait_for``
out of our tasks: in Python 3.11 it swallows a cancellation that meets a failure.)

Refused: cancelling and sweeping up the strays afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from p2ptrain.errors import DirectoryError
from p2ptrain.net import records
from p2ptrain.net.binding import DHTID, P2PDaemonError, P2PHandlerError
from p2ptrain.net.dhtnode import RecordValidator, ask_time, collect, create_node, reading, replicate
from p2ptrain.ports import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from p2ptrain.net.dhtnode import InterruptibleP2P
    from p2ptrain.ports import Signer
    from p2ptrain.units import PeerId, Seconds

log = logging.getLogger(__name__)
T = TypeVar("T")

# A search asks up to 20 nodes, 4 at a time; a few dead ones among them cost 3 s each.
DEADLINE_SECONDS: Final = 20.0
SEARCHES: Final = 32  # a peer has a handful of keys; more at once only slow each other
SEEN_OWNERS: Final = 16_384  # highest sequences remembered against roll-back


class DhtDirectory:
    """Our records and everybody's (ports.Directory). The Network attaches p2pd's lives."""

    def __init__(
        self,
        signer: Signer,
        tasks: asyncio.TaskGroup,
        *,
        learn: Callable[[PeerId, Iterable[str]], None],
        wall_clock: Callable[[], Seconds] = time.time,  # noqa: TID251 - the world's edge
    ) -> None:
        """``learn`` is told the addresses that come with other peers' records."""
        self._signer = signer
        self._tasks = tasks
        self._learn = learn
        self._wall_clock = wall_clock
        self._validator = RecordValidator(signer, wall_clock)
        self._searches = asyncio.Semaphore(SEARCHES)
        self._node: Any = None
        self._places: tuple[str, ...] = ()
        self._sequence = 0
        self._seen: dict[tuple[str, PeerId], int] = {}
        self._warned: set[PeerId] = set()

    async def store(self, key: str, value: bytes, *, lifetime: Seconds) -> bool:
        """Publish our record under ``key`` (at most 4 kB, at most 120 s); False if nobody took it.

        Raises:
            ValueError: too large or too long-lived.
            DirectoryError: no answer within the directory's own deadline.
        """
        if len(value) > records.MAX_VALUE_BYTES:
            raise ValueError(f"{len(value)} bytes; a record holds {records.MAX_VALUE_BYTES}")
        if not 0 < lifetime <= records.MAX_LIFETIME_SECONDS:
            raise ValueError(f"lifetime {lifetime} s: at most {records.MAX_LIFETIME_SECONDS:.0f}")
        now = self._wall_clock()
        self._sequence = max(self._sequence + 1, int(now * records.MICROSECONDS))
        record = records.SignedRecord(
            value=bytes(value),
            sequence=self._sequence,
            # Not more than the DHT keeps it, also when the clock was set back
            expiry=min(now + lifetime, records.dht_expiry(self._sequence)),
            addresses=self._places[: records.MAX_ADDRESSES],
            signature=b"",
        )
        place = DHTID.generate(source=key)
        signed = records.sign(self._signer, place.to_bytes(), record)
        blob, expiration = records.encode(signed), records.dht_expiry(signed.sequence)
        taken = await self._search(
            lambda node: replicate(node, place, self._signer.peer, blob, expiration)
        )
        return taken > 0

    async def read(self, key: str) -> tuple[Record, ...]:
        """All valid records under ``key``, one per owner, ordered by owner.

        Raises:
            DirectoryError: no answer within the directory's own deadline.
        """
        place = DHTID.generate(source=key)
        held = await self._search(lambda node: collect(node, place))
        now = self._wall_clock()
        newest: dict[PeerId, records.SignedRecord] = {}
        for owner, blob, expiration in held:
            record = self._authentic(place, owner, blob, expiration)
            if record is None or not self._is_timely(key, owner, record, now):
                continue
            rival = newest.get(owner)
            if rival is None or rival.sequence < record.sequence:
                newest[owner] = record
        for owner, record in newest.items():
            self._remember(key, owner, record)
        return tuple(
            Record(owner=owner, sequence=record.sequence, value=record.value)
            for owner, record in sorted(newest.items())
        )

    def _authentic(
        self, place: DHTID, owner: PeerId, blob: bytes, expiration: Seconds
    ) -> records.SignedRecord | None:
        try:
            record = records.decode(blob)
            records.authenticate(
                self._signer,
                key=place.to_bytes(),
                owner=owner,
                record=record,
                expiration=expiration,
            )
        except records.Forged as error:
            log.debug("record of %s ignored: %s", owner, error)
            return None
        return record

    def _is_timely(
        self, key: str, owner: PeerId, record: records.SignedRecord, now: Seconds
    ) -> bool:
        if records.is_from_the_future(record, now=now):
            if owner not in self._warned:
                self._warned.add(owner)
                log.warning("the clock of %s is over 30 s ahead of ours; one is wrong", owner)
            return False
        seen = self._seen.get((key, owner), 0)
        return not records.is_expired(record, now=now) and record.sequence >= seen

    def _remember(self, key: str, owner: PeerId, record: records.SignedRecord) -> None:
        self._learn(owner, record.addresses)
        self._seen.pop((key, owner), None)  # so that the order of the dict is that of use
        self._seen[key, owner] = record.sequence
        if len(self._seen) > SEEN_OWNERS:
            del self._seen[next(iter(self._seen))]

    async def _search(self, ask: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run one search to its end in a task of its own; wait for it until the deadline."""
        node = self._node
        if node is None:
            raise DirectoryError("p2pd is restarting")

        async def search() -> T | DirectoryError:
            async with self._searches:
                reading.set(True)
                try:
                    return await ask(node)
                except (P2PDaemonError, OSError, EOFError, ValueError, AssertionError) as error:
                    return DirectoryError(f"the directory failed: {error!r}")

        task = self._tasks.create_task(search())
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_SECONDS)
        if not done:
            raise DirectoryError(f"no answer in {DEADLINE_SECONDS:.0f} s")
        result = task.result()
        if isinstance(result, DirectoryError):
            raise result
        return result

    # --- for the Network -------------------------------------------------------------

    async def attach(self, p2p: InterruptibleP2P, places: tuple[str, ...]) -> None:
        """Use this life of p2pd from now on; records kept for others come along."""
        kept = None if self._node is None else self._node.protocol.storage
        self._node = await create_node(p2p, self._validator, kept=kept)
        self._places = places

    async def join(self, peers: Sequence[PeerId]) -> dict[PeerId, str]:
        """Meet the nodes of ``peers``, then our neighbours; return why some did not answer."""
        failed: dict[PeerId, str] = {}
        for peer in peers:
            try:
                reason = await self._meet(peer)
            except DirectoryError as error:
                reason = str(error)
            if reason is not None:
                failed[peer] = reason
        if len(failed) < len(peers):
            with contextlib.suppress(DirectoryError):  # those we met suffice to begin
                await self._search(lambda node: node.find_nearest_nodes([node.node_id]))
        return failed

    def neighbours(self) -> int:
        """How many other nodes ours knows; 0 means that we are alone or cut off."""
        return 0 if self._node is None else len(self._node.protocol.routing_table.uid_to_peer_id)

    def detach(self) -> None:
        """Fail all pending requests: p2pd is dead or about to be."""
        if self._node is not None:
            self._node.is_alive = False
            self._node.p2p.interrupt()

    async def _meet(self, peer: PeerId) -> str | None:
        async def ping(node: Any) -> Seconds | str:
            try:
                return await ask_time(node, peer)
            except TimeoutError:
                return "it is reached, but its directory does not answer"
            except (P2PDaemonError, P2PHandlerError) as error:
                log.debug("ping of %s failed: %s", peer, error)
                return "it is reached, but it is no p2ptrain peer or bootstrap"

        before = self._wall_clock()
        told = await self._search(ping)
        if isinstance(told, str):
            return told
        skew = told - (before + self._wall_clock()) / 2
        if abs(skew) > records.MAX_SKEW_SECONDS:
            log.warning(
                "our clock and that of %s differ by %.0f s: others will refuse our records; "
                "set the clock",
                peer,
                skew,
            )
        return None
