"""Torch as a peer has it: deterministic, on one thread."""

import pytest
import torch

from p2ptrain.compute.device import make_deterministic


@pytest.fixture(autouse=True, scope="package")
def deterministic() -> None:
    make_deterministic(torch.device("cpu"), 1)
