"""Messages of a peer to itself: several seats of one peer speak like strangers do.

Invariants: the same callbacks as for messages from the network, in the order of sending,
never from inside the sending call; a data message's payload is a copy of its own.

The alternative, calling the handler at once, would run a seat's code inside another's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from p2ptrain.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.ports import Buffer
    from p2ptrain.wire.messages import Control, Data

Deliver: TypeAlias = "Callable[[], None]"


class Loopback:
    """A queue that :meth:`run` empties; bounded by its callers, who are all our own."""

    def __init__(self) -> None:
        self._waiting: deque[Deliver] = deque()
        self._wake = asyncio.Event()

    def post(self, message: Control, deliver: Callable[[Control], None]) -> None:
        """Deliver a control message at the next turn of the loop."""
        self._put(lambda: deliver(message))

    def submit(
        self,
        message: Data,
        payload: Sequence[Buffer],
        deliver: Callable[[Data, memoryview], None],
    ) -> asyncio.Future[None]:
        """Deliver a data message with one joined copy; the future is done when it was."""
        joined = memoryview(bytearray().join(payload))
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hand_over() -> None:
            if not sent.done():
                sent.set_result(None)
            deliver(message, joined)

        self._put(hand_over)
        return sent

    async def run(self, on_misbehaviour: Callable[[PeerError], None]) -> NoReturn:
        """Deliver, for ever. A message that our own rules refuse is reported and dropped."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for _ in range(len(self._waiting)):  # what is sent meanwhile waits for a turn
                deliver = self._waiting.popleft()
                try:
                    deliver()
                except PeerError as error:
                    on_misbehaviour(error)

    def _put(self, deliver: Deliver) -> None:
        self._waiting.append(deliver)
        self._wake.set()
