"""A checkpoint is whole and of the run, stage and step that were asked for, or it is none."""

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core import checkpoint as c
from p2ptrain.core.agreement import Position
from p2ptrain.units import Chain, PeerId, RunId, Stage, Step

RUN, OTHER_RUN, STAGE = RunId("a" * 32), RunId("b" * 32), Stage(2)
STATE = bytes(range(256)) * 1024


def header(step: int = 40, *, run: RunId = RUN, stage: Stage = STAGE, epoch: int = 0) -> c.Header:
    return c.Header(
        format=c.FORMAT,
        run=run,
        stage=stage,
        at=Position(epoch=epoch, step=Step(step), chain=Chain(bytes(32))),
        members=((PeerId("ann"),), (PeerId("bob"), PeerId("cy"))),
        size_bytes=len(STATE),
        root=c.root(STATE),
    )


def names(*steps: int, run: RunId = RUN, stage: Stage = STAGE, epoch: int = 0) -> list[str]:
    return [
        c.name_of(run, stage, c.Mark(epoch, Step(step)), suffix)
        for step in steps
        for suffix in (c.STATE_SUFFIX, c.HEADER_SUFFIX)
    ]


def test_a_sealed_header_comes_back() -> None:
    assert c.admit(c.seal(header()), RUN, STAGE, c.Mark(0, Step(40))) == header()
    assert c.fits(header(), len(STATE), c.root(STATE))


def test_a_foreign_header_is_refused_with_what_it_is() -> None:
    mark = c.Mark(0, Step(40))
    assert "of stage 1" in str(c.admit(c.seal(header(stage=Stage(1))), RUN, STAGE, mark))
    assert OTHER_RUN in str(c.admit(c.seal(header(run=OTHER_RUN)), RUN, STAGE, mark))
    assert "of step 20" in str(c.admit(c.seal(header(20)), RUN, STAGE, mark))
    assert "of step 40" in str(c.admit(c.seal(header(epoch=1)), RUN, STAGE, mark))
    assert "bytes" in str(c.admit(b"", RUN, STAGE, mark))
    assert "bytes" in str(c.admit(bytes(c.HEADER_MOST_BYTES + 1), RUN, STAGE, mark))


@given(at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_of_a_header_is_seen(at: int, bit: int) -> None:
    sealed = bytearray(c.seal(header()))
    sealed[at % len(sealed)] ^= 1 << bit
    assert c.admit(sealed, RUN, STAGE, c.Mark(0, Step(40))) == "a torn header"


@given(size=st.integers(0, len(c.seal(header())) - 1))
def test_a_cut_header_is_seen(size: int) -> None:
    assert isinstance(c.admit(c.seal(header())[:size], RUN, STAGE, c.Mark(0, Step(40))), str)


def test_checkpoints_are_listed_newest_first_and_only_of_this_run() -> None:
    files = [
        *names(5, 40, 100),
        *names(7, stage=Stage(0)),
        *names(3, epoch=1),
        *names(200, run=OTHER_RUN),
        names(300)[0],  # a state whose header never came
        "peers.json",
    ]
    found = c.listed(files, RUN)
    assert list(found) == [0, 2]
    assert [(mark.epoch, mark.step) for mark in found[STAGE]] == [(1, 3), (0, 100), (0, 40), (0, 5)]


def test_two_stay_and_headers_go_first() -> None:
    gone = c.superseded(names(10, 20, 30), RUN, STAGE, c.Mark(0, Step(30)))
    assert gone == names(10)[::-1]


def test_what_lies_ahead_of_a_run_that_fell_back_goes_before_what_lies_behind() -> None:
    assert c.superseded(names(20, 30, 40), RUN, STAGE, c.Mark(0, Step(30))) == names(40)[::-1]
    assert c.superseded(names(30, 40), RUN, STAGE, c.Mark(0, Step(30))) == []


def test_states_without_headers_and_nothing_of_others_is_removed() -> None:
    files = [
        names(10)[0],
        *names(20),
        *names(5, run=OTHER_RUN),
        *names(5, stage=Stage(0)),
        "peers.json",
    ]
    assert c.superseded(files, RUN, STAGE, c.Mark(0, Step(20))) == [names(10)[0]]
