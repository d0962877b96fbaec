"""Where events go: a file of JSON lines, the log, memory, or several of them.

    emit = stamp(peer, loop.time, fan_out(JsonlSink(path), LogSink(logger)))

The engine speaks events without time or name; ``stamp`` adds both, and makes the ``Entry``
that every sink takes. One vocabulary serves all readers, so a log line never has to be
parsed: machines read events.jsonl.

Invariants: a sink never raises into the engine (a full disk silences the file with one
warning, training goes on); every entry is one write of one whole line, so that a kill tears
the last line at most; a reader passes over that line and refuses any other damage.

Refused: buffering. What a killed peer did last is what one wants to read.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import msgspec

from p2ptrain.errors import DataError
from p2ptrain.observe.events import Entry
from p2ptrain.observe.wording import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from p2ptrain.observe import events as ev
    from p2ptrain.units import PeerId, Seconds

    Sink: TypeAlias = Callable[[Entry], None]

log = logging.getLogger(__name__)


def stamp(peer: PeerId, clock: Callable[[], Seconds], sink: Sink) -> ev.Emit:
    """What the engine of ``peer`` is given to speak through."""

    def emit(event: ev.AnyEvent) -> None:
        sink(Entry(at=clock(), peer=peer, event=event))

    return emit


def fan_out(*sinks: Sink) -> Sink:
    """One sink that gives every entry to all of ``sinks``, in order."""

    def sink(entry: Entry) -> None:
        for each in sinks:
            each(entry)

    return sink


class MemorySink:
    """Keeps everything: for tests and simulations."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, entry: Entry) -> None:
        """Keep ``entry``."""
        self.entries.append(entry)


class JsonlSink:
    """Appends to an events.jsonl. Use as a context manager, or close it.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._encode = msgspec.json.Encoder().encode

    def __call__(self, entry: Entry) -> None:
        """Write ``entry`` as one line."""
        if self._file.closed:
            return
        line = self._encode(entry) + b"\n"
        try:
            whole = self._file.write(line) == len(line)
            problem = None if whole else "the disk is full"
        except OSError as error:
            problem = error.strerror
        if problem is not None:
            self._file.close()
            log.warning("%s: %s; no more events are written", self._path, problem)

    def close(self) -> None:
        """Write no more."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LogSink:
    """Says in words what an operator wants to know; the rest at debug level."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __call__(self, entry: Entry) -> None:
        """Log ``entry`` at the level it deserves."""
        level, text = describe(entry.event)
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", text, extra={"p2ptrain_entry": entry})


class JsonFormatter(logging.Formatter):
    """Log records as JSON lines; events in full, other records as text."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry = getattr(record, "p2ptrain_entry", None)
        fields: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "text": record.getMessage(),
        }
        if entry is not None:
            fields["entry"] = entry
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def formatter(style: Literal["text", "json"]) -> logging.Formatter:
    """How log lines look: ``--log-format``."""
    if style == "json":
        return JsonFormatter()
    return logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of an events.jsonl; a torn last line (its writer was killed) is left out.

    Raises:
        DataError: another line is no event of this version.
    """
    decode = msgspec.json.Decoder(Entry).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                raise DataError(f"{path}, line {number}: no event: {error}") from error


def merge_entries(paths: Iterable[Path]) -> list[Entry]:
    """All entries of several files by time (one machine's clock, or a simulation's).

    Raises:
        DataError: see :func:`read_entries`.
    """
    entries = [entry for path in sorted(paths) if path.exists() for entry in read_entries(path)]
    return sorted(entries, key=lambda entry: entry.at)  # stable: a file's own order stays
