"""A donor gives a few chunks at a time, and refuses in words."""

from __future__ import annotations

import asyncio

import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.merkle import CHUNK_LEAST_BYTES, leaf_digest
from p2ptrain.engine.serving import IDLE_SECONDS, KEPT, MOST_WAITING, SENDING, Donor
from p2ptrain.errors import LinkError
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire.messages import (
    Chunk,
    Control,
    Data,
    NoSuch,
    StageManifest,
    WantChunk,
    WantCorpus,
    WantManifest,
)

ANN, STAGE = PeerId("ann"), Stage(1)
BLOB = bytes(CHUNK_LEAST_BYTES) + b"tail"


class Links:
    """Takes what is sent; data frames wait until they are let go."""

    def __init__(self) -> None:
        self.said: list[Control] = []
        self.frames: list[tuple[Data, bytes, asyncio.Future[None]]] = []
        self.broken = False

    def send(self, _peer: PeerId, message: Control) -> None:
        self.said.append(message)

    def submit(
        self, _peer: PeerId, message: Data, payload: tuple[memoryview, ...]
    ) -> asyncio.Future[None]:
        if self.broken:
            raise LinkError("no link")
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.frames.append((message, b"".join(payload), sent))
        return sent


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


TAKEN = (
    Sum(
        at=at(0),
        stage=STAGE,
        digest=Digest(bytes(32)),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=0,
    ),
)  # fmt: skip


async def donor_with(blob: bytes) -> tuple[Donor, Links, StageManifest]:
    links = Links()
    donor = Donor(links)  # type: ignore[arg-type]  # the two methods that it uses
    await donor.offer(STAGE, at(1), (), blob, taken=TAKEN)
    donor.asked(ANN, WantManifest(stage=STAGE, version=Step(1)))
    manifest = links.said.pop()
    assert isinstance(manifest, StageManifest)
    return donor, links, manifest


def test_chunks_match_their_leaves_and_leave_a_few_at_a_time() -> None:
    async def main() -> None:
        donor, links, manifest = await donor_with(BLOB)
        assert manifest.taken == TAKEN
        for index in (0, 1, 0, 1):
            donor.asked(ANN, WantChunk(stage=STAGE, root=manifest.root, index=index))
        assert len(links.frames) == SENDING
        links.frames[0][2].set_result(None)
        links.frames[1][2].set_exception(LinkError("broke"))
        await asyncio.sleep(0)
        assert len(links.frames) == 4
        for message, payload, _ in links.frames:
            assert isinstance(message, Chunk)
            assert leaf_digest(payload) == manifest.leaves[message.index]

    run(main())


def test_a_link_that_is_gone_costs_its_own_request_only() -> None:
    async def main() -> None:
        donor, links, manifest = await donor_with(BLOB)
        links.broken = True
        for _ in range(MOST_WAITING * 2):
            donor.asked(ANN, WantChunk(stage=STAGE, root=manifest.root, index=0))
        links.broken = False
        donor.asked(ANN, WantChunk(stage=STAGE, root=manifest.root, index=0))
        assert len(links.frames) == 1
        assert links.said == []

    run(main())


@pytest.mark.parametrize("index", [2, 2**40])
def test_what_is_not_there_is_refused(index: int) -> None:
    async def main() -> None:
        donor, links, manifest = await donor_with(BLOB)
        donor.asked(ANN, WantChunk(stage=STAGE, root=manifest.root, index=index))
        donor.asked(ANN, WantChunk(stage=Stage(0), root=manifest.root, index=0))
        donor.asked(ANN, WantManifest(stage=Stage(0), version=Step(0)))
        donor.asked(ANN, WantCorpus(offset=0, size_bytes=10))
        assert [m.what for m in links.said if isinstance(m, NoSuch)] == [
            "chunk",
            "chunk",
            "snapshot",
            "corpus",
        ]

    run(main())


def test_what_was_not_asked_for_longest_is_dropped_at_the_bound() -> None:
    async def main() -> None:
        donor, links, first = await donor_with(BLOB)
        for step in range(2, KEPT + 2):
            await asyncio.sleep(1.0)
            donor.asked(ANN, WantManifest(stage=STAGE, version=Step(2)))
            await donor.offer(STAGE, at(step), (), bytes((step,)) * 5)
        links.said.clear()
        assert donor.holds(STAGE, Step(2))
        donor.asked(ANN, WantChunk(stage=STAGE, root=first.root, index=0))
        (refused,) = links.said
        assert isinstance(refused, NoSuch)
        assert "no longer" in refused.reason

    run(main())


def test_what_nobody_asks_for_is_dropped_after_a_while() -> None:
    async def main() -> None:
        donor, _, manifest = await donor_with(BLOB)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(IDLE_SECONDS - 1.0)
        donor.asked(ANN, WantChunk(stage=STAGE, root=manifest.root, index=0))
        await asyncio.sleep(2.0)
        donor.expire(loop.time())
        assert donor.holds(STAGE, Step(1))
        await asyncio.sleep(IDLE_SECONDS)
        donor.expire(loop.time())
        assert not donor.holds(STAGE, Step(1))

    run(main())


def test_a_difference_goes_to_those_who_stand_where_it_begins() -> None:
    async def main() -> None:
        donor, links, whole = await donor_with(BLOB)
        base, other = Digest(b"base".ljust(32)), Digest(b"other".ljust(32))
        root = await donor.offer(STAGE, at(1), (), b"difference", leads=(base, whole.root))
        wants = [
            WantManifest(stage=STAGE, version=Step(1), base=base),
            WantManifest(stage=STAGE, version=Step(1), base=other),
            WantManifest(stage=STAGE, version=Step(1)),
            WantManifest(stage=STAGE, version=Step(0), base=base),
        ]
        for want in wants:
            donor.asked(ANN, want)
        given = [said for said in links.said if isinstance(said, StageManifest)]
        assert [(one.root, one.base, one.result) for one in given] == [
            (root, base, whole.root),
            *[(whole.root, None, None)] * 3,
        ]
        donor.asked(ANN, WantChunk(stage=STAGE, root=root, index=0))
        donor.asked(ANN, WantChunk(stage=STAGE, root=whole.root, index=1))
        assert [payload for _, payload, _ in links.frames] == [b"difference", b"tail"]
        for _, _, sent in links.frames:
            sent.set_result(None)
        await asyncio.sleep(IDLE_SECONDS)
        donor.expire(asyncio.get_running_loop().time())
        donor.asked(ANN, WantChunk(stage=STAGE, root=root, index=0))
        assert isinstance(links.said[-1], NoSuch)

    run(main())


def test_a_state_offered_again_replaces_itself() -> None:
    async def main() -> None:
        donor, links, _ = await donor_with(BLOB)
        for _ in range(KEPT):
            await donor.offer(STAGE, at(1), (), BLOB)
        await donor.offer(STAGE, at(0), (), b"older")
        donor.asked(ANN, WantManifest(stage=STAGE, version=Step(0)))
        (manifest,) = links.said
        assert isinstance(manifest, StageManifest)
        assert manifest.version == 0

    run(main())
