"""Snapshots and the corpus move verified, from several donors or the next."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.merkle import chunk_size
from p2ptrain.engine.links import Links
from p2ptrain.engine.serving import MOST_WAITING, SENDING
from p2ptrain.engine.transfers import Snapshots
from p2ptrain.errors import LinkError
from p2ptrain.observe import events as ev
from p2ptrain.run import Cut, Model, RunSpec, corpus_root
from p2ptrain.sim.loop import run
from p2ptrain.sim.network import SimNetwork
from p2ptrain.units import Chain, Digest, PeerId, RunId, Stage, Step
from p2ptrain.wire.limits import CORPUS_BYTES, FrameLimits
from p2ptrain.wire.messages import (
    Chunk,
    Heartbeat,
    Hello,
    Leaving,
    NoSuch,
    PullSum,
    StageManifest,
    WantChunk,
    WantManifest,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from p2ptrain.wire.messages import Control, Data

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
SPEC = RunSpec(
    model=Model(d_model=256, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=512, context=16),
    cut=Cut(stages=2),
)
LIMITS = FrameLimits(SPEC)
STAGE = Stage(1)
MEMBERS = ((ANN,), (BOB, EVE))
BLOB = bytes(range(256)) * 3000 + b"the rest"
CHUNKS = -(-len(BLOB) // chunk_size(len(BLOB)))


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


class Corpus:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def tokens(self, work: object) -> bytes:
        raise NotImplementedError

    def read(self, offset: int, size: int) -> bytes:
        return self.blob[offset : offset + size]


class Peer:
    """Links whose every message goes to the transfers."""

    def __init__(self, network: SimNetwork, peer: PeerId) -> None:
        self.peer = peer
        self.events: list[ev.AnyEvent] = []
        self.deaf = False
        self.spoiled: PeerId | None = None  # whose chunks arrive with a wrong byte
        self.corrupt: Callable[[Control | Data], Control | Data] = lambda message: message
        self.links = Links(
            network.transport(peer),
            Hello(protocol=1, run=RunId("run"), channel="control", incarnation=1, arithmetic=""),
            LIMITS,
            heartbeat=lambda: Heartbeat(count=0, lag_seconds=0.0, seats=()),
            emit=self.events.append,
        )
        self.snapshots = Snapshots(self.links, self.events.append)
        self.links.on_control = self.on_control
        self.links.on_data = self.on_data
        self.links.on_down = lambda peer, _reason: self.snapshots.lost(peer)

    def on_control(self, peer: PeerId, message: Control) -> None:
        if not self.deaf:
            self.snapshots.handle(peer, message)

    def on_data(self, peer: PeerId, message: Data, payload: memoryview) -> None:
        if isinstance(message, Chunk) and self.corrupt is not None:
            changed = self.corrupt(message)
            assert isinstance(changed, Chunk)
            message = changed
            if peer == self.spoiled:
                payload = memoryview(bytes(payload[:-1]) + b"!")
        self.snapshots.handle(peer, message, payload)

    def chunks_sent(self) -> int:
        return sum(isinstance(e, ev.FrameSent) and e.what == "chunk" for e in self.events)

    def alarms(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, ev.Alarm)]

    def refused(self) -> list[tuple[PeerId, str]]:
        return [(e.peer, e.reason) for e in self.events if isinstance(e, ev.DonorRefused)]

    def blamed(self) -> list[tuple[PeerId, str]]:
        return [(e.peer, e.reason) for e in self.events if isinstance(e, ev.FrameRefused)]


@contextlib.asynccontextmanager
async def three() -> AsyncIterator[tuple[Peer, Peer, Peer]]:
    async with SimNetwork(seed=1) as network:
        peers = Peer(network, ANN), Peer(network, BOB), Peer(network, EVE)
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(peer.links.run()) for peer in peers]
            await asyncio.sleep(0)
            yield peers
            for each in runs:
                each.cancel()


def virtual(main: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    def test() -> None:
        run(main(), ceiling_seconds=1000.0)

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test


@virtual
async def test_a_snapshot_arrives_whole_and_verified_from_both_owners() -> None:
    async with three() as (ann, bob, eve):
        for donor in (bob, eve):
            await donor.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
        pulled = await ann.snapshots.pull(STAGE, [BOB, EVE], version=Step(7))
        assert bytes(pulled.blob) == BLOB
        assert pulled.at == at(7)
        assert pulled.members == MEMBERS
        assert pulled.sources == (BOB, EVE)
        assert bob.chunks_sent() + eve.chunks_sent() == CHUNKS
        assert min(bob.chunks_sent(), eve.chunks_sent()) > 1
        assert ann.alarms() == []


@virtual
async def test_one_owner_is_enough_where_there_is_one_and_the_log_says_so() -> None:
    async with three() as (ann, bob, _):
        await bob.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
        pulled = await ann.snapshots.pull(STAGE, [BOB], version=Step(7))
        assert bytes(pulled.blob) == BLOB
        assert ann.alarms() == ["stage 1: only bob vouches for the state of 7"]


@virtual
async def test_the_first_snapshot_from_the_wanted_step_on_is_told() -> None:
    async with three() as (ann, bob, _):
        for step in (2, 4, 6):
            await bob.snapshots.offer(STAGE, at(step), MEMBERS, bytes((step,)) * 10)
        for wanted, given in ((3, 4), (4, 4), (5, 6)):
            pulled = await ann.snapshots.pull(STAGE, [BOB], version=Step(wanted))
            assert (pulled.at.step, bytes(pulled.blob)) == (given, bytes((given,)) * 10)
        with pytest.raises(LinkError, match="holds no state"):
            await ann.snapshots.pull(STAGE, [BOB], version=Step(7))
        assert bob.snapshots.holds(STAGE, Step(6))
        assert not bob.snapshots.holds(STAGE, Step(7))


@virtual
async def test_the_other_donor_takes_over_where_the_first_one_died() -> None:
    async with three() as (ann, bob, eve):
        for donor in (bob, eve):
            await donor.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
        seen = 0

        def hang_up_after_one(message: Control | Data) -> Control | Data:
            nonlocal seen
            seen += 1
            if seen == 3:
                ann.links.close_peer(BOB, "as if it had died")
            return message

        ann.corrupt = hang_up_after_one
        pulled = await ann.snapshots.pull(STAGE, [BOB, EVE], version=Step(7))
        assert bytes(pulled.blob) == BLOB
        assert eve.chunks_sent() < CHUNKS  # what had been verified was kept
        assert ann.blamed() == []
        assert ann.refused() == [(BOB, "the link broke")]


@virtual
async def test_a_donor_that_sends_wrong_bytes_is_named_and_left() -> None:
    async with three() as (ann, bob, eve):
        for donor in (bob, eve):
            await donor.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
        ann.spoiled = BOB
        pulled = await ann.snapshots.pull(STAGE, [BOB, EVE], version=Step(7))
        assert bytes(pulled.blob) == BLOB
        assert pulled.sources == (EVE,)
        ((who, reason),) = ann.blamed()
        assert who == BOB
        assert "does not match its leaf" in reason
        assert BOB not in ann.links.peers()
        with pytest.raises(LinkError, match="bob: chunk"):
            await ann.snapshots.pull(STAGE, [BOB], version=Step(7))


@pytest.mark.parametrize(
    "change",
    [
        {"root": Digest(bytes(32))},
        {"size_bytes": 10**12},
        {"size_bytes": 0},
        {"leaves": ()},
        {"chunk_bytes": 5},
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    async def main() -> None:
        async with three() as (ann, bob, _):
            await bob.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
            forward = ann.on_control

            def forge(peer: PeerId, message: Control) -> None:
                if isinstance(message, StageManifest):
                    message = msgspec.structs.replace(message, **change)
                forward(peer, message)

            ann.links.on_control = forge
            with pytest.raises(LinkError, match="does not fit itself"):
                await ann.snapshots.pull(STAGE, [BOB], version=Step(7))
            assert [peer for peer, _ in ann.blamed()] == [BOB]

    run(main(), ceiling_seconds=1000.0)


@virtual
async def test_a_silent_donor_costs_a_deadline_and_no_more() -> None:
    async with three() as (ann, bob, eve):
        bob.deaf = True
        await eve.snapshots.offer(STAGE, at(1), MEMBERS, b"state")
        began = asyncio.get_running_loop().time()
        pulled = await ann.snapshots.pull(STAGE, [BOB, EVE], version=Step(1))
        assert bytes(pulled.blob) == b"state"
        assert 30.0 <= asyncio.get_running_loop().time() - began < 32.0


@virtual
async def test_nobody_to_ask() -> None:
    async with three() as (ann, _, __):
        with pytest.raises(LinkError, match="nobody to take it from"):
            await ann.snapshots.pull(STAGE, [], version=Step(0))


@virtual
async def test_a_cancelled_pull_leaves_nothing_behind() -> None:
    async with three() as (ann, bob, _):
        await bob.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ann.snapshots.pull(STAGE, [BOB], version=Step(7))
        pulled = await ann.snapshots.pull(STAGE, [BOB], version=Step(7))
        assert bytes(pulled.blob) == BLOB


@virtual
async def test_more_joiners_than_may_wait_are_told_to_come_back() -> None:
    async with three() as (ann, bob, _):
        refused: list[Control] = []
        ann.links.on_control = lambda _peer, message: refused.append(message)
        ann.links.on_data = lambda _peer, _message, _payload: None
        await bob.snapshots.offer(STAGE, at(7), MEMBERS, BLOB)
        bob.snapshots.handle(ANN, WantManifest(stage=STAGE, version=Step(7)))
        await asyncio.sleep(1.0)
        (manifest,) = [each for each in refused if isinstance(each, StageManifest)]
        for _ in range(300):
            bob.snapshots.handle(ANN, WantChunk(stage=STAGE, root=manifest.root, index=2))
        await asyncio.sleep(30.0)
        told = [each for each in refused if isinstance(each, NoSuch)]
        assert len(told) == 300 - MOST_WAITING - SENDING
        assert "too many" in told[0].reason
        assert bob.chunks_sent() == MOST_WAITING + SENDING


@virtual
async def test_the_corpus_is_pulled_and_verified() -> None:
    async with three() as (ann, bob, eve):
        corpus = bytes(range(251)) * 20_000
        root = corpus_root(corpus)
        bob.snapshots.offer_corpus(Corpus(corpus[:-1] + b"!"))
        with pytest.raises(LinkError, match="does not hold"):
            await ann.snapshots.pull_corpus([EVE], len(corpus), root)
        with pytest.raises(LinkError, match="another corpus"):
            await ann.snapshots.pull_corpus([BOB], len(corpus), root)
        assert ann.blamed() == [(BOB, "gave another corpus than the run pins")]
        eve.snapshots.offer_corpus(Corpus(corpus))
        assert await ann.snapshots.pull_corpus([BOB, EVE], len(corpus), root) == corpus
        eve.snapshots.offer_corpus(Corpus(corpus[: len(corpus) // 2]))
        with pytest.raises(LinkError, match="instead of"):
            await ann.snapshots.pull_corpus([EVE], len(corpus), root)
        with pytest.raises(LinkError, match="--data"):
            await ann.snapshots.pull_corpus([EVE], CORPUS_BYTES + 1, root)


@virtual
async def test_other_messages_are_left_to_others() -> None:
    async with three() as (ann, _, __):
        assert not ann.snapshots.handle(BOB, Leaving(reason="x"))
        assert not ann.snapshots.handle(BOB, PullSum(at=at(0), stage=STAGE))
        assert not ann.snapshots.handle(BOB, NoSuch(what="sum", stage=STAGE, reason="x"))
        assert ann.snapshots.handle(BOB, NoSuch(what="chunk", stage=STAGE, reason="late"))
