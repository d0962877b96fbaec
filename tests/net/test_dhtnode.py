"""Our validator: what it lets into storage, what it believes, and its bound."""

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.net import dhtnode, records
from p2ptrain.net.binding import DHTRecord
from p2ptrain.net.dhtnode import RecordValidator
from p2ptrain.net.identity import Ed25519Signer

NOW = 1_800_000_000.0
OWNER = Ed25519Signer(Ed25519PrivateKey.generate())


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def dht_record(key: bytes = b"key", *, issued: float = NOW) -> DHTRecord:
    blank = records.SignedRecord(
        value=b"value",
        sequence=int(issued * records.MICROSECONDS),
        expiry=issued + 60,
        addresses=(),
        signature=b"",
    )
    signed = records.sign(OWNER, key, blank)
    return DHTRecord(
        key,
        msgspec.msgpack.encode(OWNER.peer),
        records.encode(signed),
        records.dht_expiry(signed.sequence),
    )


def test_a_good_record_is_stored_and_believed():
    assert RecordValidator(OWNER, Clock()).validate(dht_record())


@settings(max_examples=60)
@given(st.binary(max_size=30), st.binary(max_size=60), st.binary(max_size=200), st.floats())
def test_nothing_else_is_and_nothing_raises(key, subkey, value, expiration):
    judge = RecordValidator(OWNER, Clock())
    good = dht_record()
    assert not judge.validate(DHTRecord(key, subkey, value, expiration))
    assert not judge.validate(DHTRecord(good.key, subkey, good.value, good.expiration_time))


def test_a_record_from_the_future_is_not_stored_but_its_bearer_is_believed():
    judge, ahead = RecordValidator(OWNER, Clock()), dht_record(issued=NOW + 40)
    assert not judge.validate(ahead)
    token = dhtnode.reading.set(True)
    assert judge.validate(ahead)
    dhtnode.reading.reset(token)


def test_what_is_kept_is_bounded_and_room_returns_as_records_expire(monkeypatch, caplog):
    monkeypatch.setattr(dhtnode, "MAX_RECORDS", 3)
    clock = Clock()
    judge = RecordValidator(OWNER, clock)
    assert all(judge.validate(dht_record(bytes([key]))) for key in range(3))
    assert judge.validate(dht_record(bytes([0]), issued=NOW + 1)), "a newer one takes no room"
    assert not judge.validate(dht_record(b"\x03"))
    assert "3 records are kept already" in caplog.text
    clock.now = NOW + 121.5
    assert judge.validate(dht_record(b"\x03", issued=clock.now))
