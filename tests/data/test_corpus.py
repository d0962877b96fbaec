"""The corpus: disjoint splits, tokens by id alone, and a refusal of any other bytes."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.schedule import microbatch_samples
from p2ptrain.data.corpus import Split, corpus_from_bytes, load_corpus, pin, token_bytes, widen
from p2ptrain.errors import DataError
from p2ptrain.run import Batch, Data, Evaluation, Model, RunSpec, digest
from p2ptrain.units import Microbatch, Slot, Step

SPEC = RunSpec(
    model=Model(context=8),
    batch=Batch(sequences=3, microbatches=4),
    data=Data(source="text", held_out=0.1),
)
TEXT = bytes(index % 251 for index in range(8 * 200 + 1))


@given(st.integers(2, 3000), st.floats(0.0, 0.5))
def test_a_split_is_a_partition(samples: int, share: float) -> None:
    split = Split.of(samples, share)
    train = [split.train_sample(index) for index in range(split.train)]
    held = [split.held_sample(index) for index in range(split.held_out)]
    assert sorted(train + held) == list(range(samples))
    assert train == sorted(train)
    assert split.train >= 1
    assert (split.held_out > 0) == (share > 0)
    assert abs(split.held_out - samples * share) <= 1


def test_held_out_samples_lie_in_runs_all_over_the_corpus() -> None:
    split = Split.of(10_000, 0.02)
    held = [split.held_sample(index) for index in range(split.held_out)]
    runs = sum(after != before + 1 for before, after in itertools.pairwise(held)) + 1
    assert runs == 16
    assert held[0] < 1000
    assert held[-1] == 9999


def test_tokens_are_samples_of_the_bytes_and_follow_from_the_id_alone() -> None:
    corpus = corpus_from_bytes(SPEC, TEXT)
    work = Microbatch(Step(5), Slot(2))
    tokens = corpus.tokens(work)
    assert len(tokens) == 3 * (8 + 1)
    indices = microbatch_samples(SPEC, work, corpus.split.train, corpus.split.held_out)
    start = corpus.split.train_sample(indices[0]) * 8
    assert tokens[:9] == TEXT[start : start + 9]
    assert corpus_from_bytes(SPEC, TEXT).tokens(work) == tokens


def test_an_epoch_covers_every_training_sample_once() -> None:
    corpus = corpus_from_bytes(SPEC, TEXT)
    assert corpus.split.train == 180
    windows = []
    for step in range(180 // 12):
        for slot in range(4):
            tokens = corpus.tokens(Microbatch(Step(step), Slot(slot)))
            windows += [tokens[place : place + 9] for place in range(0, 27, 9)]
    places = [corpus.split.train_sample(index) * 8 for index in range(180)]
    assert sorted(windows) == sorted(TEXT[place : place + 9] for place in places)


def test_evaluation_takes_the_same_held_out_samples_every_time() -> None:
    corpus = corpus_from_bytes(SPEC, TEXT)
    slot = Slot(SPEC.batch.microbatches)
    assert corpus.tokens(Microbatch(Step(0), slot)) == corpus.tokens(Microbatch(Step(25), slot))
    held = {corpus.split.held_sample(index) * 8 for index in range(corpus.split.held_out)}
    tokens = corpus.tokens(Microbatch(Step(0), slot))
    assert {TEXT.index(tokens[place : place + 9]) for place in range(0, 27, 9)} <= {
        place % 251 for place in held
    }


def test_wide_vocabularies_take_wider_tokens() -> None:
    assert [token_bytes(size) for size in (256, 257, 65_536, 65_537)] == [1, 2, 2, 4]
    assert widen(b"\x01\xff", 4) == b"\x01\0\0\0\xff\0\0\0"
    wide = RunSpec(model=Model(context=8, vocab_size=1000), batch=SPEC.batch, data=SPEC.data)
    work = Microbatch(Step(0), Slot(0))
    tokens = corpus_from_bytes(wide, TEXT).tokens(work)
    assert tokens[::2] == corpus_from_bytes(SPEC, TEXT).tokens(work)
    assert not any(tokens[1::2])


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_reading_gives_the_bytes_that_are_there(offset: int, size: int) -> None:
    assert corpus_from_bytes(SPEC, TEXT).read(offset, size) == TEXT[offset : offset + size]


def test_pinning_settles_the_run_id_and_another_corpus_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    pinned = pin(SPEC, file)
    assert pinned.data.total_bytes == len(TEXT)
    assert pinned.data.file_count == 1
    assert digest(pinned) != digest(SPEC)
    assert pin(pinned, file) == pinned
    assert len(load_corpus(pinned, file)) == len(TEXT)

    file.write_bytes(TEXT[:-1])
    with pytest.raises(DataError, match=r"has 1600 bytes, this run trains on 1601"):
        load_corpus(pinned, file)
    file.write_bytes(TEXT[:-1] + b"!")
    with pytest.raises(DataError, match="right size but other bytes: root"):
        pin(pinned, file)
    (tmp_path / "more").write_bytes(b"x")
    with pytest.raises(DataError, match=r"has 2 files, this run trains on 1;"):
        load_corpus(pinned, tmp_path)


def test_bytes_pulled_from_peers_are_checked_too() -> None:
    pinned = RunSpec(
        model=SPEC.model, data=Data(source="text", root="0" * 64, total_bytes=1601, file_count=1)
    )
    with pytest.raises(DataError, match="other bytes"):
        corpus_from_bytes(pinned, TEXT)


def test_a_corpus_too_small_for_a_sample_is_refused() -> None:
    with pytest.raises(DataError, match="has 16 bytes: 17 are the least for a context of 8"):
        corpus_from_bytes(SPEC, TEXT[:16])
    assert corpus_from_bytes(SPEC, TEXT[:17]).split.held_out == 1
    alone = RunSpec(model=SPEC.model, evaluation=Evaluation(microbatches=0))
    assert corpus_from_bytes(alone, TEXT[:9]).split.train == 1


def test_the_default_run_trains_on_this_pythons_library() -> None:
    corpus = load_corpus(pin(RunSpec()))
    assert corpus.split.train > 10_000
    assert len(corpus.tokens(Microbatch(Step(0), Slot(0)))) == 4 * 129
