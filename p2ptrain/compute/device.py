"""Where a stage computes, and what must be equal for its bits to be equal.

Bit-equality holds inside one *arithmetic class*: device model, kernel set, torch
version, threads and type. Two peers of a bitwise run compare their classes when they
open a link; this module names the class and puts torch into its deterministic state.

Alternative refused: to promise equality across classes. A sum of products in another
order is another sum.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING

import psutil
import torch
import torch.utils.deterministic

from p2ptrain.errors import RefusedError, UserError

if TYPE_CHECKING:
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes

_MEMORY_SHARE = 0.5
"""Of the free memory at start, without --max-memory: other programs live here too."""


def choose_device(name: str, spec: RunSpec) -> torch.device:
    """The device called ``name`` (auto, cpu, cuda, cuda:1, mps), if it is there and allowed.

    Raises:
        UserError: there is no such device on this machine.
        RefusedError: the run computes on another kind of device or torch version.
    """
    if sys.byteorder != "little":
        raise UserError("p2ptrain needs a little-endian machine")
    if name == "auto":
        wanted = spec.arithmetic.device
        name = wanted if wanted != "any" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: give auto, cpu, cuda, cuda:N or mps") from None
    if not _is_there(device):
        raise UserError(f"there is no device {name!r} on this machine: try --device cpu")
    _check_allowed(device, spec)
    return device


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _check_allowed(device: torch.device, spec: RunSpec) -> None:
    arithmetic = spec.arithmetic
    if arithmetic.device not in {"any", device.type}:
        raise RefusedError(
            f"this run computes on {arithmetic.device} only: use --device {arithmetic.device}"
        )
    if arithmetic.torch and arithmetic.torch != _torch_version():
        raise RefusedError(
            f"this run needs torch {arithmetic.torch}, here is {_torch_version()}: "
            f"pip install torch=={arithmetic.torch}"
        )


def make_deterministic(device: torch.device, threads: int) -> None:
    """Fix kernels and threads; call on the thread that computes (torch keeps both per thread)."""
    if device.type == "cuda":
        # cuBLAS reads it when it starts; without it its results may differ between calls.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)  # noqa: FBT003 - torch's signature
    # Fills every new tensor with NaN otherwise; we never read what we did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False


def choose_threads(wanted: int | None, spec: RunSpec) -> int:
    """How many threads compute: the RunSpec's, or ``wanted`` where the run lets peers differ.

    Raises:
        RefusedError: the run does not.
    """
    given = spec.arithmetic.threads
    if wanted is not None and wanted != given and spec.sync.agreement == "bitwise":
        raise RefusedError(
            f"this run computes with {given} threads everywhere: leave out --threads, or begin "
            'a run with sync.agreement = "canonical"'
        )
    return given if wanted is None else wanted


def arithmetic_class(spec: RunSpec, device: torch.device, threads: int) -> str:
    """One line that is equal where bits are equal."""
    if device.type == "cuda":
        kind = f"cuda:{torch.cuda.get_device_name(device)}"
    elif device.type == "mps":
        kind = f"mps:{platform.machine()}"
    else:
        kind = f"cpu:{platform.machine()}:{torch.backends.cpu.get_cpu_capability()}"
    return f"{kind} torch={_torch_version()} threads={threads} {spec.arithmetic.dtype}"


def default_memory_bytes(device: torch.device) -> Bytes:
    """What a peer gives to seats unless told otherwise."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * _MEMORY_SHARE)
    return int(psutil.virtual_memory().available * _MEMORY_SHARE)


def _torch_version() -> str:
    """Without the build's suffix: 2.13.0+cpu is 2.13.0."""
    return torch.__version__.partition("+")[0]
