"""What waits for a stream goes out whole and in order, is bounded, and is never forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.engine.lanes import BATCH_BYTES, ControlLane, DataLane
from p2ptrain.errors import LinkError
from p2ptrain.observe.events import AnyEvent, FrameSent
from p2ptrain.run import RunSpec
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, Digest, PeerId, Slot, Stage, Step
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import Chunk, CorpusChunk, Data, Forward, Gradient

if TYPE_CHECKING:
    from p2ptrain.ports import Buffer

BOB = PeerId("bob")
LIMITS = FrameLimits(RunSpec())
AT = Position(epoch=0, step=Step(4), chain=Chain(bytes(32)))


class Stream:
    """Takes what is written while its gate is open."""

    peer = BOB

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False

    async def send(self, *buffers: Buffer) -> None:
        await self.gate.wait()
        if self.broken:
            raise LinkError("broken")
        self.writes.append(b"".join(buffers))

    async def receive_into(self, buffer: memoryview) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


def gradient(slot: int) -> Gradient:
    return Gradient(at=AT, slot=Slot(slot), stage=Stage(0))


def test_small_control_frames_share_a_write_and_long_ones_do_not() -> None:
    async def main() -> None:
        stream, lane = Stream(), ControlLane(1 << 20)
        stream.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(lane.write(stream))
            frames = [b"a" * 10, b"b" * 20, b"c" * BATCH_BYTES, b"d"]
            assert all(lane.post(frame) for frame in frames)
            await asyncio.sleep(1)
            stream.gate.set()
            await lane.drained()
            assert stream.writes == [frames[0] + frames[1], frames[2], frames[3]]
            writer.cancel()

    run(main())


def test_the_bound_counts_what_is_on_its_way_and_a_close_drops_the_rest() -> None:
    async def main() -> None:
        stream, lane = Stream(), ControlLane(100)
        stream.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(lane.write(stream))
            assert lane.post(b"x" * 60)
            await asyncio.sleep(1)  # it is being written, and still counts
            assert not lane.post(b"y" * 60)
            assert lane.post(b"z" * 40)
            lane.close()
            await lane.drained()
            writer.cancel()
        assert stream.writes == []

    run(main())


def test_data_frames_go_one_by_one_and_are_told() -> None:
    async def main() -> None:
        events: list[AnyEvent] = []
        stream, lane = Stream(), DataLane(BOB, LIMITS, events.append)
        sent = [lane.submit(gradient(slot), (b"p" * 100,)) for slot in range(3)]
        assert lane.queued_bytes == 300
        sent[1].cancel()
        async with asyncio.TaskGroup() as tasks:
            await lane.wait()
            writer = tasks.create_task(lane.write(stream))
            await sent[2]
            await asyncio.sleep(1)
            assert len(stream.writes) == 2
            assert lane.queued_bytes == 0
            writer.cancel()
        told = [(e.slot, e.frame_bytes) for e in events if isinstance(e, FrameSent)]
        assert told == [(slot, len(stream.writes[0])) for slot in (0, 2)]

    run(main())


def test_a_closed_lane_fails_those_who_wait_and_those_who_come() -> None:
    async def main() -> None:
        lane = DataLane(BOB, LIMITS, lambda _event: None)
        waiting = lane.submit(gradient(0), (b"x",))
        lane.close("the link broke")
        for sent in (waiting, lane.submit(gradient(1), ())):
            with pytest.raises(LinkError, match="the link broke"):
                await sent
        assert lane.queued_bytes == 0

    run(main())


def test_a_frame_that_broke_on_its_way_is_failed_by_the_close() -> None:
    async def main() -> None:
        stream, lane = Stream(), DataLane(BOB, LIMITS, lambda _event: None)
        stream.broken = True
        sent = lane.submit(gradient(0), (b"x",))
        with pytest.raises(LinkError, match="broken"):
            await lane.write(stream)
        assert not sent.done()
        lane.close("broken")
        with pytest.raises(LinkError):
            await sent

    run(main())


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (CorpusChunk(offset=0), ("corpus", 0, -1, -1, 3, False)),
        (
            Chunk(stage=Stage(2), root=Digest(bytes(32)), index=0),
            ("chunk", 2, -1, -1, 3, False),
        ),
        (
            Forward(at=AT, slot=Slot(1), stage=Stage(1), attempt=0, replay=True, path=(BOB,)),
            ("forward", 1, 4, 1, 4 * 4 * 128 * 128, True),
        ),
    ],
)
def test_what_an_event_says_of_a_frame(message: Data, told: tuple[object, ...]) -> None:
    async def main() -> None:
        events: list[AnyEvent] = []
        stream, lane = Stream(), DataLane(BOB, LIMITS, events.append)
        lane.submit(message, (b"abc",))
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(lane.write(stream))
            await asyncio.sleep(1)
            writer.cancel()
        (e,) = events
        assert isinstance(e, FrameSent)
        assert (e.what, e.stage, e.step, e.slot, e.tensor_bytes, e.replay) == told

    run(main())
