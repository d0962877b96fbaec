"""The rules of style that a linter does not know, as tests. Each names every offender."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("p2ptrain", "peers", "bootstrap")

MAX_FILE_LINES = 320
"""300 is the aim; the rest is room for a last docstring."""

MAX_FUNCTION_LINES = 60
"""One screen."""

FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "marshal", "shelve", "multiprocessing"}

FORBIDDEN_ATTRIBUTES = {
    "torch.load",
    "numpy.load",
    "os.fork",
    "asyncio.create_task",
    "asyncio.ensure_future",
    "loop.run_until_complete",
    "loop.create_task",
}

LONG_FILES = {
    "p2ptrain/core/custody.py": "one machine, all its transitions in one file",
    "p2ptrain/core/download.py": "one machine, all its transitions in one file",
    "p2ptrain/core/step.py": "one machine, all its transitions in one file",
    "p2ptrain/observe/events.py": "one vocabulary, a few lines an event",
    "p2ptrain/wire/messages.py": "one vocabulary, a few lines a message",
    "p2ptrain/ports.py": "one vocabulary, mostly promises in prose",
}

BROAD_EXCEPT_ALLOWED = {
    "p2ptrain/cli/entry.py",  # the last line before the user: a traceback becomes one sentence
}

WITHOUT_TEST_OF_THEIR_OWN = {
    "p2ptrain/units.py",  # names of types
    "p2ptrain/errors.py",  # a tree of names; tests/test_cli.py checks the exit codes
    "p2ptrain/ports.py",  # promises; tests/contracts holds the implementations to them
    "p2ptrain/core/duties.py",  # values; tests/core/test_custody.py feeds every one
    "p2ptrain/core/agreement.py",  # values; their legality is tested in core/step and wire
    "p2ptrain/engine/post.py",  # a Protocol; tests/engine/test_mail.py tests what implements it
    "p2ptrain/engine/surroundings.py",  # values; every seat of tests/engine is made of them
    "p2ptrain/engine/terms.py",  # values; every node of tests/engine and tests/sim lives by them
    "p2ptrain/net/binding.py",  # names taken from hivemind; all of tests/net uses them
    "p2ptrain/wire/messages.py",  # values; tests/wire/test_framing.py round-trips each
}

COVERED_ELSEWHERE = {
    "p2ptrain/run": "tests/test_run.py",  # one subject, one file
}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Every module of the three packages, parsed, by its path from the root."""
    files = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {
        file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(), str(file)) for file in files
    }


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_there_is_something_to_check() -> None:
    assert len(sources()) > 10


def test_every_module_opens_with_its_purpose() -> None:
    assert [name for name, tree in sources().items() if not ast.get_docstring(tree)] == []


def test_every_module_worth_the_name_says_more_than_one_line() -> None:
    short = [
        name
        for name, tree in sources().items()
        if not name.endswith(("__init__.py", "__main__.py"))
        and len((ast.get_docstring(tree) or "").splitlines()) < 3
    ]
    assert short == []


def test_files_fit_in_the_head() -> None:
    lengths = {name: (ROOT / name).read_text().count("\n") for name in sources()}
    long = {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}
    assert {name: long[name] for name in long.keys() - LONG_FILES.keys()} == {}
    assert LONG_FILES.keys() - long.keys() == set(), "no longer long: take it off the list"


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{name}:{node.lineno} {node.name}": length
        for name, tree in sources().items()
        for node in functions(tree)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_no_drawer_for_odds_and_ends() -> None:
    assert [name for name in sources() if Path(name).name in FORBIDDEN_NAMES] == []


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return set()


def test_nothing_unpickles_forks_or_starts_a_task_outside_a_group() -> None:
    offenders = [
        f"{name}:{getattr(node, 'lineno', 0)}"
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if imported(node) & FORBIDDEN_IMPORTS or dotted(node) in FORBIDDEN_ATTRIBUTES
    ]
    assert offenders == []


def broad(handler: ast.ExceptHandler) -> bool:
    """Whether it swallows everything; cleaning up and raising again is fine."""
    names = {dotted(node) for node in ast.walk(handler.type)} if handler.type else {"Exception"}
    last = handler.body[-1]
    again = isinstance(last, ast.Raise) and last.exc is None
    return bool(names & {"Exception", "BaseException"}) and not again


def test_broad_except_stands_at_the_boundary_only() -> None:
    offenders = {
        name
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and broad(node)
    }
    assert offenders == BROAD_EXCEPT_ALLOWED


def test_work_left_to_do_stands_in_an_issue() -> None:
    left = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    files = [
        *sources(),
        *(file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("*.py")),
    ]
    offenders = [
        f"{name}:{number}"
        for name in files
        if name != "tests/test_style.py"
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if left.search(line)
    ]
    assert offenders == []


def test_tests_do_not_sleep_on_the_real_clock() -> None:
    offenders = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted((ROOT / "tests").rglob("*.py"))
        if file != Path(__file__)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.search(r"\btime\.sleep\(", line)
    ]
    assert offenders == []


def mirror(name: str) -> Path:
    """Where the tests of a module belong."""
    path = Path(name)
    folder = path.parent.relative_to("p2ptrain") if path.parts[0] == "p2ptrain" else path.parent
    return ROOT / "tests" / folder / f"test_{path.name}"


def test_every_module_has_tests_of_its_own() -> None:
    lone = {
        name
        for name in sources()
        if not name.endswith(("__init__.py", "__main__.py"))
        and str(Path(name).parent) not in COVERED_ELSEWHERE
        and not mirror(name).exists()
    }
    assert lone - WITHOUT_TEST_OF_THEIR_OWN == set()


def test_the_exceptions_are_still_needed() -> None:
    assert {name for name in WITHOUT_TEST_OF_THEIR_OWN if mirror(name).exists()} == set()
    assert all((ROOT / name).exists() for name in WITHOUT_TEST_OF_THEIR_OWN)
    assert all((ROOT / name).exists() for name in COVERED_ELSEWHERE.values())
