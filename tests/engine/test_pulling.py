"""A puller waits no longer than its deadlines, and believes nothing unasked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from p2ptrain.core.merkle import leaf_digest, merkle_root
from p2ptrain.engine.pulling import CHUNK_SECONDS, MANIFEST_SECONDS, WINDOW, Puller
from p2ptrain.errors import LinkError
from p2ptrain.observe.events import AnyEvent, FrameRefused
from p2ptrain.run import RunSpec, corpus_root
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire.limits import CHUNK_BYTES, CORPUS_CHUNK_BYTES, FrameLimits
from p2ptrain.wire.messages import (
    Chunk,
    CorpusChunk,
    NoSuch,
    StageManifest,
    WantChunk,
    WantCorpus,
    WantManifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.wire.messages import Control

BOB, EVE, STAGE = PeerId("bob"), PeerId("eve"), Stage(1)


class Links:
    """Answers as ``answer`` says."""

    def __init__(self, answer: Callable[[PeerId, Control], None]) -> None:
        self.limits = FrameLimits(RunSpec())
        self.asked: list[Control] = []
        self.closed: list[PeerId] = []
        self._answer = answer

    def send(self, peer: PeerId, message: Control) -> None:
        self.asked.append(message)
        self._answer(peer, message)

    def close_peer(self, peer: PeerId, _reason: str) -> None:
        self.closed.append(peer)


def small(blob: bytes) -> StageManifest:
    leaves = (leaf_digest(blob),)
    return StageManifest(
        stage=STAGE,
        available=True,
        epoch=0,
        version=Step(3),
        chain=Chain(bytes(32)),
        size_bytes=len(blob),
        chunk_bytes=CHUNK_BYTES,
        leaves=leaves,
        root=merkle_root(leaves),
        members=(),
    )


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_manifest_that_never_comes_costs_its_deadline() -> None:
    async def main() -> None:
        puller = Puller(Links(lambda _peer, _message: None), lambda _event: None)  # type: ignore[arg-type]  # what it uses
        with pytest.raises(LinkError, match="bob: no answer within 30 s; eve: no answer"):
            await puller.pull(STAGE, [BOB, EVE])
        assert now() == 2 * MANIFEST_SECONDS

    run(main())


def test_a_chunk_that_never_comes_costs_its_deadline() -> None:
    async def main() -> None:
        def answer(peer: PeerId, message: Control) -> None:
            if isinstance(message, WantManifest):
                puller.heard(peer, small(b"state"), None)

        links = Links(answer)
        puller = Puller(links, lambda _event: None)  # type: ignore[arg-type]  # what it uses
        with pytest.raises(LinkError, match="no answer within 30 s"):
            await puller.pull(STAGE, [BOB])
        assert now() == CHUNK_SECONDS
        late = Chunk(stage=STAGE, root=small(b"state").root, index=0)
        puller.heard(BOB, late, memoryview(b"state"))  # nobody waits: nothing happens

    run(main())


def test_answers_of_others_and_unasked_ones_are_not_believed() -> None:
    async def main() -> None:
        events: list[AnyEvent] = []

        def answer(peer: PeerId, message: Control) -> None:
            if isinstance(message, WantManifest):
                puller.heard(EVE, small(b"forged"), None)
                puller.heard(peer, small(b"state"), None)
                puller.heard(peer, small(b"too late"), None)
            elif isinstance(message, WantChunk):
                chunk = Chunk(stage=STAGE, root=message.root, index=0)
                puller.heard(EVE, chunk, memoryview(b"forged"))
                other = Chunk(stage=STAGE, root=Digest(bytes(32)), index=0)
                puller.heard(peer, other, memoryview(b"forged"))
                puller.heard(EVE, NoSuch(what="chunk", stage=STAGE, reason="forged"), None)
                puller.heard(peer, chunk, memoryview(b"state"))

        links = Links(answer)
        puller = Puller(links, events.append)  # type: ignore[arg-type]  # what it uses
        manifest, blob = await puller.pull(STAGE, [BOB])
        assert bytes(blob) == b"state"
        assert manifest == small(b"state")
        assert (events, links.closed) == ([], [])

    run(main())


def test_a_broken_link_fails_the_whole_window_at_once() -> None:
    async def main() -> None:
        size = 10 * CORPUS_CHUNK_BYTES
        links = Links(lambda _peer, _message: None)
        puller = Puller(links, lambda _event: None)  # type: ignore[arg-type]  # what it uses
        asyncio.get_running_loop().call_later(1.0, puller.lost, BOB)
        with pytest.raises(LinkError, match="the link broke"):
            await puller.pull_corpus([BOB], size, "root")
        assert len(links.asked) == WINDOW
        assert now() == 1.0

    run(main())


def test_a_wrong_corpus_names_its_donor() -> None:
    async def main() -> None:
        events: list[AnyEvent] = []

        def answer(peer: PeerId, message: Control) -> None:
            assert isinstance(message, WantCorpus)
            puller.heard(peer, CorpusChunk(offset=message.offset), memoryview(b"abc"))

        links = Links(answer)
        puller = Puller(links, events.append)  # type: ignore[arg-type]  # what it uses
        assert await puller.pull_corpus([BOB], 3, corpus_root(b"abc")) == b"abc"
        for size, root in ((3, corpus_root(b"abd")), (4, corpus_root(b"abcd"))):
            with pytest.raises(LinkError, match="bob: gave"):
                await puller.pull_corpus([BOB], size, root)
        assert [event.peer for event in events if isinstance(event, FrameRefused)] == [BOB, BOB]
        assert links.closed == [BOB, BOB]

    run(main())
