"""The ``p2ptrain`` command: flags in, one program run, an exit code out.

    entry    the command, and the boundary at which errors become one line and an exit code
    flags    how flags are read
    spec     flags, environment and file to a RunSpec: init, config show
    serving  bootstrap, peer, status
    swarm    simulate

Nothing but flags is handled here. Programs are imported only when their command runs,
because torch and hivemind take seconds, and ``p2ptrain --help`` must not.
"""

from p2ptrain.cli.entry import main, run

__all__ = ["main", "run"]
