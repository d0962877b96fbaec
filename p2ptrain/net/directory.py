"""The directory: small signed records in hivemind's Kademlia DHT, inside our own loop.

Intuition: each peer is one DHTNode. Records are a hint that anybody may read and that only
their owner may write; what they say and why they can be trusted stands in ``records``.

Invariants: our node refuses forged, unsigned, unowned, oversized and far-future records
when they are stored, and drops the whole answer of a node that returns one; readers never
see an expired record, nor one older than they have already seen. Every call ends within
``DEADLINE_SECONDS``; at most ``SEARCHES`` run at once, the others wait inside their
deadline; at most ``MAX_RECORDS`` foreign records are kept, more are refused.

hivemind's node starts bare tasks that it never ends if cancelled. So a search is never
cancelled: its caller leaves at the deadline, and ``close`` makes every pending request
fail, after which all searches end by themselves.

Refused: ``hivemind.DHT`` (forks, dies on values of 30 kB), its caches (a cached record
outlives its newer version), and initial_peers in ``DHTNode.create`` (it leaves a sleeping
task behind and hides which address failed and why).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from p2ptrain.errors import DirectoryError
from p2ptrain.net import records
from p2ptrain.net.binding import (
    DHTID,
    P2P,
    DHTNode,
    DHTRecord,
    P2PDaemonError,
    PeerID,
    RecordValidatorBase,
    dht_pb2,
)
from p2ptrain.ports import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from p2ptrain.ports import Signer
    from p2ptrain.units import PeerId, Seconds

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_SECONDS: Final = 3.0  # one request to one node; hivemind's default, ample on a WAN
# A search asks up to 20 nodes, 4 at a time; a few dead ones among them cost 3 s each.
DEADLINE_SECONDS: Final = 20.0
SEARCHES: Final = 32  # a peer has a handful of keys; more at once only slow each other
MAX_RECORDS: Final = 16_384  # times 5 kB: 80 MB at worst, on every node that is attacked
SEEN_OWNERS: Final = 16_384  # highest sequences remembered against roll-back
REPLICAS: Final = 5  # nodes that keep a record; half of them may vanish within its lifetime

_reading: contextvars.ContextVar[bool] = contextvars.ContextVar("reading", default=False)


class InterruptibleP2P(P2P):  # type: ignore[misc]  # hivemind is untyped
    """hivemind's P2P whose requests can all be made to fail at once."""

    def __init__(self) -> None:
        super().__init__()
        self._pending: set[asyncio.Task[Any]] = set()
        self._over = asyncio.Event()

    async def call_protobuf_handler(self, *arguments: Any) -> Any:
        """As hivemind's; raises P2PDaemonError once interrupted."""
        if self._over.is_set():
            raise P2PDaemonError("the directory is closed")
        task = asyncio.current_task()
        assert task is not None
        self._pending.add(task)
        try:
            return await super().call_protobuf_handler(*arguments)
        except asyncio.CancelledError:
            if not self._over.is_set():
                raise
            task.uncancel()
            raise P2PDaemonError("the directory is closed") from None
        finally:
            self._pending.discard(task)

    def interrupt(self) -> None:
        """Fail every pending and future request."""
        self._over.set()
        for task in self._pending:
            task.cancel()


class RecordValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind is untyped
    """What our node lets into its storage, and which answers it believes. Never raises."""

    def __init__(self, verifier: Signer, wall_clock: Callable[[], Seconds]) -> None:
        self._verifier = verifier
        self._wall_clock = wall_clock
        self._kept: dict[tuple[bytes, bytes], Seconds] = {}

    def validate(self, record: DHTRecord) -> bool:
        """Whether to store ``record``, or to believe the node that returned it."""
        try:
            owner, found = records.owner_of(record.subkey), records.decode(record.value)
            records.authenticate(
                self._verifier,
                key=record.key,
                owner=owner,
                record=found,
                expiration=record.expiration_time,
            )
        except records.Forged as error:
            log.debug("record refused: %s", error)
            return False
        return _reading.get() or self._admit(record, found)

    def _admit(self, record: DHTRecord, found: records.SignedRecord) -> bool:
        now = self._wall_clock()
        if records.is_from_the_future(found, now=now):
            log.debug("record refused: issued in the future")
            return False
        place = (record.key, record.subkey)
        if place not in self._kept and len(self._kept) >= MAX_RECORDS:
            self._kept = {kept: expiry for kept, expiry in self._kept.items() if expiry > now}
            if len(self._kept) >= MAX_RECORDS:
                log.warning("record refused: %d records are kept already", MAX_RECORDS)
                return False
        self._kept[place] = record.expiration_time
        return True


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
            raise ValueError(f"{lifetime} s; a record lives {records.MAX_LIFETIME_SECONDS} s")
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
        signed = records.sign(self._signer, DHTID.generate(source=key).to_bytes(), record)
        stored: bool = await self._search(
            lambda node: node.store(
                key,
                msgspec.structs.asdict(signed) | {"addresses": list(signed.addresses)},
                expiration_time=records.dht_expiry(self._sequence),
                subkey=self._signer.peer,
            )
        )
        return stored

    async def read(self, key: str) -> tuple[Record, ...]:
        """All valid records under ``key``, one per owner, ordered by owner.

        Raises:
            DirectoryError: no answer within the directory's own deadline.
        """
        found = await self._search(lambda node: node.get(key, latest=True))
        if found is None or not isinstance(found.value, dict):
            return ()
        now = self._wall_clock()
        key_bytes = DHTID.generate(source=key).to_bytes()
        result: list[Record] = []
        for owner, (fields, expiration) in sorted(found.value.items()):
            try:
                record = msgspec.convert(fields, records.SignedRecord)
                # Our own storage was checked when stored; checking all alike costs 0.1 ms each
                records.authenticate(
                    self._signer, key=key_bytes, owner=owner, record=record, expiration=expiration
                )
            except (records.Forged, msgspec.MsgspecError) as error:
                log.debug("record of %s under %s ignored: %s", owner, key, error)
                continue
            if self._is_timely(key, owner, record, now):
                self._learn(owner, record.addresses)
                result.append(Record(owner=owner, sequence=record.sequence, value=record.value))
        return tuple(result)

    def _is_timely(
        self, key: str, owner: PeerId, record: records.SignedRecord, now: Seconds
    ) -> bool:
        if records.is_from_the_future(record, now=now):
            if owner not in self._warned:
                self._warned.add(owner)
                log.warning("the clock of %s is over 30 s ahead of ours; one is wrong", owner)
            return False
        if records.is_expired(record, now=now) or record.sequence < self._seen.get((key, owner), 0):
            return False
        self._seen.pop((key, owner), None)  # so that the order of the dict is that of use
        self._seen[key, owner] = record.sequence
        if len(self._seen) > SEEN_OWNERS:
            del self._seen[next(iter(self._seen))]
        return True

    async def _search(self, ask: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run one search to its end in a task of its own; wait for it until the deadline."""
        node = self._node
        if node is None:
            raise DirectoryError("p2pd is restarting")

        async def search() -> T | DirectoryError:
            async with self._searches:
                _reading.set(True)
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
        self._node = await DHTNode.create(
            p2p,
            # Bound to the peer id: a restart keeps its place among the others
            node_id=DHTID.generate(source=self._signer.peer.encode()),
            num_replicas=REPLICAS,
            parallel_rpc=SEARCHES,
            wait_timeout=REQUEST_SECONDS,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
            record_validator=self._validator,
        )
        if kept is not None:
            self._node.protocol.storage = kept
        self._places = places

    async def join(self, peers: Sequence[PeerId]) -> dict[PeerId, str]:
        """Meet the nodes of ``peers``, then our neighbours; return why some did not answer."""
        failed: dict[PeerId, str] = {}
        for peer in peers:
            reason = await self._meet(peer)
            if reason is not None:
                failed[peer] = reason
        if len(failed) < len(peers):
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
        node, target = self._node, PeerID.from_base58(peer)
        request = dht_pb2.PingRequest(peer=node.protocol.node_info, validate=False)
        before = self._wall_clock()
        try:
            answer = await node.protocol.get_stub(target).rpc_ping(request, timeout=REQUEST_SECONDS)
        except TimeoutError:
            return "it is reached, but its directory does not answer"
        except (P2PDaemonError, OSError, EOFError) as error:
            log.debug("ping of %s failed: %s", peer, error)
            return "it is reached, but it is no p2ptrain peer or bootstrap"
        after = self._wall_clock()
        skew = answer.dht_time - (before + after) / 2
        if abs(skew) > records.MAX_SKEW_SECONDS:
            log.warning(
                "our clock and that of %s differ by %.0f s: others will refuse our records; "
                "set the clock",
                peer,
                skew,
            )
        await node.protocol.update_routing_table(
            DHTID.from_bytes(answer.peer.node_id), target, responded=True
        )
        return None
