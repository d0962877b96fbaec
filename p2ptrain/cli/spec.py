"""From flags, environment and file to a RunSpec; and the commands that show or write one.

A RunSpec is resolved in one place for all commands, so that ``config show`` with the same
flags shows what a peer or a simulation would run.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptrain.cli.flags import AnyPath, Command, Group, Integer, option, pairs
from p2ptrain.errors import UserError
from p2ptrain.run import PRESETS, Layered, digest, expected_efficiency, layered, to_toml
from p2ptrain.run import preset as preset_named
from p2ptrain.run.presets import with_stages
from p2ptrain.run.text import flat

if TYPE_CHECKING:
    from collections.abc import Mapping

ANY_PATH = AnyPath()
RUN_ID = re.compile(r"[0-9a-f]{32}")

run_option = option("--run", "run_file", type=ANY_PATH, help="RunSpec to use (see init).")
preset_option = option("--preset", help=f"Instead of --run: {', '.join(PRESETS)}.")
set_option = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change one value of the RunSpec."
)
data_option = option("--data", type=ANY_PATH, help="Text file, folder or jsonl to train on.")


@click.command(cls=Command)
@option("--preset", help=f"What to begin with: {', '.join(PRESETS)}.")
@option(
    "-o",
    "--output",
    type=ANY_PATH,
    default=Path("run.toml"),
    show_default=True,
    help="File, or - for stdout.",
)
@data_option
@set_option
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
def init(
    *, preset: str | None, output: Path, data: Path | None, sets: tuple[str, ...], force: bool
) -> None:
    """Write a commented RunSpec, with its data pinned."""
    from p2ptrain.data import pin  # noqa: PLC0415 -- only what the command needs

    spec = pin(resolve(None, preset, flags={**source_of(data), **pairs(sets)}).spec, data)
    if str(output) == "-":
        click.echo(to_toml(spec), nl=False)
        return
    if output.exists() and not force:
        raise UserError(f"{output} is there already; give another -o, or --force to replace it")
    if output.exists() and not output.is_file():  # a device would be replaced by our file
        raise UserError(f"{output} is no ordinary file; give another -o, or - for stdout")
    unfinished = output.with_name(f"{output.name}.new")  # a full disk must not cost the old one
    try:
        unfinished.write_text(to_toml(spec))
        unfinished.replace(output)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = f"{output}: cannot be written ({error.strerror}); give another -o"
            raise UserError(reason) from error
        raise
    click.echo(f"{output}: run {digest(spec)}; begin it with")
    click.echo(f"  p2ptrain peer --new-swarm --run {output}")


@click.group(cls=Group)
def config() -> None:
    """Look at settings."""


@config.command()
@run_option
@preset_option
@set_option
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@click.option("--replicas", default=2, type=Integer(1), help="Of each stage, for the estimate.")
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


def resolve(run_file: Path | None, preset: str | None, *, flags: Mapping[str, object]) -> Layered:
    """The RunSpec from a file or preset, the environment and ``flags``.

    Raises:
        UserError: both or an unreadable file; RunSpecError as ``layered``.
    """
    if run_file is not None and preset is not None:
        raise UserError("give --run or --preset, not both")
    text = ""
    if run_file is not None:
        try:
            text = run_file.read_text()
        except FileNotFoundError as error:
            reason = f"--run {run_file}: cannot be read; p2ptrain init writes one"
            if RUN_ID.fullmatch(run_file.name):
                reason = f"--run {run_file}: the id of a run; give a file that p2ptrain init wrote"
            raise UserError(reason) from error
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is no text"
            reason = f"--run {run_file}: cannot be read ({cause}); give a file that init wrote"
            raise UserError(reason) from error
    base = preset_named(preset) if preset is not None else None
    stages = flags.get("cut.stages")
    if run_file is None and isinstance(stages, int):
        base = with_stages(base or preset_named("tiny"), stages)
    return layered(base=base, text=text, source=str(run_file), environ=os.environ, flags=flags)


def source_of(data: Path | None) -> dict[str, object]:
    """What ``--data`` says of the corpus: jsonl by its name, else text."""
    if data is None:
        return {}
    jsonl = data.suffix == ".jsonl" or (data.is_dir() and any(data.glob("*.jsonl")))
    return {"data.source": "jsonl" if jsonl else "text"}
