"""A verified corpus: the token ids of any microbatch, by its id alone.

A *sample* is ``context + 1`` consecutive bytes; samples begin every ``context`` bytes, so
every byte is predicted once. The held-out share is taken in runs of neighbouring samples,
spread evenly over the corpus: single held-out samples would lie between training samples
of the same paragraph, and one run at the end would judge a single file.

Invariants: training and held-out samples are disjoint and together all samples; equal
bytes and equal RunSpecs give equal tokens on every machine. A pinned corpus is checked
before the first token leaves it.

Refused: an index of shuffled samples (``core/schedule`` computes the permutation).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.schedule import is_evaluation, microbatch_samples
from p2ptrain.data.sources import gather
from p2ptrain.errors import DataError
from p2ptrain.run import Data, RunSpec, corpus_root

if TYPE_CHECKING:
    from pathlib import Path

    from p2ptrain.units import Microbatch

HELD_OUT_RUNS = 16
"""Enough places for a fair sample of the corpus, few enough that their edges do not count."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which of ``samples`` samples are held out: ``held_out`` of them, in even runs."""

    samples: int
    held_out: int
    train_starts: tuple[int, ...]
    held_starts: tuple[int, ...]
    regions: tuple[int, ...]

    @classmethod
    def of(cls, samples: int, share: float) -> Split:
        """Hold out ``share`` of ``samples``, one sample at least if the share is positive."""
        held = min(max(1, round(samples * share)), samples - 1) if share > 0 else 0
        runs = max(1, min(HELD_OUT_RUNS, held))
        regions = tuple(samples * run // runs for run in range(runs + 1))
        held_starts = tuple(held * run // runs for run in range(runs + 1))
        train_starts = tuple(
            region - start for region, start in zip(regions, held_starts, strict=True)
        )
        return cls(samples, held, train_starts, held_starts, regions)

    @property
    def train(self) -> int:
        """How many samples train."""
        return self.samples - self.held_out

    def train_sample(self, index: int) -> int:
        """The place in the corpus of training sample ``index``: each region begins with those."""
        region = bisect.bisect_right(self.train_starts, index) - 1
        return self.regions[region] + index - self.train_starts[region]

    def held_sample(self, index: int) -> int:
        """The place in the corpus of held-out sample ``index``: each region ends with those."""
        region = bisect.bisect_right(self.held_starts, index) - 1
        return self.regions[region + 1] - (self.held_starts[region + 1] - index)


class TextCorpus:
    """Implements ``ports.Corpus`` over bytes in memory, with a token per byte."""

    def __init__(self, spec: RunSpec, corpus: bytes) -> None:
        self._spec = spec
        self._corpus = corpus
        self._token_bytes = token_bytes(spec.model.vocab_size)
        samples = (len(corpus) - 1) // spec.model.context
        needed = 2 if spec.evaluation.microbatches else 1
        if samples < needed:
            raise DataError(
                f"the corpus has {len(corpus)} bytes: {needed * spec.model.context + 1} are the "
                f"least for a context of {spec.model.context}"
            )
        self.split = Split.of(samples, spec.data.held_out)

    def tokens(self, work: Microbatch) -> bytes:
        """Token ids of ``work``, as ``ports.Corpus`` says."""
        split, context = self.split, self._spec.model.context
        place = split.held_sample if is_evaluation(self._spec, work) else split.train_sample
        indices = microbatch_samples(self._spec, work, split.train, split.held_out)
        starts = [place(index) * context for index in indices]
        text = b"".join(self._corpus[start : start + context + 1] for start in starts)
        return widen(text, self._token_bytes)

    def read(self, offset: int, size: int) -> bytes:
        """Raw bytes ``offset`` .. ``offset + size`` of the corpus, fewer at its end."""
        return self._corpus[offset : offset + size]

    def __len__(self) -> int:
        """Bytes of the corpus."""
        return len(self._corpus)


def token_bytes(vocab_size: int) -> int:
    """Bytes that a token id takes on the wire, by the size of the vocabulary."""
    return 1 if vocab_size <= 1 << 8 else 2 if vocab_size <= 1 << 16 else 4


def widen(text: bytes, width: int) -> bytes:
    """Each byte as a little-endian integer of ``width`` bytes."""
    wide = bytearray(len(text) * width)
    wide[::width] = text
    return bytes(wide)


def load_corpus(spec: RunSpec, path: Path | None = None) -> TextCorpus:
    """Read the corpus of ``spec`` and verify it, if it is pinned.

    Raises:
        DataError: it is missing, too small, or not the corpus that is pinned.
    """
    gathered = gather(spec.data, path)
    if spec.data.root and spec.data.file_count != gathered.file_count:
        raise DataError(
            f"{_where(spec.data, path)} has {gathered.file_count} files, "
            f"this run trains on {spec.data.file_count}{_hint(spec.data)}"
        )
    return corpus_from_bytes(spec, gathered.corpus, where=_where(spec.data, path))


def corpus_from_bytes(spec: RunSpec, corpus: bytes, *, where: str = "the corpus") -> TextCorpus:
    """The corpus of ``spec`` from bytes that came from elsewhere (a file, other peers).

    Raises:
        DataError: they are not the bytes that ``spec`` pins.
    """
    data = spec.data
    if data.root and data.total_bytes != len(corpus):
        raise DataError(
            f"{where} has {len(corpus)} bytes, this run trains on {data.total_bytes}{_hint(data)}"
        )
    if data.root and (found := corpus_root(corpus)) != data.root:
        raise DataError(
            f"{where} has the right size but other bytes: root {found[:12]}..., "
            f"this run trains on {data.root[:12]}...{_hint(data)}"
        )
    return TextCorpus(spec, corpus)


def pin(spec: RunSpec, path: Path | None = None) -> RunSpec:
    """``spec`` with the manifest of the corpus at ``path``: now its run id is settled.

    Raises:
        DataError: as ``load_corpus``; also when ``spec`` pins another corpus, or has no sample.
    """
    if spec.data.root:
        load_corpus(spec, path)
        return spec
    gathered = gather(spec.data, path)
    data = msgspec.structs.replace(
        spec.data,
        file_count=gathered.file_count,
        total_bytes=len(gathered.corpus),
        root=corpus_root(gathered.corpus),
    )
    pinned = msgspec.structs.replace(spec, data=data)
    TextCorpus(pinned, gathered.corpus)  # nobody should begin a run that has no sample
    return pinned


def _where(data: Data, path: Path | None) -> str:
    return "the standard library of this Python" if data.source == "stdlib" else str(path)


def _hint(data: Data) -> str:
    if data.source == "stdlib":
        return "; the run was begun by another version of Python"
    return "; get the same files"
