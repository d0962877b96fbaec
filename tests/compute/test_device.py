from typing import Literal

import pytest
import torch

from p2ptrain.compute.device import (
    arithmetic_class,
    choose_device,
    choose_threads,
    default_memory_bytes,
    make_deterministic,
)
from p2ptrain.errors import RefusedError, UserError
from p2ptrain.run import Arithmetic, RunSpec, Sync

CPU = torch.device("cpu")
CLASSES: tuple[tuple[int, Literal["float32", "bfloat16"]], ...] = (
    (1, "float32"),
    (2, "float32"),
    (1, "bfloat16"),
)


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu", RunSpec()) == CPU
    assert choose_device("auto", RunSpec(arithmetic=Arithmetic(device="cpu"))) == CPU
    assert default_memory_bytes(CPU) > 0


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x", "xla", ""])
def test_a_device_that_is_not_there_gets_one_line(name: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_device(name, RunSpec())
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_for_another_kind_of_device_refuses() -> None:
    with pytest.raises(RefusedError, match="--device cuda"):
        choose_device("cpu", RunSpec(arithmetic=Arithmetic(device="cuda")))


def test_a_run_pinned_to_another_torch_refuses_and_says_what_to_install() -> None:
    with pytest.raises(RefusedError, match=r"pip install torch==0\.1\.2"):
        choose_device("cpu", RunSpec(arithmetic=Arithmetic(torch="0.1.2")))
    version = torch.__version__.partition("+")[0]
    assert choose_device("cpu", RunSpec(arithmetic=Arithmetic(torch=version))) == CPU


def test_threads_and_type_make_another_class() -> None:
    classes = {
        arithmetic_class(RunSpec(arithmetic=Arithmetic(dtype=dtype)), CPU, threads)
        for threads, dtype in CLASSES
    }
    assert len(classes) == 3


def test_threads_of_its_own_take_a_run_that_lets_peers_differ() -> None:
    spec = RunSpec(arithmetic=Arithmetic(threads=3))
    assert choose_threads(None, spec) == choose_threads(3, spec) == 3
    with pytest.raises(RefusedError, match="computes with 3 threads everywhere"):
        choose_threads(2, spec)
    mixed = RunSpec(sync=Sync(agreement="canonical"))
    assert choose_threads(2, mixed) == 2


def test_deterministic_mode_sets_threads() -> None:
    make_deterministic(CPU, 1)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
