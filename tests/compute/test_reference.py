import json
import math
import os
import subprocess
import sys
from hashlib import blake2b

import msgspec
import pytest

from p2ptrain.compute.reference import StepReport, Training, train
from p2ptrain.core.sizes import microbatch_token_bytes
from p2ptrain.run import (
    Accumulator,
    Arithmetic,
    Batch,
    Bits,
    Codec,
    Composition,
    Cut,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
)
from p2ptrain.units import Microbatch

SPEC = RunSpec(
    model=Model(d_model=16, n_layers=4, n_heads=2, n_kv_heads=1, d_ff=24, context=8),
    cut=Cut(stages=4),
    batch=Batch(sequences=2, microbatches=4),
    optimizer=Optimizer(steps=6, warmup_steps=2),
    evaluation=Evaluation(every_steps=3, microbatches=2),
)


class Pattern:
    """A corpus that can be learnt: each microbatch counts up from a number of its own."""

    def tokens(self, work: Microbatch) -> bytes:
        start = blake2b(f"{work}".encode()).digest()[0]
        return bytes((start + i) % 16 for i in range(microbatch_token_bytes(SPEC)))

    def read(self, offset: int, size: int) -> bytes:
        raise NotImplementedError


def change(**parts: object) -> RunSpec:
    return msgspec.structs.replace(SPEC, **parts)


def test_it_learns_and_evaluates_when_the_schedule_says() -> None:
    seen: list[StepReport] = []
    result = train(SPEC, Pattern(), device="cpu", on_step=seen.append)
    assert tuple(seen) == result.steps
    assert [report.step for report in seen] == list(range(7))
    assert [report.step for report in seen if report.val_loss is not None] == [0, 3, 6]
    assert [report.step for report in seen if report.loss is None] == [6]
    first, last = seen[0].val_loss, seen[-1].val_loss
    assert first is not None
    assert last is not None
    assert last < first - 0.5
    assert result.tokens == 6 * 4 * 2 * 8


def test_steps_may_be_fewer() -> None:
    result = train(SPEC, Pattern(), steps=2, device="cpu")
    assert [report.step for report in result.steps] == [0, 1]


def test_without_compression_the_cut_does_not_change_the_weights() -> None:
    digests = {
        train(change(cut=cut, codec=Codec(name="fp32")), Pattern(), device="cpu").weights_digest
        for cut in (Cut(stages=1), Cut(stages=3), Cut(stages=4), Cut(stages=2, layers=(1, 3)))
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "parts",
    [
        {"seed": 1},
        {"codec": Codec(name="fp32")},
        {"accumulator": Accumulator(fraction_bits=20)},
        {"accumulator": Accumulator(dtype="int32")},
        {"arithmetic": Arithmetic(dtype="bfloat16")},
        {"optimizer": Optimizer(name="adamw", steps=6, warmup_steps=2)},
    ],
)
def test_what_the_spec_says_counts(parts: dict[str, object]) -> None:
    usual = train(SPEC, Pattern(), steps=2, device="cpu")
    other = train(change(**parts), Pattern(), steps=2, device="cpu")
    assert other.weights_digest != usual.weights_digest
    assert other.steps[1].loss == pytest.approx(usual.steps[1].loss, rel=0.2)


@pytest.mark.slow
def test_another_process_gets_the_same_bits() -> None:
    code = (
        "import json, runpy, sys; m = runpy.run_path(sys.argv[1]);"
        "r = m['train'](m['SPEC'], m['Pattern'](), device='cpu', steps=3);"
        "print(json.dumps([r.weights_digest, [s.loss for s in r.steps]]))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
        text=True,
    )
    here = train(SPEC, Pattern(), device="cpu", steps=3)
    losses = [report.loss for report in here.steps]
    assert json.loads(there.stdout) == [here.weights_digest, losses]


def narrow(anchor_order: int, bits: Bits = 16) -> RunSpec:
    """Cut in two, with a bottleneck between."""
    latents = Composition(
        name="latents",
        width=8,
        anchor_order=anchor_order,  # type: ignore[arg-type]
        mean=bits < 16,  # of integers alone
        forward=((0, bits),),
        backward=((0, bits),),
    )
    return change(
        cut=Cut(stages=2),
        codec=Codec(name="latents", compositions=(latents,)),
        optimizer=Optimizer(steps=30, warmup_steps=2),
        evaluation=Evaluation(every_steps=0, microbatches=4),
    )


def test_a_run_that_was_saved_goes_on_as_if_it_had_not_stopped() -> None:
    whole = train(narrow(2), Pattern(), steps=4, device="cpu")
    first, second = (Training(narrow(2), Pattern(), device="cpu") for _ in range(2))
    reports = [first.step(), first.step()]
    second.load(first.save())
    reports += [second.step(), second.step()]
    assert tuple(reports) == whole.steps
    assert second.weights_digest() == whole.weights_digest
    assert second.version == 4


def last_loss(spec: RunSpec, *, severed: bool) -> float:
    training = Training(spec, Pattern(), device="cpu", severed=severed)
    *_, last = (training.step() for _ in range(31))
    assert last.val_loss is not None
    return last.val_loss


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_without_a_wire_a_run_is_worse_than_with_a_codec(bits: Bits) -> None:
    """Sixteen equally frequent tokens, each of which tells the next."""
    blind, seeing = (last_loss(narrow(0, bits), severed=severed) for severed in (True, False))
    assert blind > 0.95 * math.log(16)
    assert seeing < blind - 0.4


def test_without_a_wire_a_run_has_what_its_anchors_tell() -> None:
    blind = last_loss(narrow(0), severed=True)
    assert last_loss(narrow(1), severed=True) < blind - 0.4


def test_a_severed_run_reads_no_boundary_and_a_whole_one_reads_all() -> None:
    for severed, boundaries in ((False, [0]), (True, [])):
        training = Training(narrow(1), Pattern(), device="cpu", severed=severed)
        training.step()
        assert [reading.boundary for reading in training.readings()] == boundaries


def test_a_bottleneck_is_part_of_the_model_so_the_cut_is_too() -> None:
    digests = {
        train(
            msgspec.structs.replace(narrow(1), cut=cut), Pattern(), steps=1, device="cpu"
        ).weights_digest
        for cut in (Cut(stages=2), Cut(stages=3))
    }
    assert len(digests) == 2
