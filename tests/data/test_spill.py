"""Frames on a real disk: what comes back is what was given, or an error; no file stays."""

import errno
import resource
from pathlib import Path

import pytest

from p2ptrain.data.spill import DiskSpill

pytestmark = pytest.mark.asyncio


def files(folder: Path) -> dict[int, Path]:
    return {int(path.name): path for path in folder.iterdir()}


async def test_a_disk_that_forgets_or_garbles_is_found_out(tmp_path: Path) -> None:
    spill = DiskSpill(tmp_path, bound_bytes=1000)
    garbled, torn, gone = [await spill.put((b"a frame", b"in parts")) for _ in range(3)]
    there = files(tmp_path)
    there[garbled].write_bytes(b"a frAmein parts")
    there[torn].write_bytes(b"a frame")
    there[gone].unlink()
    for handle, number in ((garbled, errno.EIO), (torn, errno.EIO), (gone, errno.ENOENT)):
        with pytest.raises(OSError) as caught:  # noqa: PT011 -- the number is what counts
            await spill.get(handle)
        assert caught.value.errno == number
    spill.close()


async def test_a_disk_that_lost_a_frame_is_trusted_again_when_its_time_is_over(
    tmp_path: Path,
) -> None:
    spill = DiskSpill(tmp_path, bound_bytes=1000, distrust_seconds=0.0)
    lost = await spill.put((b"frame",))
    files(tmp_path)[lost].unlink()
    with pytest.raises(FileNotFoundError):
        await spill.get(lost)
    assert await spill.get(await spill.put((b"another",))) == (b"another",)
    spill.close()


async def test_who_lacks_descriptors_for_a_moment_trusts_its_disk(tmp_path: Path) -> None:
    spill = DiskSpill(tmp_path, bound_bytes=1000)
    handle = await spill.put((b"frame",))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="open files"):
            await spill.get(handle)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await spill.get(handle) == (b"frame",)
    await spill.put((b"another",))
    spill.close()


async def test_files_go_with_their_frames(tmp_path: Path) -> None:
    spill = DiskSpill(tmp_path, bound_bytes=1000)
    handles = [await spill.put((b"frame",)) for _ in range(3)]
    assert set(files(tmp_path)) == set(handles)
    for handle in handles:
        spill.drop(handle)
    await spill.put((b"after them",))  # on the same thread
    assert [path.read_bytes() for path in files(tmp_path).values()] == [b"after them"]
    spill.close()


async def test_a_closed_one_writes_no_more(tmp_path: Path) -> None:
    spill = DiskSpill(tmp_path, bound_bytes=1000)
    handle = await spill.put((b"frame",))
    spill.close()
    spill.drop(handle)
    with pytest.raises(RuntimeError):
        await spill.put((b"frame",))
