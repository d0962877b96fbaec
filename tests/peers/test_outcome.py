"""Outcomes: replicas must agree, and the stages must make a whole."""

from pathlib import Path

import msgspec
import pytest

from p2ptrain.core.digest import combine_digests
from p2ptrain.errors import InternalError
from peers.outcome import PeerOutcome, read_outcome, together


def outcome(peer: str, *, finished: bool = True, **tensors: str) -> PeerOutcome:
    return PeerOutcome(
        peer=peer,
        run="r",
        finished=finished,
        versions={int(name[1]): 9 for name in tensors},
        tensor_digests=tensors,
        chain="",
        false_suspicions=1,
        peak_rss_bytes=1,
    )


def test_agreeing_replicas_of_all_stages_make_one_digest() -> None:
    found = together([outcome("b", s0="x", s1="y"), outcome("a", s1="y")], stages=2)
    assert found.weights_digest == combine_digests({"s0": "x", "s1": "y"})
    assert found.disagreements == []
    assert found.replicas == (1, 2)
    assert found.finished == 2
    assert found.false_suspicions == 2


def test_replicas_that_disagree_are_named() -> None:
    found = together([outcome("a", s0="x"), outcome("b", s0="z"), outcome("c", s0="w")], stages=1)
    assert found.disagreements == ["s0"]


def test_a_stage_that_nobody_left_makes_no_whole() -> None:
    found = together([outcome("a", s0="x"), outcome("b", finished=False, s1="y")], stages=2)
    assert found.weights_digest is None
    assert found.finished == 1


def test_a_file_reads_back_and_a_missing_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert read_outcome(path) is None
    path.write_bytes(msgspec.json.encode(outcome("a", s0="x")))
    assert read_outcome(path) == outcome("a", s0="x")
    path.write_bytes(b"{}")
    with pytest.raises(InternalError, match=r"result\.json"):
        read_outcome(path)
