"""From files to one string of bytes: the same bytes on every machine that has the files.

A corpus is the concatenation of its files in the order of their paths (as bytes, so that
no locale decides). Hidden files are left out. Three sources are built:

    stdlib   the top-level modules of the running Python's library: in every install,
             4 to 5 MB, equal on all machines with the same Python version
    text     a file, or every file of a folder
    jsonl    a file, or every ``*.jsonl`` file of a folder: the strings under one field,
             each ended by a newline

Refused: shipping a text with the package (an arbitrary choice, and a licence to keep), and
downloading one (a first run must work offline).
"""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.run import Data

MAX_CORPUS_BYTES = 4 << 30
"""A corpus is held in memory; a larger one needs the sharded reader that is not built."""

MACHINE_MODULES = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""Files of the library that hold the machine's own paths, by how their names begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """The bytes of a corpus, and how many files they came from."""

    corpus: bytes
    file_count: int


def gather(data: Data, path: Path | None) -> Gathered:
    """Read the whole source that ``data`` names; ``path`` says where (not for ``stdlib``).

    Raises:
        DataError: missing, empty, unreadable or too large; the message says what to give.
    """
    if data.source == "stdlib":
        if path is not None:
            raise DataError(f"this run trains on the standard library: leave out --data {path}")
        files = _library()
    else:
        if path is None:
            raise DataError(f'data.source = "{data.source}" needs a path: give --data PATH')
        files = _files(path, "*.jsonl" if data.source == "jsonl" else "*")
    pieces, total = [], 0
    for file in files:
        piece = _read(file)
        total += len(piece)
        if total > MAX_CORPUS_BYTES:
            raise DataError(f"{path}: more than {MAX_CORPUS_BYTES >> 30} GiB; give a part of it")
        pieces.append(piece if data.source != "jsonl" else _strings(file, piece, data.jsonl_field))
    corpus = b"".join(pieces)
    if not corpus:
        raise DataError(f"{path}: no text in it; give a file or folder that holds some")
    return Gathered(corpus=corpus, file_count=len(files))


def _library() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for path in folder.glob("*.py") if not path.name.startswith(MACHINE_MODULES)]
    if not files:
        raise DataError(f"this Python keeps no sources in {folder}: give --data PATH")
    return sorted(files, key=lambda path: path.name.encode())


def _files(path: Path, pattern: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; give the path of your text")
    files = [
        file
        for file in path.rglob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise DataError(f"{path}: no file {pattern} in this folder")
    return sorted(files, key=lambda file: file.relative_to(path).as_posix().encode())


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _strings(file: Path, lines: bytes, field: str) -> bytes:
    return b"".join(_records(file, lines, field))


def _records(file: Path, lines: bytes, field: str) -> Iterator[bytes]:
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            text = msgspec.json.decode(line, type=dict[str, object]).get(field)
        except (msgspec.DecodeError, RecursionError) as error:
            raise DataError(f"{file}:{number}: no JSON object ({error})") from error
        if not isinstance(text, str):
            raise DataError(f'{file}:{number}: no string "{field}"; set data.jsonl_field')
        yield text.encode() + b"\n"
