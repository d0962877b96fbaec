"""RunSpec to TOML and back, and the layers from which a run's settings are put together.

Flags beat the environment, which beats the file, which beats the defaults; every value
remembers which of them it came from, so ``p2ptrain config show --origin`` can say. The
comments of a written file are the docstrings of the sections: one text serves both.
Unknown keys are refused with the nearest known one, because a silently ignored
``learning_rte`` costs a night of training.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from p2ptrain.errors import RunSpecError
from p2ptrain.run.check import in_range, validate
from p2ptrain.run.codecs import resolved
from p2ptrain.run.spec import Part, RunSpec, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ENVIRONMENT_PREFIX = "P2PTRAIN_"
COMMENT_COLUMNS = 88

Value: TypeAlias = object
"""A TOML value: string, integer, float, or list of those or of tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """A validated RunSpec and where each of its values came from, by dotted name."""

    spec: RunSpec
    origins: Mapping[str, str]


def flat(spec: RunSpec) -> dict[str, Value]:
    """Every value of ``spec`` by its dotted name, in the order of the sections."""
    return dict(_leaves(msgspec.to_builtins(spec), ""))


def environment_name(name: str) -> str:
    """``model.d_model`` is ``P2PTRAIN_MODEL_D_MODEL`` in the environment."""
    return ENVIRONMENT_PREFIX + name.replace(".", "_").upper()


def from_toml(text: str) -> RunSpec:
    """Read and validate a RunSpec; what the text leaves out takes its default.

    Raises:
        RunSpecError: not TOML, an unknown key, a wrong type, or a RunSpec that cannot be run.
    """
    return layered(text=text).spec


def layered(
    *,
    base: RunSpec | None = None,
    text: str = "",
    source: str = "file",
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Value] | None = None,
) -> Layered:
    """Put a RunSpec together: ``base``, then TOML ``text``, then ``environ``, then ``flags``.

    ``source`` names the text in messages. Strings in ``environ`` and ``flags`` are read as
    TOML values. ``environ`` may hold anything else besides.

    Raises:
        RunSpecError: as ``from_toml``.
    """
    values = flat(base if base is not None else RunSpec())
    origins = dict.fromkeys(values, "default" if base is None else f"preset {base.name}")
    names = {environment_name(name): name for name in values}
    layers: tuple[tuple[str, Mapping[str, Value]], ...] = (
        (source, _parse(text, source)),
        (
            "environment",
            {names[key]: text for key, text in (environ or {}).items() if key in names},
        ),
        ("flag", flags or {}),
    )
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in values:
                raise RunSpecError(f"{origin}: {_unknown(name, values)}")
            literal = (
                isinstance(value, str) and origin != source and not isinstance(values[name], str)
            )
            values[name] = _literal(value) if literal else value
            origins[name] = (
                f"{origin} {environment_name(name)}" if origin == "environment" else origin
            )
    try:
        spec = msgspec.convert(_nested(values), RunSpec)
    except msgspec.ValidationError as error:
        raise RunSpecError(_wrong(readable(error), origins)) from error
    if in_range(spec):
        spec = resolved(spec)
    return Layered(spec=validate(spec), origins=origins)


def to_toml(spec: RunSpec, *, comments: bool = True) -> str:
    """``spec`` as TOML that ``from_toml`` reads back to an equal value."""
    lines = _comment(RunSpec) if comments else []
    sections = [name for name in spec.__struct_fields__ if isinstance(getattr(spec, name), Part)]
    lines += [
        _assignment(spec, name, comments=comments)
        for name in spec.__struct_fields__
        if name not in sections
    ]
    for name in sections:
        section: Part = getattr(spec, name)
        lines.append("")
        lines += _comment(type(section)) if comments else []
        lines.append(f"[{name}]")
        lines += [
            _assignment(section, field, comments=comments) for field in section.__struct_fields__
        ]
    return "\n".join(lines) + "\n"


def _leaves(tree: object, prefix: str) -> Iterator[tuple[str, Value]]:
    assert isinstance(tree, dict)
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(values: Mapping[str, Value]) -> dict[str, Value]:
    tree: dict[str, Value] = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        place = tree.setdefault(section, {}) if section else tree
        assert isinstance(place, dict)
        place[key] = value
    return tree


def _parse(text: str, source: str) -> dict[str, Value]:
    try:
        return dict(_leaves(tomllib.loads(text), ""))
    except tomllib.TOMLDecodeError as error:
        raise RunSpecError(f"{source} is not TOML: {error}") from error
    except RecursionError as error:
        raise RunSpecError(f"{source} is no RunSpec: nested too deep") from error


def _literal(text: object) -> Value:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _unknown(name: str, known: Mapping[str, Value]) -> str:
    leaf = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=1) or [
        full for full in known if full.rpartition(".")[2] == leaf
    ]
    hint = f"; did you mean {near[0]}?" if near else "; p2ptrain init writes all that there are"
    return f"unknown key {name}{hint}"


def _wrong(complaint: str, origins: Mapping[str, str]) -> str:
    """``complaint`` with where the value came from, and what it may be if there is a choice."""
    path = complaint.partition(":")[0]
    name = path.partition("[")[0]
    if name not in origins:
        return complaint
    choices = ", ".join(map(str, _choices(path)))
    return f"{origins[name]}: {complaint}{f'; there are: {choices}' if choices else ''}"


def _choices(path: str) -> tuple[object, ...]:
    """What may stand at ``path``, like ``codec.compositions[0].scale``, if that is a choice."""
    hint: object = RunSpec
    for place in re.findall(r"[^.\[\]]+", path):
        if get_origin(hint) is tuple:
            parts = get_args(hint)
            hint = parts[0] if parts[-1] is Ellipsis else parts[int(place)]
        else:
            hint = get_type_hints(hint)[place]
    return get_args(hint) if get_origin(hint) is Literal else ()


def _comment(part: type[Part]) -> list[str]:
    text = (inspect.getdoc(part) or "").replace("``", "")
    wrapped = [textwrap.wrap(paragraph, COMMENT_COLUMNS) for paragraph in text.split("\n\n")]
    return [f"# {line}" for paragraph in wrapped for line in paragraph]


def _assignment(part: Part, field: str, *, comments: bool) -> str:
    value = getattr(part, field)
    line = f"{field} = {_inline(msgspec.to_builtins(value))}"
    hint = get_type_hints(type(part))[field]
    if comments and get_origin(hint) is Literal:
        line += f"  # {' | '.join(get_args(hint))}"
    return line


def _inline(value: Value) -> str:
    """A value on one line; JSON writes all but tables as TOML does, and letters beyond ASCII."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name} = {_inline(part)}' for name, part in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    written = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^ -~]", lambda letter: f"\\U{ord(letter[0]):08x}", written)
