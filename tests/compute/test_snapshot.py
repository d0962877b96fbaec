import pytest
import torch
from torch import Tensor

from p2ptrain.compute.snapshot import pack, raw_bytes, unpack
from p2ptrain.errors import MisbehaviourError


def state() -> dict[str, Tensor]:
    return {
        "weights/b": torch.arange(6.0).view(2, 3),
        "weights/a": torch.ones(3),
        "version": torch.tensor(5),
    }


def test_a_blob_gives_back_what_was_packed() -> None:
    found = unpack(bytearray(pack(state())), state())
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())


def test_equal_states_give_equal_bytes_in_any_order() -> None:
    assert pack(dict(reversed(state().items()))) == pack(state())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights/c": torch.ones(1)}, "has a foreign tensor 'weights/c'"),
        ({"weights/a": torch.ones(4)}, "'weights/a' is torch.float32 .4,."),
        ({"weights/a": torch.ones(3).double()}, "torch.float64"),
        ({"weights/a": torch.tensor([1.0, float("nan"), 1.0])}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(MisbehaviourError, match=reason):
        unpack(pack(state() | change), state())


def test_a_lacking_tensor_is_named() -> None:
    less = state()
    del less["weights/a"]
    with pytest.raises(MisbehaviourError, match="lacks tensor 'weights/a'"):
        unpack(pack(less), state())


@pytest.mark.parametrize("cut", [0, 7, 8, 40, -1])
def test_a_torn_blob_is_refused(cut: int) -> None:
    with pytest.raises(MisbehaviourError, match="cannot be read"):
        unpack(pack(state())[:cut], state())


def test_raw_bytes_are_in_row_order() -> None:
    assert raw_bytes(torch.tensor([[1.0, 2.0]]).t()) == bytes.fromhex("0000803f00000040")
