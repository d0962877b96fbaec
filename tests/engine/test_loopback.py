"""What a peer tells itself comes back in order, later, and copied."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.engine.loopback import Loopback
from p2ptrain.errors import MisbehaviourError, PeerError
from p2ptrain.sim.loop import run
from p2ptrain.wire.messages import Control, CorpusChunk, Leaving

if TYPE_CHECKING:
    from p2ptrain.wire.messages import Data


def test_order_copy_and_refusal() -> None:
    async def main() -> None:
        loopback = Loopback()
        heard: list[object] = []
        refused: list[PeerError] = []

        def control(message: Control) -> None:
            heard.append(message)
            if message == Leaving(reason="bad"):
                raise MisbehaviourError("no")
            if message == Leaving(reason="first"):
                loopback.post(Leaving(reason="from inside"), control)

        def data(_message: Data, payload: memoryview) -> None:
            heard.append(bytes(payload))

        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(loopback.run(refused.append))
            given = bytearray(b"abc")
            loopback.post(Leaving(reason="first"), control)
            loopback.post(Leaving(reason="bad"), control)
            sent = loopback.submit(CorpusChunk(offset=0), (given, b"def"), data)
            withdrawn = loopback.submit(CorpusChunk(offset=0), (b"anyway",), data)
            given[:] = b"xyz"
            withdrawn.cancel()
            assert heard == []
            await sent
            await asyncio.sleep(0)
            assert heard == [
                Leaving(reason="first"),
                Leaving(reason="bad"),
                b"abcdef",
                b"anyway",
                Leaving(reason="from inside"),
            ]
            assert [error.reason for error in refused] == ["no"]
            running.cancel()

    run(main())
