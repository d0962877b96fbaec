"""A root names exactly one list of chunks."""

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.core.merkle import (
    CHUNK_LEAST_BYTES,
    CHUNK_MOST_BYTES,
    chunk_size,
    chunks,
    leaf_digest,
    merkle_root,
)
from p2ptrain.units import Digest

blobs = st.lists(st.binary(min_size=1, max_size=4), max_size=12)


def root(parts: list[bytes]) -> Digest:
    return merkle_root([leaf_digest(part) for part in parts])


@given(blobs, blobs)
def test_two_lists_have_one_root_only_if_they_are_equal(one: list[bytes], two: list[bytes]) -> None:
    assert (root(one) == root(two)) == (one == two)


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=2))
def test_a_node_cannot_be_passed_off_as_a_leaf(pair: list[bytes]) -> None:
    inner = leaf_digest(b"".join(leaf_digest(part) for part in pair))
    assert root(pair) != merkle_root([inner])
    assert root(pair) != inner


@given(st.binary(max_size=50), st.integers(1, 10))
def test_chunks_tile_a_blob(blob: bytes, size: int) -> None:
    parts = [bytes(part) for part in chunks(memoryview(blob), size)]
    assert b"".join(parts) == blob
    assert all(len(part) == size for part in parts[:-1])
    assert all(parts)


@given(st.integers(0, 1 << 50))
def test_a_small_state_is_cut_finer_and_a_large_one_into_large_pieces(size: int) -> None:
    piece = chunk_size(size)
    assert CHUNK_LEAST_BYTES <= piece <= CHUNK_MOST_BYTES
    assert piece.bit_count() == 1
    if CHUNK_LEAST_BYTES * 16 <= size <= CHUNK_MOST_BYTES * 8:
        assert 8 <= -(-size // piece) <= 16


def test_the_root_is_pinned() -> None:
    # Snapshots made by another version must still verify: a change here is a new protocol.
    expected = "1620c43751c44109b0bcb153a8284f18498fa585cec698226ca6385580bfbbba"
    assert root([b"a", b"b", b"c"]).hex() == expected
