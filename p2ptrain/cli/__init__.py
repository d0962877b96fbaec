"""The ``p2ptrain`` command: flags in, one program run, an exit code out.

    entry    the command, and the boundary at which errors become one line and an exit code
    flags    how flags are read
    spec     flags, environment and file to a RunSpec: init, config show
    serving  bootstrap, peer, status
    swarm    simulate
    leaving  Ctrl-C while nothing has begun

Nothing but flags is handled here. Programs are imported only when their command runs,
because torch and hivemind take seconds, and ``p2ptrain --help`` must not. This file itself
imports next to nothing, so that Ctrl-C is under control from the first moment.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from p2ptrain.cli.leaving import at_once, leave

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run"]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit with its code."""
    leave(run(sys.argv[1:] if args is None else args))


def run(args: Sequence[str]) -> int:
    """Run the command; return its exit code. Every error ends here, in one line on stderr."""
    with at_once():
        from p2ptrain.cli import entry  # noqa: PLC0415 -- under the guard
    return entry.run(args)
