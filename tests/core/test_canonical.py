"""Different values, or the same for another purpose, never share bytes."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from p2ptrain.core.canonical import canonical, digest
from p2ptrain.units import DIGEST_BYTES

Fields = list[bytes | str | int]
fields = st.lists(
    st.one_of(st.binary(max_size=4), st.text(max_size=4), st.integers(-9, 9)), max_size=4
)


@given(fields, fields)
@settings(max_examples=100, deadline=None)
def test_encoding_is_injective(
    one: list[bytes | str | int], other: list[bytes | str | int]
) -> None:
    same = [(type(v), v) for v in one] == [(type(v), v) for v in other]
    assert (canonical("test", *one) == canonical("test", *other)) == same


def test_domains_are_apart() -> None:
    assert canonical("bitmap", 1) != canonical("sum", 1)
    assert len(digest("bitmap", 1)) == DIGEST_BYTES


def test_bytes_are_pinned() -> None:
    """Signatures and chains of a running swarm depend on these bytes."""
    encoded = canonical("d", b"\x01", "é", -12, 1.5)
    assert encoded.hex() == (
        "7301000000646201000000017302000000c3a969030000002d31326608000000000000000000f83f"
    )
