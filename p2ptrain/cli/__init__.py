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

from typing import TYPE_CHECKING

from p2ptrain.cli.leaving import at_once, settled

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    import gc  # noqa: PLC0415 -- see above
    import sys  # noqa: PLC0415

    code = settled(run(sys.argv[1:] if args is None else args))
    gc.freeze()  # else the interpreter walks all of torch once more: a second of every leaving
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run the command; return its exit code. Every error ends here, in one line on stderr."""
    with at_once():
        from p2ptrain.cli import entry  # noqa: PLC0415 -- under the guard
    return entry.run(args)
