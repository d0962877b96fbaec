"""A puller waits no longer than its deadlines, and believes nothing unasked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.download import ANSWER_SECONDS
from p2ptrain.core.merkle import chunk_size, leaf_digest, merkle_root
from p2ptrain.core.sources import FIRST_SECONDS, STRIKES
from p2ptrain.engine.pulling import Base, Pulled, Puller
from p2ptrain.errors import InternalError, LinkError
from p2ptrain.observe.events import Alarm, AnyEvent, DonorRefused
from p2ptrain.run import RunSpec
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire.limits import FrameLimits
from p2ptrain.wire.messages import Chunk, NoSuch, StageManifest, WantChunk, WantManifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.wire.messages import Control

ANN, BOB, EVE, STAGE = PeerId("ann"), PeerId("bob"), PeerId("eve"), Stage(1)


class Links:
    """Answers as ``answer`` says."""

    def __init__(self, answer: Callable[[PeerId, Control], None]) -> None:
        self.limits = FrameLimits(RunSpec())
        self.asked: list[Control] = []
        self.closed: list[PeerId] = []
        self._answer = answer

    def send(self, peer: PeerId, message: Control) -> None:
        self.asked.append(message)
        self._answer(peer, message)

    def close_peer(self, peer: PeerId, _reason: str) -> None:
        self.closed.append(peer)


def small(blob: bytes) -> StageManifest:
    leaves = (leaf_digest(blob),)
    return StageManifest(
        stage=STAGE,
        available=True,
        epoch=0,
        version=Step(3),
        chain=Chain(bytes(32)),
        size_bytes=len(blob),
        chunk_bytes=chunk_size(len(blob)),
        leaves=leaves,
        root=merkle_root(leaves),
        members=(),
    )


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_manifest_that_never_comes_costs_one_deadline_for_all() -> None:
    async def main() -> None:
        puller = Puller(Links(lambda _peer, _message: None), lambda _event: None)  # type: ignore[arg-type]  # what it uses
        with pytest.raises(LinkError, match="bob: no answer within 30 s; eve: no answer"):
            await puller.pull(STAGE, [BOB, EVE], version=Step(3))
        assert now() == ANSWER_SECONDS

    run(main())


def test_a_chunk_that_never_comes_is_asked_for_twice() -> None:
    async def main() -> None:
        events: list[AnyEvent] = []

        def answer(peer: PeerId, message: Control) -> None:
            if isinstance(message, WantManifest):
                puller.heard(peer, small(b"state"), None)

        links = Links(answer)
        puller = Puller(links, events.append)  # type: ignore[arg-type]  # what it uses
        with pytest.raises(LinkError, match="bob: stalls"):
            await puller.pull(STAGE, [BOB], version=Step(3))
        assert now() == STRIKES * FIRST_SECONDS
        assert [e.peer for e in events if isinstance(e, DonorRefused)] == [BOB, BOB]
        late = Chunk(stage=STAGE, root=small(b"state").root, index=0)
        puller.heard(BOB, late, memoryview(b"state"))  # nobody waits: nothing happens

    run(main())


def test_what_a_stage_is_pulled_by_twice_is_a_mistake() -> None:
    async def main() -> None:
        puller = Puller(Links(lambda _peer, _message: None), lambda _event: None)  # type: ignore[arg-type]  # what it uses
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(puller.pull(STAGE, [BOB], version=Step(3)))
            await asyncio.sleep(1.0)
            with pytest.raises(InternalError, match="already"):
                await puller.pull(STAGE, [EVE], version=Step(3))
            first.cancel()

    run(main())


def test_of_differing_members_the_most_told_are_believed() -> None:
    async def main() -> None:
        members = {BOB: ((BOB,),), EVE: ((EVE,),), ANN: ((EVE,),)}

        def answer(peer: PeerId, message: Control) -> None:
            loop = asyncio.get_running_loop()
            if isinstance(message, WantManifest):
                told = msgspec.structs.replace(small(b"state"), members=members[peer])
                loop.call_soon(puller.heard, peer, told, None)
            elif isinstance(message, WantChunk):
                chunk = Chunk(stage=STAGE, root=message.root, index=0)
                loop.call_later(1.0, puller.heard, peer, chunk, memoryview(b"state"))

        puller = Puller(Links(answer), lambda _event: None)  # type: ignore[arg-type]  # what it uses
        pulled = await puller.pull(STAGE, [EVE, ANN, BOB], version=Step(3))
        assert pulled.members == ((EVE,),)

    run(main())


def test_answers_of_others_and_unasked_ones_are_not_believed() -> None:
    async def main() -> None:
        events: list[AnyEvent] = []

        def answer(peer: PeerId, message: Control) -> None:
            if isinstance(message, WantManifest):
                puller.heard(EVE, small(b"forged"), None)
                puller.heard(peer, small(b"state"), None)
            elif isinstance(message, WantChunk):
                chunk = Chunk(stage=STAGE, root=message.root, index=0)
                puller.heard(EVE, chunk, memoryview(b"forged"))
                other = Chunk(stage=STAGE, root=Digest(bytes(32)), index=0)
                puller.heard(peer, other, memoryview(b"forged"))
                puller.heard(EVE, NoSuch(what="chunk", stage=STAGE, reason="forged"), None)
                puller.heard(peer, chunk, memoryview(b"state"))

        links = Links(answer)
        puller = Puller(links, events.append)  # type: ignore[arg-type]  # what it uses
        pulled = await puller.pull(STAGE, [BOB], version=Step(3))
        assert bytes(pulled.blob) == b"state"
        assert pulled.sources == (BOB,)
        assert [type(event) for event in events] == [Alarm]  # only one vouches
        assert links.closed == []

    run(main())


BASE = Base(root=Digest(b"base".ljust(32)), size_bytes=10)
RESULT = Digest(b"result".ljust(32))


def given(blob: bytes, base: Digest | None, result: Digest | None) -> StageManifest:
    return msgspec.structs.replace(small(blob), base=base, result=result)


async def pulled_with(base: Base | None, *manifests: StageManifest) -> tuple[Pulled | str, Links]:
    """What a pull from one donor comes to, that gives ``manifests`` and the first one's chunk."""

    def answer(peer: PeerId, message: Control) -> None:
        if isinstance(message, WantManifest):
            assert message.base == (None if base is None else base.root)
            for manifest in manifests:
                puller.heard(peer, manifest, None)
        elif isinstance(message, WantChunk):
            blob = next(b for b in (b"difference", b"state") if small(b).root == message.root)
            chunk = Chunk(stage=STAGE, root=message.root, index=0)
            puller.heard(peer, chunk, memoryview(blob))

    links = Links(answer)
    puller = Puller(links, lambda _event: None)  # type: ignore[arg-type]  # what it uses
    try:
        return await puller.pull(STAGE, [BOB], version=Step(3), owners=1, base=base), links
    except LinkError as error:
        return error.reason, links


def test_a_difference_to_our_base_is_taken_and_says_where_it_leads() -> None:
    async def main() -> None:
        pulled, _ = await pulled_with(BASE, given(b"difference", BASE.root, RESULT))
        assert isinstance(pulled, Pulled)
        assert (bytes(pulled.blob), pulled.result) == (b"difference", RESULT)
        pulled, _ = await pulled_with(BASE, small(b"state"))
        assert isinstance(pulled, Pulled)
        assert (bytes(pulled.blob), pulled.result) == (b"state", None)

    run(main())


def test_what_the_owner_says_led_to_its_state_comes_with_it() -> None:
    taken = Sum(
        at=Position(epoch=0, step=Step(2), chain=Chain(bytes(32))),
        stage=STAGE,
        digest=Digest(bytes(32)),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=0,
    )

    async def main() -> None:
        pulled, _ = await pulled_with(
            None, msgspec.structs.replace(small(b"state"), taken=(taken,))
        )
        assert isinstance(pulled, Pulled)
        assert pulled.taken == (taken,)

    run(main())


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(given(b"different size", BASE.root, RESULT), id="another size"),
        pytest.param(given(b"difference", BASE.root, None), id="leads nowhere"),
        pytest.param(given(b"state", None, RESULT), id="begins nowhere"),
    ],
)
def test_a_difference_that_none_gives_costs_its_donor_the_link(manifest: StageManifest) -> None:
    async def main() -> None:
        said, links = await pulled_with(BASE, manifest)
        assert isinstance(said, str)
        assert "does not fit itself" in said
        assert links.closed == [BOB]

    run(main())


@pytest.mark.parametrize("base", [None, BASE])
def test_a_difference_to_another_base_is_an_answer_to_nobody(base: Base | None) -> None:
    async def main() -> None:
        late = given(b"difference", Digest(b"stale".ljust(32)), RESULT)
        pulled, links = await pulled_with(base, late, small(b"state"))
        assert isinstance(pulled, Pulled)
        assert bytes(pulled.blob) == b"state"
        assert links.closed == []

    run(main())
