import pytest
import torch

from p2ptrain.compute.codecs.rotation import rotated


@pytest.mark.parametrize("group", [1, 2, 8, 64])
def test_twice_is_nothing_and_lengths_stay(group: int) -> None:
    x_ng = torch.randn(5, group, generator=torch.Generator().manual_seed(1))
    y_ng = rotated(x_ng)
    torch.testing.assert_close(rotated(y_ng), x_ng)
    torch.testing.assert_close(y_ng.norm(dim=1), x_ng.norm(dim=1))


def test_an_outlier_is_spread_over_all() -> None:
    x_ng = torch.zeros(1, 64)
    x_ng[0, 17] = 8.0
    assert rotated(x_ng).abs().tolist() == [[1.0] * 64]
