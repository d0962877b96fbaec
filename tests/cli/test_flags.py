"""Flags: written as this audience writes them."""

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.cli.flags import Group, Size, option, pairs, spread


@click.group(cls=Group)
def tool() -> None:
    """Something to try."""


@tool.command()
@option("--initial-peers", "--join", multiple=True)
@option("--max-memory", type=Size())
def peer(*, initial_peers: tuple[str, ...], max_memory: int | None) -> None:
    """Print what was read."""
    click.echo(f"{list(initial_peers)} {max_memory}")


def read(*args: str, **environ: str) -> str:
    result = CliRunner().invoke(tool, ["peer", *args], env=environ)
    return result.output.strip()


def test_a_repeatable_flag_takes_several_values_at_once() -> None:
    assert read("--initial-peers", "a", "b", "--max-memory", "1", "--join", "c") == (
        "['a', 'b', 'c'] 1"
    )
    assert read("--join=a", "--join", "b") == "['a', 'b'] None"


def test_a_single_flag_does_not_swallow_what_follows() -> None:
    assert "unexpected extra argument" in read("--max-memory", "1", "2")


@given(st.lists(st.sampled_from(["--a x", "--a x y", "--b", "--b x", "--a=z", "y"])))
def test_spreading_keeps_every_value_and_is_done_once(words: list[str]) -> None:
    args = " ".join(words).split()
    once = spread(args, {"--a"}, {"--a"})
    assert spread(once, {"--a"}, {"--a"}) == once
    assert [arg for arg in once if arg in {"x", "y"}] == [arg for arg in args if arg in {"x", "y"}]


def test_a_flag_whose_value_was_an_empty_variable_is_named() -> None:
    with pytest.raises(click.UsageError, match="--join needs a value, but --run follows"):
        spread(["--join", "--run", "run.toml"], {"--join"}, {"--join", "--run"})
    with pytest.raises(click.UsageError, match="--run needs a value, but --join follows"):
        spread(["--run", "--join", "x"], {"--join"}, {"--join", "--run"})
    assert spread(["--seed", "-1"], set(), {"--seed"}) == ["--seed", "-1"]
    assert spread(["--run=", "--json"], set(), {"--run"}) == ["--run=", "--json"]


def test_the_environment_gives_what_the_flag_does_not() -> None:
    assert read(P2PTRAIN_INITIAL_PEERS="a b") == "['a', 'b'] None"
    assert read("--join", "c", P2PTRAIN_INITIAL_PEERS="a b") == "['c'] None"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("512MB", 512 * 10**6),
        ("16GiB", 16 << 30),
        ("1.5k", 1500),
        ("2 g", 2 * 10**9),
        ("7b", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert read("--max-memory", text) == f"[] {size}"


@pytest.mark.parametrize("text", ["much", "-1", "1ZB", "0x10", ""])
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    assert "write it like 512MB or 16GiB" in read("--max-memory", text)


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(tool, ["pear"])
    assert result.exit_code == 2
    assert "did you mean 'peer'?" in result.output
    assert "there are peer" in CliRunner().invoke(tool, ["zzz"]).output


def test_assignments_need_an_equals_sign() -> None:
    assert pairs(["a.b = 1", "c=x=y"]) == {"a.b": "1", "c": "x=y"}
    with pytest.raises(click.BadParameter, match="write it like"):
        pairs(["a.b"])
