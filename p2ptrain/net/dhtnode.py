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
    P2PDaemonError,
    PeerID,
    RecordValidatorBase,
    dht_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.ports import Signer
    from p2ptrain.units import PeerId, Seconds

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 3.0  # one request to one node; hivemind's default, ample on a WAN
REQUESTS: Final = 32  # requests of one node at once; more only slow each other
MAX_RECORDS: Final = 16_384  # times 5 kB: 80 MB at worst, on every node that is attacked
REPLICAS: Final = 5  # nodes that keep a record; half of them may vanish within its lifetime

reading: contextvars.ContextVar[bool] = contextvars.ContextVar("reading", default=False)
"""Set in tasks that search: what they are told is believed or not, but not stored."""


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


async def ask_time(node: Any, peer: PeerId) -> Seconds:
    """Ask the node of ``peer`` for its wall clock, and enter it into our routing table.

    Raises:
        TimeoutError: it does not answer.
        P2PDaemonError: it is no node, or out of reach.
    """
    target = PeerID.from_base58(peer)
    request = dht_pb2.PingRequest(peer=node.protocol.node_info, validate=False)
    answer = await node.protocol.get_stub(target).rpc_ping(request, timeout=REQUEST_SECONDS)
    node_id = DHTID.from_bytes(answer.peer.node_id)
    await node.protocol.update_routing_table(node_id, target, responded=True)
    told: Seconds = answer.dht_time
    return told
