"""The address book: a directory node with a lasting address, and nothing else.

Intuition: newcomers need one address that answers. A bootstrap keeps other peers' records
like any peer, but serves no stage and takes no streams; training goes on when it dies, and
any peer's address serves as well as its own.

Invariants: what it prints first can be copied as it is; a taken port, a bad address or a
foreign key ends it with one line before it serves; it leaves no process behind.

Refused: a registry of runs, accounts or admission: then it would be a coordinator.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import uvloop

from p2ptrain.net.identity import Identity
from p2ptrain.net.listening import DaemonOptions
from p2ptrain.net.node import Network, NetworkOptions
from p2ptrain.observe.voice import Voice

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEFAULT_PORT: Final = 31337  # hivemind's and Petals' tutorials use it; firewalls know it
REPORT_SECONDS: Final = 15.0  # how soon a change in the number of peers is told
EXIT_INTERRUPTED: Final = 130
EXIT_UNHEARD: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapOptions:
    """``identity_path``: the key; without one the address changes at every start.

    ``host_maddrs``: where to listen; empty means ``port`` on all IPv4 interfaces.
    ``initial_peers``: other bootstraps of the same swarm. ``peerstore``: see NetworkOptions.
    """

    port: int = DEFAULT_PORT
    host_maddrs: tuple[str, ...] = ()
    announce_maddrs: tuple[str, ...] = ()
    identity_path: Path | None = None
    initial_peers: tuple[str, ...] = ()
    peerstore: Path | None = None
    use_relay: bool = True

    def network(self) -> NetworkOptions:
        """The network that these options describe.

        Raises:
            UserError: a malformed address.
        """
        hosts = self.host_maddrs or (f"/ip4/0.0.0.0/tcp/{self.port}",)
        return NetworkOptions(
            daemon=DaemonOptions(
                host_maddrs=hosts, announce_maddrs=self.announce_maddrs, use_relay=self.use_relay
            ),
            initial_peers=self.initial_peers,
            peerstore=self.peerstore,
        )


async def serve(options: BootstrapOptions, *, say: Callable[[str], None]) -> None:
    """Serve until cancelled. ``say`` gets the lines for the person who started it.

    Raises:
        UserError: an address, the port or the key cannot be used; the line says why.
        BootstrapError: initial peers were given and none answers.
    """
    path = options.identity_path
    with Identity.temporary() if path is None else Identity.open(path) as identity:
        async with Network.open(identity, options.network()) as network:
            for line in welcome(network.addresses(), lasting=path is not None):
                say(line)
            await _report(network, say)


def run(options: BootstrapOptions, *, say: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGHUP (returns 0) or SIGINT (130); a second one leaves at once.

    Nobody reading what we say any more ends it too (returns 1).

    Raises:
        UserError: as ``serve``.
        BootstrapError: as ``serve``.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signal(options, Voice(say)))


def welcome(addresses: tuple[str, ...], *, lasting: bool) -> tuple[str, ...]:
    """The first lines: who we are, and what to copy; addresses for other machines first."""
    ordered = sorted(addresses, key=_is_local)
    lines = [
        f"peer id: {ordered[0].rpartition('/')[2]}",
        "join with one of these (the first that the other machine can reach):",
        *(f"  --initial-peers {address}" for address in ordered),
    ]
    if not lasting:
        lines.append("this address ends with this program; --identity-path FILE makes it last")
    return tuple(lines)


def _is_local(address: str) -> bool:
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


async def _report(network: Network, say: Callable[[str], None]) -> None:
    """Tell how many peers are known whenever that changes; never returns."""
    told = 0
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        known = network.directory.neighbours()
        if known != told:
            say(f"peers known: {known}")
            told = known


async def _until_signal(options: BootstrapOptions, voice: Voice) -> int:
    received: list[signal.Signals] = []
    task = asyncio.current_task()
    assert task is not None

    def stop(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()  # the second one interrupts also the farewell

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, stop, number)
    voice.when_unheard(lambda: stop(signal.SIGPIPE))
    try:
        await serve(options, say=voice.say)
    except asyncio.CancelledError:
        if not received:
            raise
    return {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGPIPE: EXIT_UNHEARD}.get(received[0], 0)
