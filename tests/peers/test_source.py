"""Which source tree a report names."""

import shutil
from importlib.metadata import version

import pytest

from peers.source import source_commit


def test_a_checkout_is_named_by_its_commit() -> None:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    name = source_commit().removesuffix("+")
    assert name == version("p2ptrain") or len(name) == 12


def test_without_git_the_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert source_commit() == version("p2ptrain")
