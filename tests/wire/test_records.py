"""Directory values are strict, bounded, and fit."""

import math

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.errors import WireError
from p2ptrain.units import RunId, Step
from p2ptrain.wire.records import (
    ADDRESS_CHARACTERS_MOST,
    ADDRESSES_MOST,
    NAME_CHARACTERS_MOST,
    RUNS_MOST,
    CommitRecord,
    Record,
    RunEntry,
    RunsRecord,
    SeatRecord,
    decode_record,
    encode_record,
)


def seat(**changes: object) -> SeatRecord:
    plain = SeatRecord(state="serving", version=Step(3), rate=1.5, queue=0, incarnation=1)
    return msgspec.structs.replace(plain, **changes)


def test_the_largest_records_that_pass_fit_the_directory() -> None:
    widest = seat(addresses=("a" * ADDRESS_CHARACTERS_MOST,) * ADDRESSES_MOST, rate=1e9)
    runs = RunsRecord(
        runs=(RunEntry(run=RunId("f" * 64), name="n" * NAME_CHARACTERS_MOST),) * RUNS_MOST
    )
    for record in (widest, runs):
        value = encode_record(record)
        assert len(value) <= 4096
        assert decode_record(value, type(record)) == record


@pytest.mark.parametrize(
    "record",
    [
        seat(rate=math.nan),
        seat(rate=-1.0),
        seat(version=-1),
        seat(queue=2**63),
        seat(addresses=("a",) * (ADDRESSES_MOST + 1)),
        seat(addresses=("a" * (ADDRESS_CHARACTERS_MOST + 1),)),
        RunsRecord(runs=(RunEntry(run=RunId("../etc"), name="x"),)),
        RunsRecord(runs=(RunEntry(run=RunId("feed"), name="\x1b[2J"),)),
        RunsRecord(runs=(RunEntry(run=RunId("feed"), name="x"),) * (RUNS_MOST + 1)),
    ],
)
def test_values_out_of_range_are_refused(record: Record) -> None:
    with pytest.raises(WireError):
        decode_record(encode_record(record), type(record))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100), st.sampled_from([SeatRecord, CommitRecord, RunsRecord]))
def test_noise_is_refused(noise: bytes, kind: type[Record]) -> None:
    with pytest.raises(WireError):
        decode_record(noise, kind)


def test_unknown_fields_are_refused() -> None:
    value = msgspec.msgpack.encode({**msgspec.to_builtins(seat()), "trust": "me"})
    with pytest.raises(WireError, match="trust"):
        decode_record(value, SeatRecord)
