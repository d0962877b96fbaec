"""The command itself, and the boundary at which every error becomes one line.

Whatever goes wrong reaches the user as one line on stderr that says what to type instead,
with the exit code of ``errors.py``, or 130 for Ctrl-C; ``P2PTRAIN_DEBUG=1`` shows the
traceback. Refused: tracebacks as a user interface.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import click

from p2ptrain import __version__
from p2ptrain.cli.flags import Group
from p2ptrain.cli.serving import bootstrap, peer, status
from p2ptrain.cli.spec import config, init
from p2ptrain.cli.swarm import simulate
from p2ptrain.errors import P2PTrainError

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED_EXIT = 130
USAGE_EXIT = 2
FAULT_EXIT = 1

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


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    code = run(sys.argv[1:] if args is None else args)
    gc.freeze()  # else the interpreter walks all of torch once more: a second of every leaving
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run the command; return its exit code. Every error ends here, in one line on stderr."""
    try:
        code = cli.main(list(args), prog_name="p2ptrain", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED_EXIT
    except click.ClickException as error:
        return _fail(error.format_message(), USAGE_EXIT, context=getattr(error, "ctx", None))
    except P2PTrainError as error:
        if os.environ.get("P2PTRAIN_DEBUG"):
            raise
        return _fail("; ".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code)
    except BrokenPipeError:
        return FAULT_EXIT  # whoever read our output has left
    except Exception as error:  # the last line before the user
        if os.environ.get("P2PTRAIN_DEBUG"):
            raise
        fault = f"our fault: {type(error).__name__}: {error} (P2PTRAIN_DEBUG=1 shows where)"
        return _fail(fault, FAULT_EXIT)
    return code if isinstance(code, int) else 0


def _fail(reason: str, code: int, *, context: click.Context | None = None) -> int:
    command = context.command_path if context is not None else "p2ptrain"
    hint = f" (see {command} --help)" if context is not None else ""
    line = f"{command}: {reason}{hint}".replace("\n", " ")
    print(line, file=sys.stderr)  # noqa: T201 -- the user's terminal is this module's purpose
    return code
