"""Directory records: owned, signed, short-lived, and ordered, whoever stores them.

Intuition: hivemind's DHT keeps, of two values under one subkey, the one that expires later,
everywhere: in its storage, its hand-overs and its searches. So the DHT's expiry is not the
record's own: it is a function of the *sequence* (issue time plus ``MAX_LIFETIME_SECONDS``).
"Expires later" then means "is newer", and a signed record cannot be pinned, stretched or
rolled back by whoever passes it on. The record's own ``expiry`` is checked by readers.

Invariants: an accepted record names its owner as subkey, is signed by that owner over key,
owner, sequence, expiry, addresses and value, fits into ``MAX_RECORD_BYTES``, and leaves
every store ``MAX_LIFETIME_SECONDS`` (and a clock's skew) after it was issued.

Two kinds of fault are told apart. A *forgery* can come only from a liar, so hivemind drops
the liar's whole answer. An *untimely* record (expired, from the future, older than one
already seen) also occurs at honest nodes, so readers drop only that record: otherwise one
stale record would hide all others under its key.

Refused: hivemind's RSA validator (356 bytes more, unowned records pass) and its schema
validator (pydantic 1). Owner addresses ride along, so whoever reads a record can dial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from p2ptrain.ports import Signer
    from p2ptrain.units import Seconds

MAX_VALUE_BYTES: Final = 4096  # the whole swarm's records must fit into small peers
MAX_RECORD_BYTES: Final = MAX_VALUE_BYTES + 1024  # addresses, signature, names of the fields
MAX_LIFETIME_SECONDS: Final = 120.0  # a dead peer's record must not outlive its use
MAX_SKEW_SECONDS: Final = 30.0  # more is a broken clock; its owner is warned
MAX_ADDRESSES: Final = 8
MICROSECONDS: Final = 1_000_000
_DOMAIN: Final = "p2ptrain record 1"  # no signature of ours means anything elsewhere


class Forged(Exception):  # noqa: N818 - it names what the record is
    """No honest node of ours would hold this record; the text says why."""


class SignedRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What lies in the DHT. ``sequence``: microseconds since 1970 at issue; ``expiry``: seconds."""

    value: bytes
    sequence: int
    expiry: float
    addresses: tuple[str, ...]
    signature: bytes


_decode = msgspec.msgpack.Decoder(SignedRecord).decode
_decode_owner = msgspec.msgpack.Decoder(str).decode


def dht_expiry(sequence: int) -> Seconds:
    """The expiry under which the DHT must keep a record of this sequence."""
    return sequence / MICROSECONDS + MAX_LIFETIME_SECONDS


def _signed_bytes(key: bytes, owner: PeerId, record: SignedRecord) -> bytes:
    return msgspec.msgpack.encode(
        (_DOMAIN, key, owner, record.sequence, record.expiry, record.addresses, record.value)
    )


def sign(signer: Signer, key: bytes, record: SignedRecord) -> SignedRecord:
    """Return ``record`` with the signature of ``signer`` as its owner under ``key``."""
    signature = signer.sign(_signed_bytes(key, signer.peer, record))
    return msgspec.structs.replace(record, signature=signature)


def owner_of(subkey: bytes) -> PeerId:
    """Decode a subkey as the DHT carries it.

    Raises:
        Forged: it is no text.
    """
    try:
        return PeerId(_decode_owner(subkey))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Forged("unowned") from error


def encode(record: SignedRecord) -> bytes:
    """The bytes that lie in the DHT: a msgpack map, readable for anybody."""
    return msgspec.msgpack.encode(record)


def decode(raw: bytes) -> SignedRecord:
    """Decode the bytes that lie in the DHT.

    Raises:
        Forged: too large, or not a record.
    """
    if len(raw) > MAX_RECORD_BYTES:
        raise Forged(f"{len(raw)} bytes are too large")
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Forged("not a signed record") from error


def authenticate(
    verifier: Signer, *, key: bytes, owner: PeerId, record: SignedRecord, expiration: Seconds
) -> None:
    """Check everything about ``record`` that no clock decides.

    ``expiration``: what the DHT was told.

    Raises:
        Forged: with the reason.
    """
    if len(record.value) > MAX_VALUE_BYTES or len(record.addresses) > MAX_ADDRESSES:
        raise Forged("too large")
    if expiration != dht_expiry(record.sequence):
        raise Forged("kept longer or shorter than its sequence says")
    if not record.expiry <= dht_expiry(record.sequence):
        raise Forged("too long-lived")
    if not verifier.verify(owner, _signed_bytes(key, owner, record), record.signature):
        raise Forged("not signed by its owner")


def is_from_the_future(record: SignedRecord, *, now: Seconds) -> bool:
    """Whether the record was issued after ``now`` by more than clocks may differ."""
    return record.sequence / MICROSECONDS > now + MAX_SKEW_SECONDS


def is_expired(record: SignedRecord, *, now: Seconds) -> bool:
    """Whether its owner wants the record forgotten by ``now``."""
    return record.expiry <= now
