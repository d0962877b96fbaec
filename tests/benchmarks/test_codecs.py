"""The table's bytes are those of frames, and a codec that does not fit is named, not skipped."""

import pytest

from benchmarks.codecs import BOUNDARY, best_seconds, measure, spec_of, stage_seconds
from p2ptrain.errors import RunSpecError
from p2ptrain.run.codecs import RATIOS, composition_of
from p2ptrain.run.frames import DIRECTIONS, most_frame_bytes


@pytest.mark.parametrize("name", ["none", "bf16", "int8", "int4", "b32x", "b64x"])
def test_every_row_keeps_what_its_codec_promises(name: str) -> None:
    spec = spec_of(name, width=256, tokens=1024, vocabulary=256)
    for direction in DIRECTIONS:
        row = measure(spec, direction, repeats=1)
        bound = most_frame_bytes(spec, composition_of(spec, BOUNDARY), BOUNDARY, direction)
        assert bound - 30 <= row.frame_bytes <= bound
        assert row.ratio_vs_fp32 == pytest.approx(2 * row.ratio_vs_bf16)
        assert row.ratio_vs_bf16 >= RATIOS.get(name, 0.4)
        assert (row.error == 0.0) == (name == "none")


def test_a_model_too_narrow_is_refused() -> None:
    with pytest.raises(RunSpecError, match="b256x"):
        spec_of("b256x", width=256, tokens=1024, vocabulary=256)


def test_the_best_of_several_is_taken_after_one_to_warm_up() -> None:
    calls: list[int] = []
    assert best_seconds(lambda: calls.append(1), repeats=3) >= 0.0
    assert len(calls) == 4


def test_a_layer_is_timed_up_and_down() -> None:
    assert stage_seconds(spec_of("none", width=64, tokens=64, vocabulary=256)) > 0.0
