"""Every event has words and a level."""

import logging
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2ptrain.observe import events as ev
from p2ptrain.observe.wording import describe, short
from p2ptrain.units import Chain, Digest, PeerId, RunId, Stage, Step


@settings(max_examples=100, deadline=None)
@given(st.one_of([st.from_type(kind) for kind in get_args(ev.AnyEvent)]))
def test_every_event_is_worded(event: ev.AnyEvent) -> None:
    level, words = describe(event)
    assert level in (logging.DEBUG, logging.INFO, logging.WARNING)
    assert words or isinstance(event, ev.Alarm)


@pytest.mark.parametrize(
    ("event", "level", "words"),
    [
        (
            ev.StepCommitted(
                epoch=0,
                stage=Stage(2),
                step=Step(7),
                chain=Chain(b""),
                digest=Digest(b""),
                cover=(),
                expected=b"",
                loss=1.23456,
                val_loss=None,
                skipped=True,
                tokens=1,
                seconds=0.51,
            ),
            logging.INFO,
            "step 7 stage 2  loss 1.2346  skipped  0.5 s",
        ),
        (
            ev.StepCommitted(
                epoch=0,
                stage=Stage(2),
                step=Step(8),
                chain=Chain(b""),
                digest=Digest(b""),
                cover=(),
                expected=b"",
                loss=None,
                val_loss=1.5,
                skipped=True,
                tokens=0,
                seconds=0.51,
            ),
            logging.INFO,
            "step 8 stage 2  val_loss 1.5000  0.5 s",
        ),
        (
            ev.Suspected(peer=PeerId("12D3KooWabcdef"), silent_seconds=5.04),
            logging.WARNING,
            "..abcdef is silent since 5.0 s",
        ),
        (
            ev.PeerStarted(run=RunId("r"), addresses=()),  # it may be the one that begins it
            logging.INFO,
            "taking part in run r",
        ),
        (ev.LinkUp(peer=PeerId("ann")), logging.DEBUG, "LinkUp: peer ann"),
    ],
)
def test_words(event: ev.AnyEvent, level: int, words: str) -> None:
    assert describe(event) == (level, words)


def test_short_names_stay() -> None:
    assert short("ann") == "ann"


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (9, "the run begins again at step 4, epoch 1; discarded: step 9 of epoch 0, chain 0a; why"),
        (3, "the run begins again at step 4, epoch 1; discarded: step 3 of epoch 0, chain 0a; why"),
        (0, "the run begins again at step 4, epoch 1; why"),  # a newcomer had nothing
    ],
)
def test_a_rollback_names_what_is_discarded_if_anything_is(left: int, words: str) -> None:
    event = ev.RolledBack(
        epoch=1,
        version=Step(4),
        chain=Chain(b"\x0b"),
        discarded_epoch=0,
        discarded_version=Step(left),
        discarded_chain=Chain(b"\x0a"),
        reason="why",
    )
    assert describe(event) == (logging.WARNING, words)
