"""How the command line reads its flags: habits of this audience, refusals in one line.

    * ``-`` and ``_`` are the same in a flag's name; ``--initial-peers A B`` takes both;
    * every flag ``--some-flag`` has its ``P2PTRAIN_SOME_FLAG`` in the environment, which
      the flag beats;
    * sizes are written ``512MB``, ``16GiB``;
    * an unknown command or flag is answered with the nearest known one.

This module knows nothing of what the commands do.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2ptrain.run.text import environment_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Size(click.ParamType[int]):
    """A number of bytes, as people write it."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Bytes from ``512MB``, ``16GiB`` or ``1000``."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]i?)?b?", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is no size; write it like 512MB or 16GiB", param, ctx)
        return int(float(found[1]) * (_UNITS | _BINARY_UNITS)[found[2] or ""])


class Integer(click.IntRange):
    """An integer within bounds; what is none at all is refused without a word of a range."""

    name = "integer"


class AnyPath(click.Path):
    """A path, there or not yet; only the empty one, of an unset shell variable, is refused."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """The path; an empty one would mean the current folder."""
        if not os.fspath(value):
            self.fail("the path is empty (a shell variable without a value?)", param, ctx)
        return super().convert(value, param, ctx)


class Command(click.Command):
    """A command whose repeatable flags also take several values at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write ``--flag A B`` as ``--flag A --flag B``, then parse as ever."""
        options = [each for each in self.params if isinstance(each, click.Option)]
        several = {name for each in options if each.multiple for name in each.opts}
        valued = {name for each in options if not each.is_flag for name in each.opts}
        return super().parse_args(ctx, spread(args, several, valued))


class Group(click.Group):
    """A group that names the nearest command when there is none of that name."""

    command_class: type[click.Command] | None = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was meant."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self.commands)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


def spread(args: Sequence[str], several: set[str], valued: set[str]) -> list[str]:
    """Repeat each flag of ``several`` before every value that follows it.

    Raises:
        click.UsageError: after one of ``valued``, which needs a value, another flag follows (an
            empty shell variable).
    """
    result: list[str] = []
    flag, wanting = "", ""
    for arg in args:
        if arg.startswith("--" if wanting else "-"):
            if wanting:
                raise click.UsageError(f"{wanting} needs a value, but {arg} follows")
            name = arg.partition("=")[0].replace("_", "-")
            alone = "=" not in arg
            flag = name if name in several and alone else ""
            wanting = name if name in valued and alone else ""
        elif wanting:
            wanting = ""
        elif flag:
            result.append(flag)
        result.append(arg)
    return result


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option that the environment can give too, unless ``envvar`` says otherwise."""
    longest = next(name for name in names if name.startswith("--")).partition("/")[0]
    settings.setdefault("envvar", environment_name(longest.removeprefix("--").replace("-", "_")))
    return click.option(*names, **settings)


def pairs(assignments: Sequence[str]) -> dict[str, object]:
    """``--set model.d_model=256`` as a mapping.

    Raises:
        click.BadParameter: an assignment without ``=``.
    """
    result: dict[str, object] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise click.BadParameter(f"{assignment!r}: write it like model.d_model=256")
        result[name.strip()] = value.strip()
    return result
