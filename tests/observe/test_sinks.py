"""Events reach their readers whole, and never trouble their writers."""

import io
import json
import logging
from pathlib import Path

import pytest

from p2ptrain.errors import DataError
from p2ptrain.observe import events as ev
from p2ptrain.observe.sinks import (
    JsonlSink,
    LogSink,
    MemorySink,
    fan_out,
    formatter,
    merge_entries,
    read_entries,
    stamp,
)
from p2ptrain.units import PeerId, Stage, Step

ANN, BOB = PeerId("ann"), PeerId("bob")
OPENED = ev.SeatOpened(stage=Stage(1), version=Step(0), reason="a hole")


def entry(at: float, peer: PeerId = ANN, reason: str = "x") -> ev.Entry:
    return ev.Entry(at=at, peer=peer, event=ev.Alarm(reason=reason))


def test_events_get_time_and_name_and_reach_every_sink() -> None:
    one, two = MemorySink(), MemorySink()
    emit = stamp(ANN, lambda: 1.5, fan_out(one, two))
    emit(OPENED)
    assert one.entries == two.entries == [ev.Entry(at=1.5, peer=ANN, event=OPENED)]


def test_a_file_is_read_back_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for index in range(2):
        with JsonlSink(path) as sink:
            sink(entry(float(index)))
        sink(entry(9.0))  # closed: nobody hears it
    assert list(read_entries(path)) == [entry(0.0), entry(1.0)]


def test_a_torn_last_line_is_left_out_and_other_damage_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JsonlSink(path) as sink:
        sink(entry(0.0))
        sink(entry(1.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert list(read_entries(path)) == [entry(0.0)]
    path.write_bytes(whole[:10] + b"\n" + whole[10:])
    with pytest.raises(DataError, match="line 1"):
        list(read_entries(path))


def test_files_are_merged_by_time_and_keep_their_order(tmp_path: Path) -> None:
    plan = {ANN: ["a1", "a2", "a3"], BOB: ["b1", "b2"]}
    for peer, reasons in plan.items():
        with JsonlSink(tmp_path / f"{peer}.jsonl") as sink:
            for index, reason in enumerate(reasons):
                sink(entry(float(index // 2), peer, reason))
    paths = [tmp_path / f"{peer}.jsonl" for peer in (BOB, ANN)] + [tmp_path / "missing.jsonl"]
    told = [each.event.reason for each in merge_entries(paths) if isinstance(each.event, ev.Alarm)]
    assert told == ["a1", "a2", "b1", "b2", "a3"]


def test_a_full_disk_silences_the_file_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with JsonlSink(full) as sink:
        sink(entry(0.0))
        sink(entry(1.0))
    (record,) = caplog.records
    assert "no more events are written" in record.getMessage()


@pytest.mark.parametrize("style", ["text", "json"])
def test_the_log_speaks_of_what_matters(style: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(style))  # type: ignore[arg-type]  # both literals are given
    logger = logging.Logger("test", logging.INFO)  # noqa: LOG001 - of this test alone
    logger.addHandler(handler)
    sink = LogSink(logger)
    sink(ev.Entry(at=0.0, peer=ANN, event=OPENED))
    sink(ev.Entry(at=0.0, peer=ANN, event=ev.Sourced(step=Step(0), slot=0, order=0)))  # type: ignore[arg-type]  # a plain int will do
    sink(entry(1.0, reason="look here"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    if style == "text":
        assert lines[0].endswith("INFO    serving stage 1 from version 0: a hole")
        assert lines[1].endswith("WARNING look here")
    else:
        first = json.loads(lines[0])
        assert (first["level"], first["entry"]["event"]["type"]) == ("info", "SeatOpened")


def test_errors_keep_their_trace_in_json() -> None:
    try:
        raise ValueError("deep down")  # noqa: TRY301 - an error with a trace is the point
    except ValueError as error:
        kind = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "it %s", ("broke",), kind)
    line = json.loads(formatter("json").format(record))
    assert line["text"] == "it broke"
    assert "deep down" in line["error"]
