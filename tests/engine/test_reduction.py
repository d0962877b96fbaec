"""The butterfly sum: every member gets the same, liars add nothing, unsent parts are noticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.agreement import Ballot, Plan, Position, Share, Sum, Tallies
from p2ptrain.engine import reduction
from p2ptrain.engine.reduction import Reducer
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.ports import Whole
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Awaitable

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
AT = Position(epoch=0, step=Step(2), chain=Chain(bytes(32)))
BALLOT = Ballot(round=0, rank=0, digest=Digest(b"d" * 32))
ELEMENTS = 7


class Sums:
    """A compute of eight-byte integers; implements what a reduction needs of StageCompute."""

    stage = Stage(1)
    elements = ELEMENTS

    def __init__(self, values: list[int]) -> None:
        self.values = values
        self.whole: list[int] = []

    async def read_own(self, start: int, stop: int) -> bytes:
        return encode(self.values[start:stop])

    async def sum_parts(self, parts: list[bytes]) -> bytes:
        columns = zip(*(decode(part) for part in parts), strict=True)
        return encode([sum(column) for column in columns])

    async def finish(self, pieces: list[tuple[int, bytes]]) -> Whole:
        self.whole = [value for _, piece in pieces for value in decode(piece)]
        return Whole(digest=Digest(repr(self.whole).encode()), norms=(), finite=True)

    async def read_sum(self, start: int, stop: int) -> bytes:
        return encode(self.whole[start:stop])


def encode(values: list[int]) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


def decode(blob: bytes) -> list[int]:
    return [int.from_bytes(blob[i : i + 8], "little", signed=True) for i in range(0, len(blob), 8)]


class Wires:
    """Delivers frames between reducers at the loop's next turn; ``lost``: to whom nothing goes."""

    def __init__(self) -> None:
        self.members: dict[PeerId, Reducer] = {}
        self.told: list[tuple[PeerId, Any]] = []
        self.lost: set[PeerId] = set()
        self.unsent: list[PeerId] = []

    def add(self, me: PeerId, compute: Sums) -> Reducer:
        wires = self

        class Post:
            def tell(self, peer: PeerId, message: Any) -> None:
                wires.told.append((peer, message))

            def ship(
                self, peer: PeerId, message: Any, payload: Any, failed: Any, *, tries: int = 1
            ) -> None:
                loop = asyncio.get_running_loop()
                if peer in wires.lost:
                    loop.call_soon(failed, loop.time())
                else:
                    loop.call_soon(wires.members[peer].part, me, message, payload[0])
                assert tries > 1

        reducer = Reducer(
            me,
            compute,  # type: ignore[arg-type]
            Post(),  # type: ignore[arg-type]
            unsent=lambda _ballot, peer: wires.unsent.append(peer),
        )
        self.members[me] = reducer
        return reducer


def share(peer: PeerId, slots: bytes, start: int, stop: int) -> Share:
    return Share(
        peer=peer, incarnation=1, seq=1, slots=slots, tallies=Tallies(), start=start, stop=stop
    )


PLAN = Plan(
    at=AT,
    stage=Stage(1),
    ballot=BALLOT,
    shares=(share(A, b"\x01", 0, 3), share(B, b"\x02", 3, 6), share(C, b"\x00", 6, 7)),
)


async def all_of(*jobs: Awaitable[Whole]) -> list[Whole]:
    async def run(job: Awaitable[Whole]) -> Whole:
        return await job

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(job)) for job in jobs]
    return [task.result() for task in tasks]


def swarm(wires: Wires) -> dict[PeerId, Sums]:
    computes = {
        A: Sums(list(range(7))),
        B: Sums([10 * value for value in range(7)]),
        C: Sums([-999] * 7),  # counted nothing: must not be read
    }
    for peer, compute in computes.items():
        wires.add(peer, compute).expect(PLAN)
    return computes


@pytest.mark.asyncio
@pytest.mark.parametrize("piece", [1, 2, 100])
async def test_all_members_get_the_sum_of_those_who_counted(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(reduction, "PIECE_ELEMENTS", piece)
    wires = Wires()
    swarm(wires)
    async with asyncio.timeout(5):
        wholes = await all_of(*(reducer.reduce(PLAN) for reducer in wires.members.values()))
    expected = repr([11 * value for value in range(7)]).encode()
    assert {whole.digest for whole in wholes} == {expected}


@pytest.mark.asyncio
async def test_parts_that_the_plan_does_not_call_for_are_dropped() -> None:
    wires = Wires()
    swarm(wires)
    liar = PeerId("liar")
    lies = [
        (liar, "own", 0, 3),
        (B, "own", 0, 2),
        (C, "own", 0, 3),
        (B, "sum", 0, 3),
        (B, "sum", 3, 7),
    ]
    for peer, what, start, stop in lies:
        part = m.Part(
            at=AT,
            stage=Stage(1),
            ballot=BALLOT,
            what=what,  # type: ignore[arg-type]
            start=start,
            stop=stop,
        )
        wires.members[A].part(peer, part, encode([666] * (stop - start)))
    async with asyncio.timeout(5):
        wholes = await all_of(*(reducer.reduce(PLAN) for reducer in wires.members.values()))
    assert len({whole.digest for whole in wholes}) == 1
    assert b"666" not in wholes[0].digest


@pytest.mark.asyncio
async def test_a_member_that_cannot_get_our_part_is_named() -> None:
    wires = Wires()
    swarm(wires)
    wires.lost = {B}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await wires.members[A].reduce(PLAN)
    assert wires.unsent == [B]


def announced(digest: bytes) -> Sum:
    return Sum(
        at=AT,
        stage=Stage(1),
        digest=Digest(digest),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(A,),
        round=0,
    )


async def fetched(digest: bytes) -> Whole:
    """B fetches from A a sum that A holds and that was announced with ``digest``."""
    wires = Wires()
    source = Sums([])
    source.whole = list(range(7))
    holder, fetcher = wires.add(A, source), wires.add(B, Sums([0] * 7))
    whole = announced(digest)
    async with asyncio.TaskGroup() as group:
        job = group.create_task(fetcher.fetch(A, whole, deadline_seconds=1.0))
        await asyncio.sleep(0)
        assert wires.told == [(A, m.PullSum(at=AT, stage=Stage(1)))]
        await holder.serve(B, whole, lambda: True)
    return job.result()


@pytest.mark.asyncio
async def test_a_finished_sum_can_be_fetched() -> None:
    whole = await fetched(repr(list(range(7))).encode())
    assert whole.finite


@pytest.mark.asyncio
async def test_after_one_that_has_no_sum_the_next_is_believed() -> None:
    """Both are asked under one and the same ballot."""
    wires = Wires()
    source = Sums([])
    source.whole = list(range(7))
    whole = announced(repr(list(range(7))).encode())
    holder, fetcher = wires.add(C, source), wires.add(B, Sums([0] * 7))
    asyncio.get_running_loop().call_soon(fetcher.refused, A)
    with pytest.raises(LinkError):
        await fetcher.fetch(A, whole, deadline_seconds=1.0)
    async with asyncio.TaskGroup() as group:
        job = group.create_task(fetcher.fetch(C, whole, deadline_seconds=1.0))
        await asyncio.sleep(0)
        await holder.serve(B, whole, lambda: True)
    assert job.result().finite


@pytest.mark.asyncio
async def test_another_sum_than_the_announced_is_misbehaviour() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await fetched(b"something else")
    assert isinstance(caught.value.exceptions[0], MisbehaviourError)


@pytest.mark.asyncio
async def test_who_has_no_sum_says_so_and_is_not_waited_for() -> None:
    wires = Wires()
    reducer = wires.add(B, Sums([0] * 7))
    loop = asyncio.get_running_loop()
    loop.call_later(0.01, reducer.refused, C)  # not the one that was asked
    loop.call_later(0.02, reducer.refused, A)
    with pytest.raises(LinkError, match="no such sum"):
        await reducer.fetch(A, announced(b"x"), deadline_seconds=60.0)
