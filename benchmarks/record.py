"""Results as files: the figures beside the commit, the versions and the machine.

A figure without its machine is gossip. ``machine`` includes the load before and after:
on a shared machine a wall time means little without it, and the processor seconds of the
contenders are there for comparison.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import psutil

from peers.source import source_commit

__all__ = ["load", "machine", "source_commit", "write"]

RESULTS = Path(__file__).parent / "results"
VERSIONS_OF = ("torch", "hivemind", "numpy", "msgspec", "uvloop")


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in VERSIONS_OF},
    }


def _version(name: str) -> str | None:
    """None where it is not there: a table of losses needs no libp2p."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def load() -> float:
    """Processes that want a core, a minute's average; the contenders' own included."""
    return os.getloadavg()[0]


def write(name: str, result: dict[str, object], *, commit: str, path: Path | None = None) -> Path:
    """Write ``result`` to ``path``, or to results/NAME-COMMIT.json: all of it, or nothing.

    ``commit``: ``source_commit()`` when the benchmark began; the tree may have moved on since.
    """
    whole = {
        "benchmark": name,
        "commit": commit,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **result,
    }
    target = path or RESULTS / f"{name}-{commit.removesuffix('+')}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_suffix(".tmp")
    written.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
    return written.replace(target)


def _processor() -> str:
    """Linux keeps the model's name where platform does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
