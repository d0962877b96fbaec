"""Progress: logs read as they grow, counted once, told in a line."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Digest, PeerId, RunId, Stage, Step
from peers.progress import Progress, Tail

A, B = PeerId("12D3KooWaaaaaa"), PeerId("12D3KooWbbbbbb")


def entry(event: ev.AnyEvent, peer: PeerId = A) -> ev.Entry:
    return ev.Entry(at=0.0, peer=peer, event=event)


def opened(stage: int) -> ev.SeatOpened:
    return ev.SeatOpened(stage=Stage(stage), version=Step(0), reason="hole")


def committed(step: int, loss: float | None, *, tokens: int = 1000) -> ev.StepCommitted:
    return ev.StepCommitted(
        epoch=0,
        stage=Stage(0),
        step=Step(step),
        chain=Chain(bytes(32)),
        digest=Digest(bytes(32)),
        cover=(),
        expected=b"",
        loss=loss,
        val_loss=2.5 if loss is None else None,
        skipped=False,
        tokens=tokens,
        seconds=1.0,
    )


def test_a_tail_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert list(tail.read()) == []
    lines = [msgspec.json.encode(entry(opened(stage))) + b"\n" for stage in range(2)]
    path.write_bytes(lines[0] + lines[1][:20])
    assert list(tail.read()) == [entry(opened(0))]
    assert list(tail.read()) == []
    path.write_bytes(lines[0] + lines[1])
    assert list(tail.read()) == [entry(opened(1))]


def test_a_foreign_line_is_an_error_and_not_silence(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"at": 1}\n')
    with pytest.raises(msgspec.DecodeError):
        list(Tail(path).read())


def test_each_step_counts_once_whoever_tells_it() -> None:
    progress = Progress(stages=2, steps=10)
    for step in range(3):
        for peer in (A, B):
            progress.feed(entry(committed(step, 3.0 - step), peer), now=float(step))
    assert progress.step == 2
    assert progress.loss == 1.0
    assert progress.tokens_per_second == pytest.approx(1000.0)


def test_the_rate_is_of_the_last_steps() -> None:
    progress = Progress(stages=1, steps=100)
    for step in range(30):
        tokens = 500 if step < 15 else 2000
        progress.feed(entry(committed(step, 2.0, tokens=tokens)), now=step * 2.0)
    assert progress.tokens_per_second == pytest.approx(1000.0)


def test_the_steps_taken_grow_between_commits_but_never_beyond_the_next() -> None:
    progress = Progress(stages=1, steps=100)
    assert progress.steps_taken(now=5.0) is None
    for step in range(3):
        progress.feed(entry(committed(step, 2.0)), now=step * 2.0)
    assert progress.steps_taken(now=4.0) == 3.0
    assert progress.steps_taken(now=5.0) == pytest.approx(3.5)
    assert 3.9 < (progress.steps_taken(now=60.0) or 0) < 4.0
    assert progress.longest_step_seconds() == 2.0


def test_before_the_first_step_arrivals_are_movement_and_afterwards_steps_alone() -> None:
    progress = Progress(stages=1, steps=100)
    started = ev.PeerStarted(run=RunId("r"), addresses=())
    progress.feed(entry(started), now=1.0)
    assert progress.moved_at == 1.0
    progress.feed(entry(committed(0, 2.0)), now=3.0)
    progress.feed(entry(started, B), now=5.0)
    progress.feed(entry(committed(0, 2.0), B), now=6.0)
    assert progress.moved_at == 3.0


def test_a_killed_peer_has_no_seats() -> None:
    progress = Progress(stages=1, steps=1)
    for peer in (A, B):
        progress.feed(entry(opened(0), peer), now=0.0)
    progress.feed(entry(ev.FaultFired(fault="kill", target=B), B), now=1.0)
    assert progress.seats() == (1,)


def test_seats_come_and_go() -> None:
    progress = Progress(stages=3, steps=1)
    for peer, stage in [(A, 0), (A, 1), (B, 1)]:
        progress.feed(entry(opened(stage), peer), now=0.0)
    assert progress.seats() == (1, 2, 0)
    progress.feed(entry(ev.SeatClosed(stage=Stage(1), reason="given away"), B), now=0.0)
    assert progress.seats() == (1, 1, 0)
    progress.feed(entry(ev.PeerStopped(reason="done")), now=0.0)
    assert progress.seats() == (0, 0, 0)


def test_the_line_and_the_table_tell_the_state() -> None:
    progress = Progress(stages=2, steps=10)
    progress.feed(entry(ev.PeerStarted(run=RunId("r"), addresses=())), now=0.0)
    assert progress.line() == "starting: 1 peers up, seats per stage 0/0"
    bounds = ev.Bounds(
        stage=Stage(0), queue=3, queue_bound=4, parked=0, parked_bound=9,
        retained_bytes=0, retained_bound=1,
    )  # fmt: skip
    for event in (opened(0), bounds, ev.Alarm(reason="disk full")):
        progress.feed(entry(event), now=0.0)
    progress.feed(entry(committed(0, 5.5)), now=0.0)
    progress.feed(entry(committed(1, None)), now=0.5)
    assert progress.line() == (
        "step 1/10  loss 5.500  val 2.500  2,000 tokens/s  seats 1/0  queued 3  busy answers 0"
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(progress.table())
    text = console.export_text()
    assert "step 1/10" in text
    assert "aaaaaa: disk full" in text
