"""Records: whatever is changed after signing is a forgery."""

import math
from contextlib import suppress

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.net import records
from p2ptrain.net.identity import Ed25519Signer
from p2ptrain.net.records import Forged, SignedRecord

OWNER = Ed25519Signer(Ed25519PrivateKey.generate())
OTHER = Ed25519Signer(Ed25519PrivateKey.generate())
KEY = b"k" * 20
NOW = 1_800_000_000.0


def signed(value: bytes = b"value", *, issued: float = NOW, lifetime: float = 60.0) -> SignedRecord:
    blank = SignedRecord(
        value=value,
        sequence=int(issued * records.MICROSECONDS),
        expiry=issued + lifetime,
        addresses=("/ip4/203.0.113.7/tcp/1",),
        signature=b"",
    )
    return records.sign(OWNER, KEY, blank)


def authenticate(record: SignedRecord, **changes) -> None:
    given_ = {"key": KEY, "owner": OWNER.peer, "expiration": records.dht_expiry(record.sequence)}
    records.authenticate(OTHER, record=record, **(given_ | changes))


@given(st.binary(max_size=4096), st.floats(0, 4e9), st.floats(0.001, 120))
def test_an_honest_record_survives_the_wire_and_is_authentic(value, issued, lifetime):
    record = signed(value, issued=issued, lifetime=lifetime)
    # at the edge, rounding may put the own expiry a hair above the DHT's
    expiry = min(record.expiry, records.dht_expiry(record.sequence))
    record = records.sign(OWNER, KEY, msgspec.structs.replace(record, expiry=expiry))
    raw = records.encode(record)
    assert len(raw) <= records.MAX_RECORD_BYTES
    assert records.decode(raw) == record
    authenticate(records.decode(raw))


CHANGES = {
    "value": b"other",
    "sequence": int(NOW * records.MICROSECONDS) + 1,
    "expiry": NOW + 61,
    "addresses": (),
    "signature": bytes(64),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_a_forgery(field):
    changed = msgspec.structs.replace(signed(), **{field: CHANGES[field]})
    with pytest.raises(Forged, match="not signed by its owner"):
        authenticate(changed)


@pytest.mark.parametrize("changes", [{"key": b"other"}, {"owner": OTHER.peer}, {"owner": "nobody"}])
def test_a_record_belongs_to_its_key_and_owner(changes):
    with pytest.raises(Forged):
        authenticate(signed(), **changes)


@pytest.mark.parametrize("expiration", [NOW + 119, NOW + 121, math.inf, math.nan, -math.inf])
def test_the_dht_may_keep_it_exactly_as_long_as_its_sequence_says(expiration):
    with pytest.raises(Forged, match="kept longer or shorter"):
        authenticate(signed(), expiration=expiration)


@pytest.mark.parametrize("lifetime", [121, math.inf, math.nan])
def test_no_owner_can_sign_a_record_that_lives_too_long(lifetime):
    with pytest.raises(Forged, match="too long-lived"):
        authenticate(signed(lifetime=lifetime))


def test_too_much_is_too_large():
    with pytest.raises(Forged, match="too large"):
        authenticate(signed(bytes(4097)))
    with pytest.raises(Forged, match="too large"):
        records.decode(bytes(records.MAX_RECORD_BYTES + 1))
    many = msgspec.structs.replace(signed(), addresses=("/ip4/1.1.1.1/tcp/1",) * 9)
    with pytest.raises(Forged, match="too large"):
        authenticate(records.sign(OWNER, KEY, many))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_forgery(raw):
    for read in (records.decode, records.owner_of):
        with suppress(Forged):
            assert read(raw) is not None


def test_unknown_fields_are_refused():
    fields = msgspec.structs.asdict(signed()) | {"more": 1}
    with pytest.raises(Forged):
        records.decode(msgspec.msgpack.encode(fields))


def test_time_is_judged_apart():
    record = signed()
    assert not records.is_from_the_future(record, now=NOW - 29)
    assert records.is_from_the_future(record, now=NOW - 31)
    assert not records.is_expired(record, now=NOW + 59)
    assert records.is_expired(record, now=NOW + 60)
