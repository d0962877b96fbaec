"""hivemind's DHTNode made fit for us: validated, interruptible, without caches.

Intuition: the node is sound but trusting. It stores what anybody sends, starts bare tasks,
and waits for a dead daemon. The three are mended from outside, through the arguments that
it offers, never by patching it.

Invariants: nothing enters our storage that its owner did not sign or that must be kept
longer than ``records`` allows; at most ``MAX_RECORDS`` records are kept, more are refused;
after ``interrupt`` every request fails at once, so all of hivemind's tasks end by
themselves.

Refused: ``hivemind.DHT`` (forks, dies on values of 30 kB), the node's caches (a cached
record outlives its newer version), and ``initial_peers`` of ``DHTNode.create`` (it leaves
a sleeping task behind and hides which address failed and why).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

from p2ptrain.net import records
from p2ptrain.net.binding import (
    DHTID,
    P2P,
    DHTNode,
    DHTRecord,
    DictionaryDHTValue,
    P2PDaemonError,
    PeerID,
    RecordValidatorBase,
    dht_pb2,
)
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.net.partition import Cut
    from p2ptrain.ports import Signer
    from p2ptrain.units import Seconds

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 3.0  # one request to one node; hivemind's default, ample on a WAN
REQUESTS: Final = 32  # requests of one node at once; more only slow each other
MAX_RECORDS: Final = 16_384  # times 5 kB: 80 MB at worst, on every node that is attacked
REPLICAS: Final = 5  # nodes that keep a record; half of them may vanish within its lifetime
READ_REPLICAS: Final = 10  # newcomers may have come nearer since the record was stored

reading: contextvars.ContextVar[bool] = contextvars.ContextVar("reading", default=False)
"""Set in tasks that search: what they are told is believed or not, but not stored."""


class InterruptibleP2P(P2P):  # type: ignore[misc]  # hivemind is untyped
    """hivemind's P2P whose requests can all be made to fail at once."""

    def __init__(self) -> None:
        super().__init__()
        self._pending: set[asyncio.Task[Any]] = set()
        self._over = asyncio.Event()
        self.cut: Cut | None = None

    async def call_protobuf_handler(self, *arguments: Any) -> Any:
        """As hivemind's; raises P2PDaemonError once interrupted, waits at a played partition."""
        if self._over.is_set():
            raise P2PDaemonError("the directory is closed")
        task = asyncio.current_task()
        assert task is not None
        self._pending.add(task)
        try:
            if self.cut is not None:
                await self.cut.healed(str(arguments[0]))
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
        return reading.get() or self._admit(record, found)

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


async def create_node(
    p2p: InterruptibleP2P, validator: RecordValidator, *, kept: Any = None
) -> Any:
    """A DHTNode of ours on ``p2p``. ``kept``: storage of an earlier life, to go on with."""
    node = await DHTNode.create(
        p2p,
        # Bound to the peer id: a restart keeps its place among the others
        node_id=DHTID.generate(source=str(p2p.peer_id).encode()),
        num_replicas=REPLICAS,
        parallel_rpc=REQUESTS,
        wait_timeout=REQUEST_SECONDS,
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
        reuse_get_requests=False,
        record_validator=validator,
    )
    if kept is not None:
        node.protocol.storage = kept
    return node


async def replicate(node: Any, key: DHTID, owner: PeerId, value: bytes, expiration: Seconds) -> int:
    """Store a record on the nodes nearest to ``key``; return how many took it.

    hivemind's own ``store`` reports only the last answer, so one liar could deny them all.
    """
    taken: list[bool] = []

    async def ask(target: PeerID) -> None:
        answer = await node.protocol.call_store(target, [key], [value], expiration, [owner])
        _note(node, target, answered=answer is not None)
        taken.append(bool(answer and answer[0]))

    nearest = await _nearest(node, key, REPLICAS)
    async with asyncio.TaskGroup() as asking:
        for node_id, target in nearest.items():
            if node_id != node.node_id:
                asking.create_task(ask(target))
            elif node.protocol.record_validator.validate(
                DHTRecord(key.to_bytes(), node.protocol.serializer.dumps(owner), value, expiration)
            ):
                taken.append(node.protocol.storage.store_subkey(key, owner, value, expiration))
    return sum(taken)


async def collect(node: Any, key: DHTID) -> list[tuple[PeerId, bytes, Seconds]]:
    """All (owner, value, expiration) that the nodes nearest to ``key`` hold, several per owner.

    hivemind's own ``get`` ends as soon as a node claims the latest possible expiration, so
    one liar could hide all others.
    """
    found: list[tuple[PeerId, bytes, Seconds]] = []

    def take(held: Any) -> None:
        if held is not None and isinstance(held.value, DictionaryDHTValue):
            found.extend((PeerId(owner), *entry) for owner, entry in held.value.items())

    async def ask(target: PeerID) -> None:
        answer = await node.protocol.call_find(target, [key])
        _note(node, target, answered=answer is not None)
        if answer is not None:
            take(answer[key][0])

    nearest = await _nearest(node, key, READ_REPLICAS)
    async with asyncio.TaskGroup() as asking:
        for node_id, target in nearest.items():
            if node_id != node.node_id:
                asking.create_task(ask(target))
    take(node.protocol.storage.get(key))
    return found


async def _nearest(node: Any, key: DHTID, count: int) -> dict[DHTID, PeerID]:
    """The ``count`` nodes nearest to ``key``, ours included, without those that fell silent."""
    found = await node.find_nearest_nodes([key])
    awake = [(uid, peer) for uid, peer in found[key].items() if peer not in node.blacklist]
    return dict(awake[:count])


def _note(node: Any, peer: PeerID, *, answered: bool) -> None:
    if answered:
        node.blacklist.register_success(peer)
    else:
        node.blacklist.register_failure(peer)


async def ask_time(node: Any, peer: PeerId) -> Seconds:
    """Ask the node of ``peer`` for its wall clock, and enter it into our routing table.

    Raises:
        TimeoutError: it does not answer.
        P2PDaemonError: it is no node, or out of reach.
        P2PHandlerError: it failed to answer.
    """
    target = PeerID.from_base58(peer)
    request = dht_pb2.PingRequest(peer=node.protocol.node_info, validate=False)
    answer = await node.protocol.get_stub(target).rpc_ping(request, timeout=REQUEST_SECONDS)
    node_id = DHTID.from_bytes(answer.peer.node_id)
    await node.protocol.update_routing_table(node_id, target, responded=True)
    told: Seconds = answer.dht_time
    return told
