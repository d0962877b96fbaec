"""The promises of ports.Spill, kept by the disk and by its simulation."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2ptrain.data.spill import DiskSpill
from p2ptrain.ports import Spill
from p2ptrain.sim.spill import MemorySpill

pytestmark = pytest.mark.asyncio

BOUND = 100
FRAME = (b"tokens", bytearray(b"activations"), memoryview(b""), memoryview(b"more"))


@pytest.fixture(params=["real", "simulated"])
def spill(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Spill]:
    if request.param == "simulated":
        yield MemorySpill(bound_bytes=BOUND)
        return
    disk = DiskSpill(tmp_path, bound_bytes=BOUND)
    yield disk
    disk.close()


@pytest.fixture
def refuse(spill: Spill, tmp_path: Path) -> Callable[[], None]:
    """Makes the disk refuse to write from now on."""

    def refusing() -> None:
        if isinstance(spill, MemorySpill):
            spill.refusal = errno.ENOSPC
        else:
            for taken in range(10):  # the file is there already: not ours
                (tmp_path / str(taken)).touch()

    return refusing


@pytest.fixture
def lose(spill: Spill, tmp_path: Path) -> Callable[[], None]:
    """Makes the disk garble what lies there."""

    def losing() -> None:
        if isinstance(spill, MemorySpill):
            spill.unreadable = True
        else:
            for file in tmp_path.iterdir():
                file.write_bytes(b"")

    return losing


async def test_a_frame_comes_back_in_its_parts_as_often_as_it_is_asked_for(spill: Spill) -> None:
    handle = await spill.put(FRAME)
    other = await spill.put((b"other",))
    for _ in range(2):
        assert await spill.get(handle) == (b"tokens", b"activations", b"", b"more")
    assert await spill.get(other) == (b"other",)
    assert spill.used_bytes == len(b"tokensactivationsmore") + len(b"other")


async def test_what_is_dropped_is_gone_and_makes_room(spill: Spill) -> None:
    handle = await spill.put((bytes(BOUND),))
    spill.drop(handle)
    spill.drop(handle)
    assert spill.used_bytes == 0
    with pytest.raises(OSError, match="no such frame"):
        await spill.get(handle)
    await spill.put((bytes(BOUND),))


async def test_the_bound_refuses_and_keeps_what_is_there(spill: Spill) -> None:
    handle = await spill.put((bytes(BOUND - 1),))
    with pytest.raises(OSError, match="bound"):
        await spill.put((b"xx",))
    assert spill.used_bytes == BOUND - 1
    assert await spill.get(handle) == (bytes(BOUND - 1),)


async def test_a_disk_that_refuses_leaves_no_bytes_and_no_count(
    spill: Spill, refuse: Callable[[], None]
) -> None:
    refuse()
    with pytest.raises(OSError, match=r"space|exists"):
        await spill.put(FRAME)
    assert spill.used_bytes == 0


async def test_who_has_not_given_back_one_frame_takes_no_other(
    spill: Spill, lose: Callable[[], None]
) -> None:
    kept = await spill.put((b"kept",))
    spill.drop(kept)
    with pytest.raises(OSError, match="no such frame"):
        await spill.get(kept)  # whoever dropped it knows
    lost = await spill.put((b"lost",))
    lose()
    with pytest.raises(OSError, match=r"error|does not give back"):
        await spill.get(lost)
    with pytest.raises(OSError, match="given back"):
        await spill.put(FRAME)
    assert spill.used_bytes == len(b"lost")


async def test_a_put_that_is_cancelled_leaves_nothing(spill: Spill) -> None:
    async with asyncio.TaskGroup() as tasks:
        putting = tasks.create_task(spill.put(FRAME))
        await asyncio.sleep(0)
        putting.cancel()
    assert spill.used_bytes == 0
    handle = await spill.put((bytes(BOUND),))
    assert await spill.get(handle) == (bytes(BOUND),)
