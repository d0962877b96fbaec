"""Scratch folders: gone in the end, also those of the killed."""

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from p2ptrain.net.scratch import scratch_folder

PROGRAM = """
import os, sys
from p2ptrain.net.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def place(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # pytest's own may be long already
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


def test_a_place_too_deep_for_a_socket_is_not_used(place, monkeypatch):
    deep = place / ("deep" * 20)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with scratch_folder() as folder, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "0123abcd.p2pd"))
    assert list(deep.iterdir()) == []


def test_a_folder_is_private_and_goes_with_its_with(place):
    with scratch_folder() as folder:
        assert folder.parent == place
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "socket").touch()
    assert list(place.iterdir()) == []


def test_the_folder_of_a_killed_process_is_swept_by_the_next(place):
    killed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=False)
    assert [str(folder) for folder in place.iterdir()] == [killed.stdout.decode().strip()]
    with scratch_folder() as folder:
        assert list(place.iterdir()) == [folder]


def test_the_living_and_the_unknown_are_left_alone(place):
    (place / "p2ptrain-just-being-made").mkdir()
    (place / "p2ptrain-file").touch()
    with scratch_folder() as first, scratch_folder() as second:
        assert first.exists()
        assert second.exists()
    assert len(list(place.iterdir())) == 2


def test_a_base_of_its_own_is_made_and_swept_apart(tmp_path: Path) -> None:
    base = tmp_path / "not" / "there"
    with scratch_folder(base) as folder:
        assert folder.parent == base
        with scratch_folder(base) as other:
            assert folder.is_dir()
            assert other != folder
    assert list(base.iterdir()) == []
