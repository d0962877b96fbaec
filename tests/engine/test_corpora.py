"""The corpus comes piece after piece; a broken link is noticed at once, a wrong one named."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from p2ptrain.engine.corpora import PIECE_SECONDS, WINDOW, CorpusPuller
from p2ptrain.errors import LinkError
from p2ptrain.observe.events import AnyEvent, FrameRefused
from p2ptrain.run import corpus_root
from p2ptrain.sim.loop import run
from p2ptrain.units import PeerId
from p2ptrain.wire.limits import CORPUS_CHUNK_BYTES
from p2ptrain.wire.messages import WantCorpus

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.wire.messages import Control

BOB, EVE = PeerId("bob"), PeerId("eve")


class Links:
    """Answers as ``answer`` says."""

    def __init__(self, answer: Callable[[PeerId, Control], None]) -> None:
        self.asked: list[Control] = []
        self.closed: list[PeerId] = []
        self._answer = answer

    def send(self, peer: PeerId, message: Control) -> None:
        self.asked.append(message)
        self._answer(peer, message)

    def close_peer(self, peer: PeerId, _reason: str) -> None:
        self.closed.append(peer)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_silent_donor_costs_its_deadline_and_the_next_is_asked() -> None:
    async def main() -> None:
        def answer(peer: PeerId, message: Control) -> None:
            if peer == EVE and isinstance(message, WantCorpus):
                asyncio.get_running_loop().call_soon(
                    puller.heard, peer, message.offset, memoryview(b"abc")
                )

        puller = CorpusPuller(Links(answer), lambda _event: None)  # type: ignore[arg-type]  # what it uses
        assert await puller.pull([BOB, EVE], 3, corpus_root(b"abc")) == b"abc"
        assert now() == PIECE_SECONDS
        puller.heard(BOB, 0, memoryview(b"late"))  # nobody waits: nothing happens

    run(main())


def test_a_broken_link_fails_the_whole_window_at_once() -> None:
    async def main() -> None:
        size = 10 * CORPUS_CHUNK_BYTES
        links = Links(lambda _peer, _message: None)
        puller = CorpusPuller(links, lambda _event: None)  # type: ignore[arg-type]  # what it uses
        asyncio.get_running_loop().call_later(1.0, puller.failed, BOB, "the link broke")
        with pytest.raises(LinkError, match="the link broke"):
            await puller.pull([BOB], size, "root")
        assert len(links.asked) == WINDOW
        assert now() == 1.0

    run(main())


def test_a_wrong_corpus_names_its_donor() -> None:
    async def main() -> None:
        events: list[AnyEvent] = []

        def answer(peer: PeerId, message: Control) -> None:
            assert isinstance(message, WantCorpus)
            puller.heard(peer, message.offset, memoryview(b"abc"))

        links = Links(answer)
        puller = CorpusPuller(links, events.append)  # type: ignore[arg-type]  # what it uses
        assert await puller.pull([BOB], 3, corpus_root(b"abc")) == b"abc"
        for size, root in ((3, corpus_root(b"abd")), (4, corpus_root(b"abcd"))):
            with pytest.raises(LinkError, match="bob: gave"):
                await puller.pull([BOB], size, root)
        assert [event.peer for event in events if isinstance(event, FrameRefused)] == [BOB, BOB]
        assert links.closed == [BOB, BOB]

    run(main())
