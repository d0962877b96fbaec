"""Snapshots that fit themselves, and which of several most owners give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from p2ptrain.core.merkle import leaf_digest, merkle_root
from p2ptrain.core.transfer import Snapshot, most_given
from p2ptrain.units import Chain, Digest, PeerId, Step

LEAVES = tuple(leaf_digest(bytes((index,))) for index in range(3))
SOUND = Snapshot(
    epoch=0,
    version=Step(3),
    chain=Chain(b"c" * 32),
    size_bytes=25,
    chunk_bytes=10,
    leaves=LEAVES,
    root=merkle_root(LEAVES),
)


def test_the_last_chunk_is_what_is_left() -> None:
    assert SOUND.sound
    assert [SOUND.bytes_of(index) for index in range(3)] == [10, 10, 5]


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 0},
        {"size_bytes": 31},
        {"chunk_bytes": 0},
        {"leaves": LEAVES[:2]},
        {"root": Digest(bytes(32))},
    ],
)
def test_what_does_not_fit_itself_is_not_sound(change: dict[str, object]) -> None:
    assert not replace(SOUND, **change).sound  # type: ignore[arg-type]  # one field each


def test_the_most_given_and_of_equals_the_newest() -> None:
    newer = replace(SOUND, version=Step(4))
    ann, bob, eve = PeerId("ann"), PeerId("bob"), PeerId("eve")
    assert most_given({}) is None
    assert most_given({ann: SOUND, bob: newer}) == newer
    assert most_given({ann: SOUND, bob: newer, eve: SOUND}) == SOUND
