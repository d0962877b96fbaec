"""The disk store: whole blobs or none."""

from pathlib import Path

import pytest

from p2ptrain.data.store import DiskStore, sole_owner
from p2ptrain.errors import UserError

pytestmark = pytest.mark.asyncio


async def test_a_blob_comes_back_as_last_written(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "deep" / "er")
    assert await store.get("state") is None
    await store.put("state", b"one")
    await store.put("state", bytearray(b"two"))
    await store.put("a-1.bin", memoryview(b"three"))
    assert await store.get("state") == b"two"
    assert await store.names() == ["a-1.bin", "state"]
    assert await DiskStore(tmp_path / "deep" / "er").get("a-1.bin") == b"three"


async def test_a_torn_write_is_never_read_and_is_removed(tmp_path: Path) -> None:
    torn = tmp_path / "tmp123.unfinished"
    torn.write_bytes(b"half")
    store = DiskStore(tmp_path)
    assert not torn.exists()
    torn.write_bytes(b"half")
    assert await store.names() == []


async def test_a_refused_write_leaves_the_old_blob_and_no_rest(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    await store.put("state", b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        await store.put("folder", b"new")
    assert await store.get("state") == b"old"
    assert listing(tmp_path) == ["folder", "state"]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "x.unfinished", "a" * 200])
async def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    store = DiskStore(tmp_path)
    with pytest.raises(ValueError, match="cannot be a blob's name"):
        await store.put(name, b"")


async def test_a_folder_that_cannot_be_had_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot keep files here"):
        DiskStore(tmp_path / "file" / "folder")


async def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with sole_owner(tmp_path):
        with (
            pytest.raises(UserError, match="in use by another running peer"),
            sole_owner(tmp_path),
        ):
            pass
        assert await DiskStore(tmp_path).names() == []  # the owner itself is not in its way
    with sole_owner(tmp_path):
        pass


async def test_a_folder_that_cannot_be_owned_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot keep files here"),
        sole_owner(tmp_path / "file" / "folder"),
    ):
        pass
