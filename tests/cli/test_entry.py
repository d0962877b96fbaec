"""The boundary: every error one line, and its exit code."""

import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from p2ptrain import cli
from p2ptrain.cli import entry
from p2ptrain.errors import BootstrapError, P2PTrainError, RefusedError, UnreachableError

Refused = Callable[..., str]


def test_help_needs_neither_torch_nor_hivemind() -> None:
    code = (
        "import sys; from p2ptrain import cli;"
        " assert not any(cli.run([*words, '--help']) for words in"
        " ([], ['peer'], ['simulate'], ['bootstrap'], ['status']));"
        " assert cli.run(['peer', '--initial-peers', 'nonsense']) == 2;"
        " print(sorted({'torch', 'hivemind', 'numpy', 'grpc', 'rich'} & set(sys.modules)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "without a coordinator" in output
    assert output.endswith("[]\n")


def test_the_module_is_the_command() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "p2ptrain", "nonsense"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.startswith("p2ptrain: no command 'nonsense'")


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setitem(entry.cli.commands, "fail", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BootstrapError("nobody"), 3),
        (RefusedError("another run"), 4),
        (UnreachableError("closed"), 5),
        (P2PTrainError("else"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("oops\nand more"), 1),
        (BrokenPipeError(), 1),
    ],
)
def test_errors_become_their_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
) -> None:
    failing(monkeypatch, error)
    assert cli.run(["fail"]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line]) <= 1


def test_what_is_known_about_an_error_is_told_with_it(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = P2PTrainError("it broke")
    error.add_note("its files: /here")
    failing(monkeypatch, error)
    assert refused("fail", code=1) == "p2ptrain: it broke; its files: /here"


def test_debugging_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PTRAIN_DEBUG", "1")
    for error in (ZeroDivisionError(), P2PTrainError()):
        failing(monkeypatch, error)
        with pytest.raises(type(error)):
            cli.run(["fail"])


def test_unknown_words_are_answered_with_the_nearest(refused: Refused) -> None:
    assert "no command 'simulat'; did you mean 'simulate'?" in refused("simulat")
    assert "--initial-peers" in refused("peer", "--inital-peers", "x")
    assert "p2ptrain peer --help" in refused("peer", "--inital-peers", "x")


@pytest.mark.parametrize("args", [[], ["config"]])
def test_no_command_at_all_is_answered_with_the_help(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The help keeps its lines."""
    assert entry.run(args) == 2
    assert "\nCommands:\n" in capsys.readouterr().err
