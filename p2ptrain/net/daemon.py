"""One life of p2pd, the libp2p daemon: started, noticed when it dies or hangs, ended.

Intuition: p2pd is a child process that does libp2p for us over unix sockets. It is the one
part that we cannot read or mend, so nothing here trusts it: every request has a deadline,
its output is read to the end, and its death is an ordinary event for the owner (the
Network), who starts the next one.

Invariants: a Daemon that failed to start leaves no process; ``stop`` leaves none; p2pd
exits by itself within a second when this process dies by kill -9 (it notices that its
persistent connection is gone, or after thirty idle seconds if it never had one; tested).
Its sockets lie in a folder of their own, which the owner removes.

Refused: ``P2P.create``: it hides the child, keeps ``is_alive`` true after the child's
death, fixes its sockets in /tmp, and swallows the reason of a failed start. We start the
binary and attach with ``P2P.replicate``, which is also public.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import os
import re
import secrets
from typing import TYPE_CHECKING, Final

from p2ptrain.errors import InternalError, LinkError, UserError
from p2ptrain.net.binding import P2P, Multiaddr, P2PDaemonError
from p2ptrain.net.control import Control
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from pathlib import Path

    from p2ptrain.net.listening import DaemonOptions

log = logging.getLogger(__name__)

# A loaded 2-core machine starts p2pd in up to 16 s; hivemind's limit of 15 s is the error
# that its users report most.
STARTUP_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0  # p2pd exits within 0.1 s of SIGTERM; then it is killed
OUTPUT_LINES: Final = 20  # kept for the reason of a failed start
# A p2pd that answers no local request twice in a row, ten seconds each, hangs: a frozen one
# that wakes after ten seconds (a laptop's lid, our own chaos plan) is left alone.
PROBE_SECONDS: Final = 10.0
MISSED_PROBES: Final = 2


class Daemon:
    """A running p2pd. Make it with ``start``; run ``watch`` in a task; end it with ``stop``."""

    def __init__(self, process: asyncio.subprocess.Process, control: Control, p2p: P2P) -> None:
        self._process = process
        self.control = control
        self.p2p = p2p
        self.peer = PeerId(str(p2p.peer_id))

    @classmethod
    async def start(
        cls, options: DaemonOptions, *, identity: Path, folder: Path, p2p_class: type[P2P] = P2P
    ) -> Daemon:
        """Start p2pd with the key in ``identity`` and its sockets in ``folder``.

        Cancelled or failed, no process is left.

        Raises:
            UserError: p2pd refused the options or the identity; the reason is p2pd's.
            InternalError: p2pd cannot be run, or did not come up in time.
        """
        name = secrets.token_hex(4)  # a restart must not meet its predecessor's sockets
        socket = folder / f"{name}.p2pd"
        binary = importlib.resources.files("hivemind.hivemind_cli") / "p2pd"
        try:
            process = await asyncio.create_subprocess_exec(
                str(binary),
                *options.arguments(identity=identity, control=socket),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={"GOLOG_LOG_LEVEL": "error"} | dict(os.environ),
                # A terminal's Ctrl-C goes to a whole process group: p2pd must outlive our drain.
                # uvloop has no process_group=; a session of its own would hide it from those
                # who count what we leave behind.
                preexec_fn=os.setpgrp,
            )
        except OSError as error:
            raise InternalError(f"p2pd cannot be run: {error}; reinstall hivemind") from error
        try:
            async with asyncio.timeout(STARTUP_SECONDS):
                await _until_ready(process)
                p2p = await p2p_class.replicate(Multiaddr(f"/unix{socket}"))
        except TimeoutError as error:
            await _end(process)
            raise InternalError(f"p2pd did not come up in {STARTUP_SECONDS:.0f} s") from error
        except (P2PDaemonError, OSError, EOFError) as error:
            await _end(process)
            raise InternalError(f"p2pd went away while it started: {error!r}") from error
        except BaseException:
            await _end(process)
            raise
        control = Control(path=socket, listen_path=folder / f"{name}.peer")
        return cls(process, control, p2p)

    @property
    def pid(self) -> int:
        """Process id of p2pd."""
        return self._process.pid

    async def watch(self) -> str:
        """Read p2pd's output until it exits; return its last words."""
        assert self._process.stdout is not None
        last = ""
        async for line in self._process.stdout:
            last = line.decode(errors="replace").strip()
            log.debug("p2pd: %s", last)
        return f"exit code {await self._process.wait()} {last}".strip()

    async def probe(self) -> None:
        """Kill p2pd when it stops answering, for ever; ``watch`` then returns."""
        missed = 0
        while missed < MISSED_PROBES:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await self.control.identify(deadline=PROBE_SECONDS)
            except LinkError:
                missed += 1
            else:
                missed = 0
        log.warning("p2pd has not answered for %.0f s: killed", MISSED_PROBES * PROBE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """End p2pd and everything that speaks to it; may be called twice."""
        await self.p2p.shutdown()
        await _end(self._process)


async def _until_ready(process: asyncio.subprocess.Process) -> None:
    """Wait for p2pd's line with its peer id; a p2pd that exits first has said why."""
    assert process.stdout is not None
    said: list[str] = []
    async for line in process.stdout:
        said.append(line.decode(errors="replace").strip())
        if said[-1].startswith("Peer ID:"):
            return
        del said[:-OUTPUT_LINES]
    code = await process.wait()
    reason = re.sub(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d ", "", said[-1]) if said else f"exit {code}"
    raise UserError(f"p2pd did not start: {reason}; check --host-maddrs and --announce-maddrs")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate, wait, kill, wait: afterwards the process is gone, also if we are cancelled."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()  # frozen or stuck: SIGKILL ends also a stopped process
        await process.wait()
    except asyncio.CancelledError:
        process.kill()
        raise
