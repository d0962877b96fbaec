import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.compute.codecs.packing import pack, packed_bytes, unpack

BITS = (8, 4, 3, 2)


@given(bits=st.sampled_from(BITS), data=st.data())
def test_codes_lie_side_by_side_and_come_back(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=70))
    expected = sum(code << index * bits for index, code in enumerate(codes))
    out = torch.full((packed_bytes(len(codes), bits),), 0xFF, dtype=torch.uint8)
    given_codes = torch.tensor(codes, dtype=torch.uint8)
    pack(given_codes, bits, out)
    assert bytes(out.tolist()) == expected.to_bytes(len(out), "little")
    assert unpack(out, bits, len(codes)).tolist() == codes
    assert given_codes.tolist() == codes


@pytest.mark.parametrize("bits", BITS)
def test_any_bytes_are_codes_below_the_bound_from_any_place(bits: int) -> None:
    stream = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    for start in range(8):
        part = stream[start : start + 24 * bits // 8]
        whole = int.from_bytes(bytes(part.tolist()), "little")
        codes = unpack(part, bits, 24).tolist()
        assert codes == [whole >> index * bits & (1 << bits) - 1 for index in range(24)]
