"""One peer's network: identity, p2pd, streams and directory, alive until the ``with`` ends.

    async with Network.open(identity, NetworkOptions(initial_peers=...)) as network:
        network.transport, network.directory, network.signer   # the engine's ports

Intuition: p2pd lives and dies below; the transport and the directory stay the same objects
above. One supervisor starts p2pd, attaches both to it, waits for its death, starts the next.

Invariants: a restarted p2pd has the same identity and ports; what the user can mend is
raised by ``open`` before the body runs (malformed or taken address: UserError; no bootstrap
answers: BootstrapError, naming each address and its cause); after the ``with`` no task,
process, socket or file of the network is left; an error of the body or of a stream handler
comes out as itself, not in a group.

Importing this module imports hivemind and with it torch: 3 to 5 s. Do it inside a command.

Refused: a class with start and stop: between the two nobody owns the tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2ptrain.errors import BootstrapError, InternalError, LinkError, P2PTrainError
from p2ptrain.net.addresses import PeerAddress, parse_peer_addresses
from p2ptrain.net.daemon import Daemon
from p2ptrain.net.dhtnode import InterruptibleP2P
from p2ptrain.net.directory import DhtDirectory
from p2ptrain.net.emulation import EmulatedTransport
from p2ptrain.net.listening import DaemonOptions, check_ports_free, with_ports
from p2ptrain.net.partition import Cut, CutTransport
from p2ptrain.net.peerstore import load_peers, save_peers
from p2ptrain.net.scratch import scratch_folder
from p2ptrain.net.transport import Libp2pTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from p2ptrain.net.emulation import LinkShape
    from p2ptrain.net.identity import Ed25519Signer, Identity
    from p2ptrain.ports import Transport
    from p2ptrain.units import PeerId

log = logging.getLogger(__name__)

# A p2pd that dies this often in a row will not get better; waits double from the first.
RESTARTS: Final = 8
FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 10.0
HEALTHY_SECONDS: Final = 60.0  # a life this long clears the count
# A peer alone looks for the others again this often, and saves whom it knows.
UPKEEP_SECONDS: Final = 15.0
REJOIN_PEERS: Final = 8  # remembered peers tried per upkeep; one living suffices
# hivemind ends its own bare tasks within a few turns of the loop once requests fail.
FAREWELL_TURNS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """``initial_peers``: multiaddresses to join through; empty starts a swarm of one's own.

    ``peerstore``: a file that remembers peers over restarts. Those are tried when no initial
    peer answers; who gives none wants none of an earlier swarm.
    ``link``: emulate such a line for everything that streams send. ``cut``: a file that says
    whom a played partition keeps from us (see partition).
    """

    daemon: DaemonOptions = field(default_factory=DaemonOptions)
    initial_peers: tuple[str, ...] = ()
    peerstore: Path | None = None
    link: LinkShape | None = None
    cut: Path | None = None


class Network:
    """What ``open`` yields. Everything here may be used until its ``with`` ends."""

    def __init__(
        self, identity: Identity, options: NetworkOptions, tasks: asyncio.TaskGroup, folder: Path
    ) -> None:
        """Use ``Network.open``."""
        self.signer: Ed25519Signer = identity.signer
        self._streams = Libp2pTransport(identity.peer, tasks)
        self._emulation = (
            None if options.link is None else EmulatedTransport(self._streams, options.link, tasks)
        )
        self.transport: Transport = self._emulation or self._streams
        self._cut = None if options.cut is None else Cut(options.cut)
        if self._cut is not None:
            self.transport = CutTransport(self.transport, self._cut)
        self.directory = DhtDirectory(identity.signer, tasks, learn=self._streams.learn)
        self._initial_peers = parse_peer_addresses(options.initial_peers)
        self._options = options
        self._daemon_options = options.daemon
        self._identity_path = identity.path
        self._folder = folder
        self._daemon: Daemon | None = None

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self.signer.peer

    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses to share, ending in ``/p2p/<peer id>``."""
        return self.transport.addresses()

    def known_addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where ``peer`` was last said to be (by itself, or by libp2p), or nothing."""
        return tuple(f"{place}/p2p/{peer}" for place in self._streams.known().get(peer, ()))

    async def meet(self, addresses: Iterable[PeerAddress]) -> dict[PeerAddress, str]:
        """Dial ``addresses`` all at once, then meet the directories there.

        Returns why some failed, by address: empty when all answered.
        """
        failures: dict[PeerAddress, str] = {}

        async def connect(address: PeerAddress) -> None:
            try:
                await self._streams.connect(address.peer, [address.place])
            except LinkError as error:
                failures[address] = error.reason

        asked = tuple(addresses)
        async with asyncio.TaskGroup() as dials:
            for address in asked:
                dials.create_task(connect(address))
        reached = [address for address in asked if address not in failures]
        unmet = await self.directory.join(tuple(dict.fromkeys(a.peer for a in reached)))
        return failures | {a: unmet[a.peer] for a in reached if a.peer in unmet}

    @property
    def daemon_pid(self) -> int | None:
        """Process id of p2pd (None while it restarts): for fault injection and diagnosis."""
        return None if self._daemon is None else self._daemon.pid

    @classmethod
    @asynccontextmanager
    async def open(
        cls, identity: Identity, options: NetworkOptions | None = None
    ) -> AsyncIterator[Network]:
        """Join, yield, leave.

        Raises:
            UserError: a malformed or taken address; p2pd refused its options.
            BootstrapError: none of the initial peers answers.
            InternalError: p2pd cannot be run, or keeps dying.
        """
        options = options or NetworkOptions()
        check_ports_free(options.daemon)
        try:
            with scratch_folder() as folder:
                async with asyncio.TaskGroup() as tasks:
                    network = cls(identity, options, tasks, folder)
                    joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    supervisor = tasks.create_task(network._supervise(joined))
                    try:
                        await joined
                        yield network
                    finally:
                        supervisor.cancel()
                        network._close()
                        await asyncio.wait({supervisor})
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise

    def _close(self) -> None:
        self._streams.close()
        if self._emulation is not None:
            self._emulation.close()
        self.directory.detach()

    # --- lives of p2pd ---------------------------------------------------------------

    async def _supervise(self, joined: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            born = loop.time()
            try:
                reason = await self._live(joined)
            except (P2PTrainError, OSError) as error:
                if not joined.done():
                    raise
                reason = str(error)
            deaths = 1 if loop.time() - born > HEALTHY_SECONDS else deaths + 1
            if deaths > RESTARTS:
                raise InternalError(f"p2pd died {deaths} times in a row, at last: {reason}")
            log.warning("p2pd died (%s); it is started again", reason)
            await asyncio.sleep(min(FIRST_WAIT_SECONDS * 2 ** (deaths - 1), LONGEST_WAIT_SECONDS))

    async def _live(self, joined: asyncio.Future[None]) -> str:
        """One life of p2pd, from its start to its death; return what it died of."""
        daemon = await Daemon.start(
            self._daemon_options,
            identity=self._identity_path,
            folder=self._folder,
            p2p_class=InterruptibleP2P,
        )
        self._daemon = daemon
        daemon.p2p.cut = self._cut
        try:
            async with asyncio.TaskGroup() as life:
                watch = life.create_task(daemon.watch())
                others = [life.create_task(daemon.probe())]
                if self._cut is not None:
                    others.append(life.create_task(self._cut.watch()))
                places = await daemon.control.identify()
                self._daemon_options = with_ports(self._daemon_options, places)
                await self.directory.attach(daemon.p2p, places)
                self._streams.attach(daemon.control, places)
                others.append(life.create_task(self._streams.serve(daemon.control)))
                await self._join(strict=not joined.done())
                if not joined.done():
                    joined.set_result(None)
                others.append(life.create_task(self._upkeep(daemon)))
                reason = await watch
                for task in others:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self._daemon = None
            self._streams.detach()
            self.directory.detach()
            await daemon.stop()
            for _ in range(FAREWELL_TURNS):
                await asyncio.sleep(0)
        return reason

    async def _join(self, *, strict: bool) -> None:
        """Meet the initial peers, or else those remembered from before.

        Raises:
            BootstrapError: ``strict``, and nobody answers.
        """
        remembered = self._streams.known()
        if self._initial_peers:
            remembered = load_peers(self._options.peerstore) | remembered
        for peer, places in remembered.items():
            self._streams.learn(peer, places)
        failures = await self.meet(self._initial_peers)
        if not self.directory.neighbours():
            await self._rejoin(remembered)
        if not failures:
            return
        causes = "; ".join(f"{address} ({cause})" for address, cause in failures.items())
        if strict and not self.directory.neighbours():
            raise BootstrapError(f"no initial peer answers: {causes}")
        log.warning("initial peers that do not answer: %s", causes)

    async def _upkeep(self, daemon: Daemon) -> None:
        """Look for others again when alone, and remember who is there."""
        while True:
            await asyncio.sleep(UPKEEP_SECONDS)
            with contextlib.suppress(LinkError):
                for peer, place in sorted((await daemon.control.peers()).items()):
                    if peer not in self._streams.known():
                        self._streams.learn(peer, [place])
            initial = {address.peer: (address.place,) for address in self._initial_peers}
            if not self.directory.neighbours():
                await self._rejoin(initial | self._streams.known())
            save_peers(self._options.peerstore, self._streams.known())

    async def _rejoin(self, known: dict[PeerId, tuple[str, ...]]) -> None:
        """Try peers that we remember, most recent first, until one directory answers."""
        for peer, places in list(known.items())[: -REJOIN_PEERS - 1 : -1]:
            try:
                await self._streams.connect(peer, places)
            except LinkError as error:
                log.debug("rejoin by %s failed: %s", peer, error)
                continue
            if not await self.directory.join((peer,)):
                return
