"""A program's words when nobody listens, or nothing can be written."""

import errno
import logging

import pytest

from p2ptrain.observe.voice import Voice


class Output:
    """Takes ``lines``; after ``last`` it fails as ``error``."""

    def __init__(self, error: OSError, *, last: int = 1) -> None:
        self.error, self.last = error, last
        self.lines: list[str] = []
        self.tries = 0

    def __call__(self, text: str) -> None:
        self.tries += 1
        if len(self.lines) >= self.last:
            raise self.error
        self.lines.append(text)


def test_a_reader_who_left_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    voice, left = Voice(output), []
    voice.when_unheard(lambda: left.append(True))
    for text in ("first", "second", "third"):
        voice.say(text)
    assert output.lines == ["first"]
    assert output.tries == 2
    assert left == [True]
    assert capsys.readouterr().err == "p2ptrain: nobody reads our output any more: leaving\n"


def test_who_asks_later_is_told_at_once() -> None:
    voice, left = Voice(Output(BrokenPipeError(), last=0)), []
    voice.say("too late")
    voice.when_unheard(lambda: left.append(True))
    assert left == [True]


def test_a_full_disk_silences_but_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(OSError(errno.ENOSPC, "No space left on device"))
    voice, left = Voice(output), []
    voice.when_unheard(lambda: left.append(True))
    for text in ("first", "second", "third"):
        voice.say(text)
    assert left == []
    assert output.tries == 2
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_the_log_goes_the_same_way() -> None:
    output = Output(OSError(errno.EIO, "Input/output error"))
    voice = Voice(output)
    voice.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    for _ in range(3):
        voice.handle(logging.makeLogRecord({"levelname": "WARNING", "msg": "careful"}))
    assert output.lines == ["WARNING careful"]
    assert output.tries == 2
