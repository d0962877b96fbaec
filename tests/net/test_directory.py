"""The directory among liars: what bare DHT nodes plant must harm nobody."""

import time

import msgspec
import pytest

from p2ptrain.net.binding import DHTID
from p2ptrain.net.records import MICROSECONDS, SignedRecord, dht_expiry, sign

pytestmark = pytest.mark.net


def wall() -> float:
    return time.time()  # noqa: TID251 - records are about wall-clock time


def record(signer, key: str, value: bytes, *, age=0.0, lifetime=60.0) -> SignedRecord:
    issued = wall() - age
    blank = SignedRecord(
        value=value,
        sequence=int(issued * MICROSECONDS),
        expiry=issued + lifetime,
        addresses=(),
        signature=b"",
    )
    return sign(signer, DHTID.generate(source=key).to_bytes(), blank)


async def plant(laboratory, key: str, owner: str, found: SignedRecord, expiration=None) -> bool:
    """Store as a node without scruples; whether any node with our validator took it."""
    target = DHTID.generate(source=key)
    taken = await laboratory.plain.protocol.call_store(
        laboratory.plain.protocol.routing_table.get(node_id=node_of(laboratory.a)),
        keys=[target],
        values=[msgspec.msgpack.encode(found)],
        expiration_time=expiration or dht_expiry(found.sequence),
        subkeys=[owner],
    )
    return bool(taken and taken[0])


def hold(laboratory, key: str, owner: str, found: SignedRecord, expiration=None) -> None:
    """Let the bare node hold it, and tell everybody who asks."""
    laboratory.plain.protocol.storage.store_subkey(
        DHTID.generate(source=key),
        owner,
        msgspec.msgpack.encode(found),
        expiration or dht_expiry(found.sequence),
    )


def node_of(network) -> DHTID:
    return DHTID.generate(source=network.peer.encode())


def check(laboratory, key: str, expected: list[bytes]) -> None:
    async def values() -> list[bytes]:
        return [found.value for found in await laboratory.b.directory.read(key)]

    assert laboratory.run(values()) == expected


def honest(laboratory, key: str, value: bytes = b"honest") -> None:
    assert laboratory.run(laboratory.a.directory.store(key, value, lifetime=60))


def test_an_honest_record_by_a_bare_client_is_taken(laboratory):
    found = record(laboratory.plain_signer, "by hand", b"mine")
    assert laboratory.run(plant(laboratory, "by hand", laboratory.plain_signer.peer, found))
    check(laboratory, "by hand", [b"mine"])


def test_a_bare_client_can_read_our_records(laboratory):
    honest(laboratory, "public")
    found = laboratory.run(laboratory.plain.get("public", latest=True)).value
    fields = found[laboratory.a.peer].value
    assert fields["value"] == b"honest"
    assert list(laboratory.a.addresses()) == [
        f"{place}/p2p/{laboratory.a.peer}" for place in fields["addresses"]
    ]


FORGERIES = {
    "signed by another": lambda lab, key: (record(lab.plain_signer, key, b"evil"), None),
    "signed for another key": lambda lab, _: (record(lab.a.signer, "elsewhere", b"evil"), None),
    "value changed": lambda lab, key: (
        msgspec.structs.replace(record(lab.a.signer, key, b"good"), value=b"evil"),
        None,
    ),
    "unsigned": lambda lab, key: (
        msgspec.structs.replace(record(lab.a.signer, key, b"evil"), signature=b""),
        None,
    ),
    "kept for ever": lambda lab, key: (record(lab.a.signer, key, b"evil"), wall() + 1e9),
    "from tomorrow": lambda lab, key: (record(lab.a.signer, key, b"evil", age=-86400), None),
    "living for ever": lambda lab, key: (
        record(lab.a.signer, key, b"evil", lifetime=1e9),
        None,
    ),
    "oversized": lambda lab, key: (record(lab.a.signer, key, bytes(4097)), None),
    "of five megabytes": lambda lab, key: (record(lab.a.signer, key, bytes(5_000_000)), None),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused_and_the_owner_stays_readable(laboratory, name):
    honest(laboratory, name)
    found, expiration = FORGERIES[name](laboratory, name)
    assert not laboratory.run(plant(laboratory, name, laboratory.a.peer, found, expiration))
    check(laboratory, name, [b"honest"])


# An answer of megabytes costs a timeout, and the node that gave it is left alone for a while.
LIES = sorted(FORGERIES.keys() - {"of five megabytes"})


@pytest.mark.parametrize("name", LIES)
def test_a_liar_who_holds_a_forgery_hides_nothing(laboratory, name):
    key = f"held {name}"
    honest(laboratory, key)
    found, expiration = FORGERIES[name](laboratory, key)
    hold(laboratory, key, laboratory.a.peer, found, expiration)
    check(laboratory, key, [b"honest"])


def test_an_older_record_is_refused_where_a_newer_one_lies(laboratory):
    old = record(laboratory.a.signer, "replay", b"old")
    honest(laboratory, "replay", b"new")
    assert not laboratory.run(plant(laboratory, "replay", laboratory.a.peer, old))
    check(laboratory, "replay", [b"new"])


def test_a_reader_who_saw_a_newer_record_is_not_rolled_back(laboratory):
    owner = laboratory.plain_signer
    old, new = (record(owner, "rollback", value, age=age) for value, age in ((b"1", 9), (b"2", 3)))
    hold(laboratory, "rollback", owner.peer, new)
    check(laboratory, "rollback", [b"2"])
    del laboratory.plain.protocol.storage[DHTID.generate(source="rollback")]
    hold(laboratory, "rollback", owner.peer, old)
    check(laboratory, "rollback", [])


def test_an_expired_record_is_not_shown_and_hides_no_other(laboratory):
    honest(laboratory, "stale")
    stale = record(laboratory.plain_signer, "stale", b"stale", age=50, lifetime=10)
    assert laboratory.run(plant(laboratory, "stale", laboratory.plain_signer.peer, stale))
    check(laboratory, "stale", [b"honest"])


def test_a_record_past_every_lifetime_is_refused(laboratory):
    gone = record(laboratory.plain_signer, "gone", b"gone", age=200, lifetime=120)
    assert not laboratory.run(plant(laboratory, "gone", laboratory.plain_signer.peer, gone))
    check(laboratory, "gone", [])


def test_a_record_from_a_fast_clock_is_ignored_with_a_warning(laboratory, caplog):
    honest(laboratory, "clock")
    ahead = record(laboratory.plain_signer, "clock", b"ahead", age=-60)
    hold(laboratory, "clock", laboratory.plain_signer.peer, ahead)
    check(laboratory, "clock", [b"honest"])
    assert f"the clock of {laboratory.plain_signer.peer}" in caplog.text


def test_a_plain_value_cannot_pin_a_key(laboratory):
    stored = laboratory.run(
        laboratory.plain.protocol.call_store(
            laboratory.plain.protocol.routing_table.get(node_id=node_of(laboratory.a)),
            keys=[DHTID.generate(source="pin")],
            values=[msgspec.msgpack.encode("pinned")],
            expiration_time=wall() + 1e9,
        )
    )
    assert stored == [False]
    laboratory.plain.protocol.storage.store(
        DHTID.generate(source="pin"), msgspec.msgpack.encode("pinned"), wall() + 1e9
    )
    honest(laboratory, "pin")
    check(laboratory, "pin", [b"honest"])


def test_readers_learn_where_owners_are(laboratory):
    found = msgspec.structs.replace(
        record(laboratory.plain_signer, "where", b""), addresses=("/ip4/192.0.2.9/tcp/9",)
    )
    found = sign(laboratory.plain_signer, DHTID.generate(source="where").to_bytes(), found)
    hold(laboratory, "where", laboratory.plain_signer.peer, found)
    check(laboratory, "where", [b""])
    assert laboratory.b.known_addresses(laboratory.plain_signer.peer) == (
        f"/ip4/192.0.2.9/tcp/9/p2p/{laboratory.plain_signer.peer}",
    )


def test_a_liar_who_claims_to_know_the_latest_hides_nothing(laboratory):
    honest(laboratory, "latest")
    storage, key = laboratory.plain.protocol.storage, DHTID.generate(source="latest")
    ours = record(laboratory.plain_signer, "latest", b"ours")
    hold(laboratory, "latest", laboratory.plain_signer.peer, ours)
    storage.store(key, storage.get(key).value, float("inf"))
    values = {laboratory.plain_signer.peer: b"ours", laboratory.a.peer: b"honest"}
    check(laboratory, "latest", [values[owner] for owner in sorted(values)])
