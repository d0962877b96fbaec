"""The command itself, and the boundary at which every error becomes one line.

Whatever goes wrong reaches the user as one line on stderr that says what to type instead,
with the exit code of ``errors.py``, or 130 for Ctrl-C; ``P2PTRAIN_DEBUG=1`` shows the
traceback. Refused: tracebacks as a user interface.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING

import click

from p2ptrain import __version__
from p2ptrain.cli.flags import Group
from p2ptrain.cli.leaving import INTERRUPTED_EXIT
from p2ptrain.cli.serving import bootstrap, peer, status
from p2ptrain.cli.spec import config, init
from p2ptrain.cli.swarm import simulate
from p2ptrain.errors import P2PTrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE_EXIT = 2
FAULT_EXIT = 1

THE_MACHINES = {
    errno.ENOSPC: "make room on the disk that it writes to (or that its output goes to)",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "give a place that can be written",
    errno.EACCES: "give a place that you may use",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
}
"""What the operating system refuses and its user can mend, wherever it comes up."""

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "max_content_width": 100,
}


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="p2ptrain")
def cli() -> None:
    """Train one large model together, peer to peer, without a coordinator."""


for command in (init, bootstrap, peer, simulate, status, config):
    cli.add_command(command)


def run(args: Sequence[str]) -> int:
    """Run the command; return its exit code. Every error ends here, in one line on stderr."""
    try:
        code = cli.main(list(args), prog_name="p2ptrain", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED_EXIT
    except BrokenPipeError:
        return FAULT_EXIT  # whoever read our output has left
    except Exception as error:  # the last line before the user
        if os.environ.get("P2PTRAIN_DEBUG") and not isinstance(error, click.ClickException):
            raise
        return _told(error)
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> int:
    """Say what is wrong, and whose fault it is by the exit code returned."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        with contextlib.suppress(OSError):
            error.show()  # the help, as it is: it is no reason to put in one line
        return USAGE_EXIT
    if isinstance(error, click.ClickException):
        return _fail(error.format_message(), USAGE_EXIT, context=getattr(error, "ctx", None))
    if isinstance(error, P2PTrainError):
        return _fail("; ".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code)
    if isinstance(error, OSError) and error.errno in THE_MACHINES:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return _fail(f"{what}; {THE_MACHINES[error.errno]}", USAGE_EXIT)
    fault = f"our fault: {type(error).__name__}: {error} (P2PTRAIN_DEBUG=1 shows where)"
    return _fail(fault, FAULT_EXIT)


def _fail(reason: str, code: int, *, context: click.Context | None = None) -> int:
    command = context.command_path if context is not None else "p2ptrain"
    hint = f" (see {command} --help)" if context is not None else ""
    line = f"{command}: {reason}{hint}".replace("\n", " ")
    with contextlib.suppress(OSError):  # nowhere to say it: the code says it still
        print(line, file=sys.stderr, flush=True)  # noqa: T201 -- the terminal is our purpose
    return code
