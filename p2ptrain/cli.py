"""The ``p2ptrain`` command: flags in, one program run, an exit code out.

Nothing but flags is handled here. Programs are imported only when their command runs,
because torch and hivemind take seconds, and ``p2ptrain --help`` must not. Whatever goes
wrong reaches the user as one line that says what to type instead; ``P2PTRAIN_DEBUG=1``
shows the traceback. Exit codes are those of ``errors.py``, and 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain import __version__
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.flags import Group, option, pairs
from p2ptrain.run import PRESETS, Layered, digest, expected_efficiency, layered, preset, to_toml
from p2ptrain.run.presets import with_stages
from p2ptrain.run.text import flat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INTERRUPTED_EXIT = 130
USAGE_EXIT = 2
FILE = click.Path(path_type=Path, dir_okay=False)
ANY_PATH = click.Path(path_type=Path)
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "max_content_width": 100,
}

run_option = option("--run", "run_file", type=FILE, help="RunSpec to use (see init).")
preset_option = option("--preset", help=f"Instead of --run: {', '.join(PRESETS)}.")
set_option = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one value of the RunSpec."
)
data_option = option("--data", type=ANY_PATH, help="Text file, folder or jsonl to train on.")
peers_option = option(
    "--initial-peers", "--join", "--bootstrap", multiple=True, metavar="ADDRESS...",
    help="Addresses of a bootstrap or of any peer of the run.",
)  # fmt: skip
identity_option = option("--identity-path", type=FILE, help="Key file; made if missing.")
host_option = option(
    "--host-maddrs", multiple=True, metavar="ADDRESS...", help="Where to listen (multiaddress)."
)
announce_option = option(
    "--announce-maddrs", multiple=True, metavar="ADDRESS...", help="What to tell others instead."
)


@click.group(cls=Group, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="p2ptrain")
def cli() -> None:
    """Train one large model together, peer to peer, without a coordinator."""


@cli.command()
@preset_option
@option("-o", "--output", type=ANY_PATH, default=Path("run.toml"), help="File, or - for stdout.")
@data_option
@set_option
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def init(
    *, preset: str | None, output: Path, data: Path | None, sets: tuple[str, ...], force: bool
) -> None:
    """Write a commented RunSpec, with its data pinned."""
    from p2ptrain.data import pin  # noqa: PLC0415 -- see the module

    spec = pin(resolve(None, preset, flags={**source_of(data), **pairs(sets)}).spec, data)
    if str(output) == "-":
        click.echo(to_toml(spec), nl=False)
        return
    if output.exists() and not force:
        raise UserError(f"{output} is there already; give another -o, or --force to replace it")
    try:
        output.write_text(to_toml(spec))
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    click.echo(f"{output}: run {digest(spec)}; begin it with")
    click.echo(f"  p2ptrain peer --new-swarm --run {output}")


@cli.group(cls=Group)
def config() -> None:
    """Look at settings."""


@config.command()
@run_option
@preset_option
@set_option
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--replicas", default=2, type=click.IntRange(1), help="For the efficiency.")
def show(
    *, run_file: Path | None, preset: str | None, sets: tuple[str, ...], origin: bool, replicas: int
) -> None:
    """Print the RunSpec that the flags, the environment and the file give together."""
    found = resolve(run_file, preset, flags=pairs(sets))
    if origin:
        width = max(map(len, found.origins))
        for name, value in flat(found.spec).items():
            click.echo(f"{name:<{width}} = {value!r:<24} {found.origins[name]}")
    else:
        click.echo(to_toml(found.spec, comments=False), nl=False)
    efficiency = expected_efficiency(found.spec, replicas)
    pinned = "" if found.spec.data.root else " (it changes when the data are pinned: see init)"
    click.echo(f"# run id {digest(found.spec)}{pinned}")
    click.echo(
        f"# {replicas} replicas per stage: {efficiency:.0%} of capacity expected "
        "(a simulated figure: 16 stages, unequal peers)"
    )


def resolve(
    run_file: Path | None, preset_name: str | None, *, flags: Mapping[str, object]
) -> Layered:
    """The RunSpec from a file or preset, the environment and ``flags``.

    Raises:
        UserError: both or an unreadable file; RunSpecError as ``layered``.
    """
    if run_file is not None and preset_name is not None:
        raise UserError("give --run or --preset, not both")
    text = ""
    if run_file is not None:
        try:
            text = run_file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            hint = "; p2ptrain init writes one" if not run_file.exists() else ""
            raise UserError(f"--run {run_file}: cannot be read{hint}") from error
    base = preset(preset_name) if preset_name is not None else None
    stages = flags.get("cut.stages")
    if run_file is None and isinstance(stages, int):
        base = with_stages(base or preset("tiny"), stages)
    return layered(base=base, text=text, source=str(run_file), environ=os.environ, flags=flags)


def source_of(data: Path | None) -> dict[str, object]:
    """What ``--data`` says of the corpus: jsonl by its name, else text."""
    if data is None:
        return {}
    jsonl = data.suffix == ".jsonl" or (data.is_dir() and any(data.glob("*.jsonl")))
    return {"data.source": "jsonl" if jsonl else "text"}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(args: Sequence[str]) -> int:
    """Run the command; return its exit code. Every error ends here, in one line on stderr."""
    try:
        code = cli.main(list(args), prog_name="p2ptrain", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        return INTERRUPTED_EXIT
    except click.ClickException as error:
        return _fail(error.format_message(), USAGE_EXIT, help_of=getattr(error, "ctx", None))
    except P2PTrainError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        return 1  # whoever read our output has left
    except Exception as error:  # the last line before the user
        if os.environ.get("P2PTRAIN_DEBUG"):
            raise
        return _fail(
            f"our fault: {type(error).__name__}: {error} (P2PTRAIN_DEBUG=1 shows where)", 1
        )
    return code if isinstance(code, int) else 0


def _fail(reason: str, code: int, *, help_of: click.Context | None = None) -> int:
    command = help_of.command_path if help_of is not None else "p2ptrain"
    hint = f" (see {command} --help)" if help_of is not None else ""
    print(f"{command}: {reason}{hint}".replace("\n", " "), file=sys.stderr)  # noqa: T201
    return code
