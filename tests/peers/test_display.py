"""The display: lines where there is no terminal, and never a flood of them."""

import io

from rich.console import Console

from p2ptrain.observe import events as ev
from p2ptrain.units import PeerId, Stage, Step
from peers.display import Display
from peers.progress import Progress


def plain() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=200, highlight=False), output


def opened(progress: Progress, peer: str) -> None:
    event = ev.SeatOpened(stage=Stage(0), version=Step(0), reason="hole")
    progress.feed(ev.Entry(at=0.0, peer=PeerId(peer), event=event), now=0.0)


def test_lines_are_told_when_something_changed_and_not_too_often() -> None:
    console, output = plain()
    progress = Progress(stages=1, steps=1)
    with Display(console=console) as display:
        for now in (0.0, 1.0, 3.0):
            display.show(progress, now=now)
        opened(progress, "a")
        for now in (4.0, 4.5, 6.0):
            display.show(progress, now=now)
        opened(progress, "b")
        display.show(progress, now=6.5)
        display.say("the end 3")
    seats = [line.rpartition(" ")[2] for line in output.getvalue().splitlines()]
    assert seats == ["0", "1", "2", "3"]


def test_what_is_said_is_printed_as_it_is() -> None:
    console, output = plain()
    with Display(console=console) as display:
        display.say("[bold]not markup[/bold]")
    assert output.getvalue() == "[bold]not markup[/bold]\n"


def test_a_terminal_gets_a_live_table_that_goes_away() -> None:
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True, legacy_windows=False)
    progress = Progress(stages=2, steps=1)
    with Display(console=console) as display:
        display.show(progress, now=0.0)
        display.say("kept")
    assert "kept" in output.getvalue()
    assert "\x1b[" in output.getvalue()
