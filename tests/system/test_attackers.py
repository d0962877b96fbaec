"""A running peer among strangers who send it anything: real processes, real libp2p.

One peer trains alone; attackers, each a libp2p node of its own, open streams to it and
write what no honest peer writes. Every frame must be refused for its own reason, the peer
must not grow, and training must go on as if nobody had come.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
import uvloop

from p2ptrain.compute.device import arithmetic_class
from p2ptrain.core.agreement import Position
from p2ptrain.data import pin
from p2ptrain.engine import framed
from p2ptrain.errors import LinkError
from p2ptrain.net.identity import Identity
from p2ptrain.net.node import Network, NetworkOptions
from p2ptrain.observe import events as ev
from p2ptrain.observe.sinks import read_entries
from p2ptrain.run import Batch, Cut, Evaluation, Model, Optimizer, RunSpec, digest, to_toml
from p2ptrain.units import Chain, RunId, Slot, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import Gradient, Heartbeat, Hello, Leaving, Welcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

    from p2ptrain.ports import Stream
    from p2ptrain.units import PeerId
    from tests.system.conftest import Program

pytestmark = [pytest.mark.net, pytest.mark.slow, pytest.mark.timeout(120)]

PATIENCE_SECONDS = 15.0  # a busy machine; a bad frame is answered within milliseconds
MOST_GROWTH_BYTES = 64 << 20  # the attacks below declare terabytes; allocators breathe
SILENT_STREAMS = 40  # of the 64 that may stand at the door

SPEC = pin(
    RunSpec(
        name="attacked",
        model=Model(d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=64, context=32),
        cut=Cut(stages=2),
        batch=Batch(sequences=2, microbatches=32),
        optimizer=Optimizer(steps=1_000_000, warmup_steps=1),
        evaluation=Evaluation(microbatches=0),
    )
)
LIMITS = FrameLimits(SPEC)
AT = Position(epoch=0, step=Step(0), chain=Chain(bytes(32)))
GRADIENT = Gradient(at=AT, slot=Slot(0), stage=Stage(0))
DEEP = b"\x82\xa1x" + b"\x91" * 4000 + b"\xc0\xa4type\xa5Hello"


def hello(**changes: Any) -> Hello:
    honest: dict[str, Any] = {
        "protocol": framing.PROTOCOL,
        "run": digest(SPEC),
        "channel": "control",
        "incarnation": 1,
        "arithmetic": arithmetic_class(SPEC, torch.device("cpu"), SPEC.arithmetic.threads),
    }
    return Hello(**(honest | changes))


def changed(frame: bytes, offset: int, value: bytes) -> bytes:
    return frame[:offset] + value + frame[offset + len(value) :]


def framed_as(frame: bytes, body: bytes) -> bytes:
    """The head of ``frame`` around another ``body``, with its checksum in order."""
    head = changed(frame[: framing.HEADER_BYTES], 8, len(body).to_bytes(4, "big"))
    return changed(head, 20, zlib.crc32(body).to_bytes(4, "big")) + body


TALK = framing.encode(Leaving(reason="x" * 20))
STRANGE = {
    "another protocol on the wire": (b"GET / HTTP/1.1\r\nHost: you\r\n\r\n", "magic"),
    "another version of the frame": (changed(framing.encode(hello()), 4, b"\x63"), "protocol 99"),
    "another version in the message": (framing.encode(hello(protocol=2)), "you speak protocol 2"),
    "another run": (framing.encode(hello(run=RunId("0" * 32))), "this peer trains run"),
    "other arithmetic": (framing.encode(hello(arithmetic="abacus")), "you with abacus"),
    "data before control": (framing.encode(hello(channel="data")), "control stream first"),
    "an oversized hello": (changed(TALK, 5, b"\0\0\0\xff\xff\xff\xff"), "at most 4096"),
    "a hello with 10^12 bytes": (
        changed(framing.encode(hello()), 12, (10**12).to_bytes(8, "big")), "payload where none",
    ),
    "no hello first": (TALK, "kind 1"),
    "a welcome first": (framing.encode(Welcome(incarnation=1)), "began a stream with Welcome"),
    "a damaged hello": (changed(framing.encode(hello()), 30, b"!"), "checksum"),
    "a bottomless hello": (framed_as(framing.encode(hello()), DEEP), "nested too deep"),
}  # fmt: skip
CONTROL = {
    "damage": (changed(TALK, len(TALK) - 1, b"!"), "checksum"),
    "an oversized message": (changed(TALK, 8, b"\xff\xff\xff\xff"), "at most 1048576"),
    "10^12 bytes behind it": (changed(TALK, 12, (10**12).to_bytes(8, "big")), "payload where"),
    "a value beyond its bound": (framing.encode(Leaving(reason="x" * 5000)), "Leaving.reason"),
    "another hello": (framing.encode(hello()), "kind 0"),
    "noise": (bytes(range(64)), "magic"),
    "a bottomless message": (framed_as(TALK, DEEP), "nested too deep"),
}


def gradient(payload_bytes: int, *, honest_sum: bool = True) -> bytes:
    frame = b"".join(framing.encode_data(GRADIENT, bytes(LIMITS.payload_bytes(GRADIENT))))
    if not honest_sum:
        return frame[:-1] + b"!"
    return changed(frame, 12, payload_bytes.to_bytes(8, "big"))


DATA = {
    "10^12 elements": (gradient(4 * 10**12), "4000000000000 bytes behind Gradient"),
    "a byte too many": (
        gradient(LIMITS.payload_bytes(GRADIENT) + 1), "bytes behind Gradient",
    ),
    "a damaged payload": (gradient(0, honest_sum=False), "checksum"),
    "a control message": (TALK, "kind 1"),
}  # fmt: skip


class Attacker:
    """A libp2p node that reached the peer at ``address``, and keeps to no rule."""

    def __init__(self, network: Network, victim: PeerId) -> None:
        self._network, self._victim = network, victim
        self._incarnation = 0
        self._over = asyncio.Event()

    async def answer(self, stream: Stream) -> None:
        """Let the victim in: it speaks to those alone to whom it has a stream of its own."""
        await framed.read_hello(stream, LIMITS)
        await stream.send(framing.encode(Welcome(incarnation=self._incarnation)))
        await self._over.wait()

    async def write(self, noise: bytes) -> Stream:
        stream = await self._network.transport.open(self._victim)
        await stream.send(noise)
        return stream

    async def closed(self, stream: Stream) -> None:
        """Until the peer has closed ``stream``; whatever it says before is read."""
        rest = memoryview(bytearray(1))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    await stream.receive_into(rest)
        except LinkError:
            await stream.close()

    @asynccontextmanager
    async def inside(self, channel: str) -> AsyncIterator[Stream]:
        """A stream past the handshake: the peer takes what comes on it for a peer's."""
        self._incarnation += 1
        control = await self._network.transport.open(self._victim)
        await framed.greet(control, hello(incarnation=self._incarnation), LIMITS)
        if channel == "control":
            yield control
            return
        data = await self._network.transport.open(self._victim)
        inside = hello(incarnation=self._incarnation, channel="data")
        await framed.greet(data, inside, LIMITS)
        yield data
        await control.close()


def attack(address: str, plan: Callable[[Attacker], Awaitable[None]]) -> PeerId:
    """Carry out ``plan`` as a node of its own; return who it was."""

    async def main() -> PeerId:
        with Identity.temporary() as identity:
            options = NetworkOptions(initial_peers=(address,))
            async with Network.open(identity, options) as network:
                victim = address.rpartition("/")[2]
                attacker = Attacker(network, victim)  # type: ignore[arg-type]
                await network.transport.listen(attacker.answer)
                await plan(attacker)
                return network.peer

    return run(main())


def run(main: Coroutine[Any, Any, PeerId]) -> PeerId:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def every_attack(eve: Attacker) -> None:
    for noise, _ in STRANGE.values():
        await eve.closed(await eve.write(noise))
    for channel, table in (("control", CONTROL), ("data", DATA)):
        for noise, _ in table.values():
            async with eve.inside(channel) as stream:
                await stream.send(noise)
                await eve.closed(stream)
    for size in (1, framing.HEADER_BYTES - 1, framing.HEADER_BYTES + 10):
        await (await eve.write(framing.encode(hello())[:size])).close()  # cut off: no offence
    async with eve.inside("data") as stream:
        await stream.send(gradient(LIMITS.payload_bytes(GRADIENT))[:-5])
        await stream.close()


async def crowd_the_door(eve: Attacker) -> None:
    """Many streams that never say a word; those inside must not notice."""
    silent = [await eve.write(b"p") for _ in range(SILENT_STREAMS)]
    async with eve.inside("control") as stream:
        await stream.send(framing.encode(Heartbeat(count=1, lag_seconds=0.0, seats=())))
        await stream.close()
    for stream in silent:
        await stream.close()


def refusals(path: Path, peer: PeerId) -> list[str]:
    kinds = (ev.FrameRefused, ev.LinkRefused)
    events = [entry.event for entry in read_entries(path)]
    return [event.reason for event in events if isinstance(event, kinds) and event.peer == peer]


def steps(output: str) -> int:
    return int(re.findall(r" step (\d+) stage 1", output)[-1])


def test_whatever_strangers_send_is_refused_and_training_goes_on(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(SPEC))
    peer = start(
        "peer", "--new-swarm", "--run", "run.toml", "--device", "cpu", "--no-relay",
        "--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--events", "events.jsonl",
    )  # fmt: skip
    address = peer.wait_for(r"--initial-peers (\S+)")[1]
    peer.wait_for(r"step 5 stage 1")
    process = psutil.Process(peer.p2pd().ppid())
    size_bytes, files = process.memory_info().rss, process.num_fds()

    eve = attack(address, every_attack)
    expected = [reason for table in (STRANGE, CONTROL, DATA) for _, reason in table.values()]
    said = refusals(tmp_path / "events.jsonl", eve)
    assert len(said) == len(expected), said
    for reason, line in zip(expected, said, strict=True):
        assert reason in line

    attack(address, crowd_the_door)
    before = steps(peer.output)
    peer.wait_until(lambda output: steps(output) > before + 3)
    assert process.memory_info().rss < size_bytes + MOST_GROWTH_BYTES
    assert process.num_fds() <= files + 4
    peer.ctrl_c()
    assert peer.ends() == 130
    assert "Traceback" not in peer.output
