"""The end of a simulation: its report, its words, its exit code."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from peers.display import Display
from peers.simulation import SimulationOptions, simulate

if TYPE_CHECKING:
    pass


def conduct(options: SimulationOptions, *, as_json: bool) -> int:
    """Simulate, report, return the exit code."""
    with Display(as_json=as_json) as display:
        found = asyncio.run(simulate(options, display))
    print(found)
    return 0
