"""Whose turn it is on a device: calls of all seats of a peer, one after another.

On a thread beside the event loop, or inline, on the loop's own thread, with virtual time
from a cost model. The executor says what is called; here it is only run.

Invariants: calls take effect in the order in which they were made; a cancelled call either
never starts or runs to its end.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar

from p2ptrain.compute.device import make_deterministic

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from p2ptrain.units import Seconds, Stage

Kind: TypeAlias = Literal[
    "open", "forward", "backward", "loss", "evaluate", "sum", "finish", "step", "state"
]
"""What a call costs by. ``sum``: reading and adding parts; ``state``: save, load, digests."""

CostModel: TypeAlias = "Callable[[Stage, Kind], Seconds]"
"""Virtual duration of a call of this kind at this stage."""

_T = TypeVar("_T")


class Turns(Protocol):
    """Runs calls one after the other, in the order in which they were made."""

    async def run(self, stage: Stage, kind: Kind, call: Callable[[], _T]) -> _T:
        """What ``call`` returns, which is for a seat of ``stage``."""
        ...

    def close(self) -> None:
        """Run nothing more."""
        ...


class Threaded:
    """On a thread of its own. A cancelled call that has begun runs on unobserved."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self._pool = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="compute",
            initializer=make_deterministic,
            initargs=(device, threads),
        )

    async def run(self, stage: Stage, kind: Kind, call: Callable[[], _T]) -> _T:  # noqa: ARG002
        """See ``Turns``."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """End after the call that is under way, if any; wait for neither."""
        self._pool.shutdown(wait=False, cancel_futures=True)  # a product may take a minute


class Inline:
    """On the caller's thread, at once; then the device stays busy for the call's virtual time.

    Cancelled while it waits for its turn, a call never happens; later it has happened.
    """

    def __init__(self, device: torch.device, threads: int, cost: CostModel | None) -> None:
        make_deterministic(device, threads)
        self._cost = cost
        self._turn = asyncio.Lock()

    async def run(self, stage: Stage, kind: Kind, call: Callable[[], _T]) -> _T:
        """See ``Turns``."""
        async with self._turn:
            result = call()
            if self._cost is not None:
                await asyncio.sleep(self._cost(stage, kind))
            return result

    def close(self) -> None:
        """Nothing is held."""
