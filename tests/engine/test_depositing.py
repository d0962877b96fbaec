"""Deposits of a seat: when one is made, what is believed of others, and what becomes of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from p2ptrain.core.agreement import Bitmap, Counted, Tallies
from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.deposits import DEPOSITS_MOST
from p2ptrain.core.ledger import bitmap_bytes, mask_to_bytes
from p2ptrain.engine.distrust import Distrust
from p2ptrain.engine.roster import Roster
from p2ptrain.engine.seat import SeatRuntime
from p2ptrain.engine.surroundings import Surroundings, genesis
from p2ptrain.errors import MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.run import validate
from p2ptrain.sim import loop
from p2ptrain.sim.compute import ToyCompute
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import ToyCorpus, toy_spec
from p2ptrain.units import Microbatch, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import messages as m
from p2ptrain.wire.limits import FrameLimits

ME, MATE, ABOVE, BELOW = PeerId("me"), PeerId("mate"), PeerId("above"), PeerId("below")
STAGE, SLOTS = Stage(1), 8
EVERY = 2


def spec(every: int) -> Any:
    plain = toy_spec(stages=3, microbatches=SLOTS, steps=3)
    sync = msgspec.structs.replace(plain.sync, deposit_every=every)
    return validate(msgspec.structs.replace(plain, sync=sync))


def status(stage: int, rate: float = 1.0) -> m.SeatStatus:
    return m.SeatStatus(
        stage=Stage(stage), state="serving", version=Step(0), rate=rate, queue=0, parked=0
    )


class Scene:
    """A seat of stage 1 of 3 beside MATE, at its first step."""

    def __init__(self, seat: SeatRuntime, roster: Roster, events: list[ev.AnyEvent]) -> None:
        self.seat, self.roster, self.events = seat, roster, events
        self.shipped: list[tuple[PeerId, Any, Any, Any, Any]] = []

    def ship(self, peer: PeerId, message: Any, payload: Any, failed: Any, **more: Any) -> None:
        self.shipped.append((peer, message, payload, failed, more.get("sent")))

    def count(self, *slots: int) -> None:
        """As if they had been computed here."""
        for slot in slots:
            self.seat.pipeline.counted |= 1 << slot
        self.seat.pipeline.on_count()

    async def idle(self) -> bool:
        """Do what is to be done between two jobs; whether there was anything."""
        chore = self.seat.pipeline.loans.chore()
        if chore is not None:
            await chore
        return chore is not None

    async def hear(self, mask: int, *, by: PeerId = MATE, seq: int = 5) -> bytes:
        """MATE leaves a deposit: ones, in all elements."""
        width = len(await self.seat.compute.read_own(0, 1))
        ones = (1).to_bytes(width, "little") * self.seat.compute.elements
        self.seat.depositing.hear(by, deposit(self.seat, mask, seq=seq, maker=by), ones)
        return ones

    def come(self, *peers: PeerId) -> None:
        """They have opened seats of the stage."""
        for peer in peers:
            self.roster.hear(peer, [status(STAGE)])
        self.seat.roster_changed(asyncio.get_running_loop().time())

    def mate_counts(self, peer: PeerId, mask: int, *borrowed: Counted) -> None:
        """A bitmap of ``peer`` has come."""
        assert self.seat.stepper.machine is not None
        bitmap = deposit(self.seat, mask, seq=6, maker=peer).bitmap
        told = msgspec.structs.replace(bitmap, borrowed=borrowed or msgspec.UNSET)
        assert self.seat.stepper.machine.ledger.observe(told)

    def gone(self, peer: PeerId = MATE) -> None:
        self.roster.lost(peer, vanished=True)
        self.seat.lost(peer, asyncio.get_running_loop().time())

    def back(self) -> None:
        self.roster.found(MATE)
        self.seat.found(MATE, asyncio.get_running_loop().time())

    def seen(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def signed(bitmap: Bitmap) -> Bitmap:
    signature = SimSigner(bitmap.peer).sign(bitmap_bytes(bitmap))
    return msgspec.structs.replace(bitmap, signature=signature)


def deposit(seat: SeatRuntime, mask: int, *, seq: int = 5, maker: PeerId = MATE) -> m.Deposit:
    assert seat.position is not None
    bitmap = Bitmap(
        peer=maker,
        incarnation=1,
        at=seat.position,
        stage=STAGE,
        seq=seq,
        slots=mask_to_bytes(mask, SLOTS),
        tallies=Tallies(poisoned=1),
        signature=b"",
    )
    elements = seat.compute.elements
    return m.Deposit(at=seat.position, stage=STAGE, bitmap=signed(bitmap), start=0, stop=elements)


Play = Callable[..., None]


@pytest.fixture
def play(post: Any) -> Play:
    def run(act: Callable[[Scene], Coroutine[None, None, None]], every: int = EVERY) -> None:
        async def main() -> None:
            events: list[ev.AnyEvent] = []
            roster, told = Roster(ME), spec(every)
            for peer, stage in ((ME, 1), (MATE, 1), (BELOW, 0), (ABOVE, 2)):
                roster.hear(peer, [status(stage)])
            async with asyncio.TaskGroup() as group:
                around = Surroundings(
                    run=RunId("0" * 32),
                    spec=told,
                    incarnation=1,
                    signer=SimSigner(ME),
                    limits=FrameLimits(told),
                    post=post,
                    roster=roster,
                    emit=events.append,
                    rng=random.Random(0),
                    wake=lambda: None,
                    spawn=group.create_task,
                    backlog=lambda: 0.0,
                    committed=lambda _stage, _done: None,
                    next_seq=iter(range(1, 1000)).__next__,
                    distrust=Distrust(events.append),
                )
                seat = SeatRuntime(around, await ToyCompute(told, ME).open(STAGE))
                seat.pipeline.corpus = ToyCorpus(told)
                seat.begin(genesis(genesis_chain(RunId("0" * 32))), ((), (), ()))
                scene = Scene(seat, roster, events)
                post.ship = scene.ship
                await act(scene)
                seat.close()

        loop.run(main())

    return run


def test_a_deposit_is_made_after_so_many_and_again_after_as_many_more(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.count(0)
        assert not await scene.idle()
        scene.count(1)
        assert await scene.idle()
        ((peer, message, payload, _, sent),) = scene.shipped
        assert (peer, message.bitmap.slots) == (MATE, bytes((0b11,)))
        (integers,) = await payload()
        assert integers == await scene.seat.compute.read_own(0, scene.seat.compute.elements)
        scene.count(2, 3, 4)
        assert not await scene.idle()  # the first is on its way still
        sent()
        assert scene.seen(ev.Deposited)[0].peer == MATE
        assert await scene.idle()
        scene.shipped[1][3](0.0)  # it did not go out: nobody insists on it
        assert not await scene.idle()
        scene.count(5, 6)
        assert await scene.idle()

    play(act)


def test_the_same_mate_is_given_them_while_it_is_there_and_does_not_become_slow(
    play: Play,
) -> None:
    async def act(scene: Scene) -> None:
        others = [PeerId(f"other {number}") for number in range(6)]
        for counts in ((0, 1), (2, 3), (4, 5)):
            scene.count(*counts)
            assert await scene.idle()
            scene.shipped[-1][4]()
            scene.come(*others)
            if counts == (2, 3):
                scene.roster.hear(MATE, [status(STAGE, 0.01)])
        mates = [peer for peer, *_ in scene.shipped]
        assert mates[:2] == [MATE, MATE]
        assert mates[2] in others

    play(act)


def test_what_a_mate_has_borrowed_is_not_borrowed_twice(play: Play) -> None:
    async def act(scene: Scene) -> None:
        other = PeerId("other")
        scene.come(other)
        await scene.hear(0b11111111)
        scene.gone()
        scene.mate_counts(other, 0b1, Counted(PeerId("gone before"), b"\x01"))
        assert not await scene.idle()
        scene.seat.stepper.machine.ledger.drop(other)
        scene.mate_counts(other, 0b1)  # it can take that out alone
        assert await scene.idle()
        assert scene.seat.pipeline.shelf.borrowed == 0b11111111

    play(act)


def test_what_is_of_no_use_gives_its_place_to_what_is(play: Play) -> None:
    async def act(scene: Scene) -> None:
        other, more = PeerId("other"), [PeerId(f"more {n}") for n in range(DEPOSITS_MOST)]
        scene.come(other, *more)
        for number, peer in enumerate(more):
            await scene.hear(1 << number, by=peer)
            scene.gone(peer)
        scene.mate_counts(other, (1 << DEPOSITS_MOST) - 1)  # it has made them good
        await scene.hear(0b11110000)
        scene.gone()
        assert await scene.idle()
        assert scene.seat.pipeline.shelf.borrowed == 0b11110000

    play(act)


def test_without_the_setting_none_is_made_or_kept(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.count(0, 1, 2, 3)
        assert not await scene.idle()
        await scene.hear(0b10000)
        scene.gone()
        assert not await scene.idle()

    play(act, every=0)


def test_without_a_mate_there_is_nobody_to_leave_it_with(play: Play) -> None:
    async def act(scene: Scene) -> None:
        scene.gone()
        scene.count(0, 1)
        assert not await scene.idle()

    play(act)


def test_what_a_mate_left_is_counted_once_it_is_gone_and_until_it_is_back(play: Play) -> None:
    async def act(scene: Scene) -> None:
        pipeline, compute = scene.seat.pipeline, scene.seat.compute
        before = await compute.read_own(0, compute.elements)
        ones = await scene.hear(0b1100)
        assert not await scene.idle()
        scene.gone()
        assert await scene.idle()
        assert await compute.read_own(0, compute.elements) == ones
        assert (pipeline.counted, pipeline.tallies.poisoned) == (0b1100, 1)
        machine, gossip = scene.seat.stepper.machine, scene.seat.stepper.gossip
        assert machine is not None
        assert gossip.newest is not None
        assert gossip.newest.borrowed == (Counted(MATE, gossip.newest.slots),)
        assert machine.ledger.union() == 0b1100
        assert pipeline.shelf.state(Microbatch(Step(0), Slot(2))) == "bare"
        scene.back()
        assert await scene.idle()
        assert await compute.read_own(0, compute.elements) == before
        assert (pipeline.counted, pipeline.tallies.poisoned, pipeline.shelf.borrowed) == (0, 0, 0)
        assert gossip.newest.borrowed is msgspec.UNSET
        kinds = [type(event).__name__ for event in scene.events if "Deposit" in str(type(event))]
        assert kinds == ["DepositTaken", "DepositReturned"]

    play(act)


def test_while_the_accumulator_stands_still_nothing_is_added_to_it(play: Play) -> None:
    async def act(scene: Scene) -> None:
        await scene.hear(0b1100)
        scene.gone()
        for attribute in ("frozen", "passing"):
            setattr(scene.seat.pipeline, attribute, True)
            assert not await scene.idle()
            setattr(scene.seat.pipeline, attribute, False)
        scene.seat.pipeline.loans.taking_out = 1
        assert not await scene.idle()
        scene.seat.pipeline.loans.taking_out = 0
        assert await scene.idle()

    play(act)


def test_a_slot_that_must_go_takes_all_of_its_deposit_along(play: Play) -> None:
    async def act(scene: Scene) -> None:
        pipeline = scene.seat.pipeline
        await scene.hear(0b1100)
        scene.gone()
        await scene.idle()
        await pipeline.loans.give_back(0b0100)
        assert (pipeline.counted, pipeline.shelf.borrowed) == (0, 0)
        await pipeline.loans.give_back(0b0100)  # once
        assert len(scene.seen(ev.DepositReturned)) == 1

    play(act)


def test_of_others_only_what_they_have_signed_themselves_is_kept(play: Play) -> None:
    async def act(scene: Scene) -> None:
        message = deposit(scene.seat, 0b1)
        with pytest.raises(MisbehaviourError):
            scene.seat.depositing.hear(ABOVE, message, b"")
        forged = msgspec.structs.replace(message.bitmap, slots=b"\x02")
        with pytest.raises(MisbehaviourError):
            scene.seat.depositing.hear(MATE, msgspec.structs.replace(message, bitmap=forged), b"")
        old = msgspec.structs.replace(message.at, epoch=1)
        moved = signed(msgspec.structs.replace(message.bitmap, at=old))
        scene.seat.depositing.hear(
            MATE, msgspec.structs.replace(message, at=old, bitmap=moved), b""
        )
        scene.gone()
        assert not await scene.idle()

    play(act)


def test_a_peer_without_a_seat_of_the_stage_leaves_nothing_here(play: Play) -> None:
    """Nobody lives of that name: it would be taken up at once."""

    async def act(scene: Scene) -> None:
        message, stranger = deposit(scene.seat, 0b1), PeerId("stranger")
        own = signed(msgspec.structs.replace(message.bitmap, peer=stranger))
        scene.seat.depositing.hear(
            stranger, msgspec.structs.replace(message, bitmap=own), memoryview(b"")
        )
        assert not await scene.idle()
        assert scene.seat.pipeline.counted == 0

    play(act)


@pytest.mark.parametrize(
    "changes",
    [
        {"tallies": Tallies(tokens=1 << 40)},
        {"tallies": Tallies(val_tokens=1 << 40)},
        {"tallies": Tallies(poisoned=2)},
    ],
    ids=["tokens", "val_tokens", "poisoned"],
)
def test_a_deposit_that_tells_more_than_it_counts_is_refused(
    play: Play, changes: dict[str, Any]
) -> None:
    """Whoever took it up would say so under its own name."""

    async def act(scene: Scene) -> None:
        message = deposit(scene.seat, 0b1)
        told = signed(msgspec.structs.replace(message.bitmap, **changes))
        with pytest.raises(MisbehaviourError, match="more than it counts"):
            scene.seat.depositing.hear(MATE, msgspec.structs.replace(message, bitmap=told), b"")

    play(act)


def test_a_deposit_comes_in_the_pieces_that_all_cut(play: Play) -> None:
    async def act(scene: Scene) -> None:
        message = deposit(scene.seat, 0b1)
        with pytest.raises(MisbehaviourError, match="cut otherwise"):
            scene.seat.depositing.hear(MATE, msgspec.structs.replace(message, stop=1), b"")

    play(act)


def test_what_the_stage_above_lacks_of_what_was_taken_is_asked_for(play: Play, post: Any) -> None:
    async def act(scene: Scene) -> None:
        await scene.hear(0b1100)
        scene.gone()
        await scene.idle()
        wanting = scene.seat.depositing.wanting
        for _ in range(2):
            assert wanting.due_at is not None
            assert scene.seat.due_at is not None
            assert scene.seat.due_at <= wanting.due_at
            scene.seat.tick(wanting.due_at)
        assert [one.slot for _, one in post.told if is_wanted(one)] == [2, 3]

    play(act)


def is_wanted(message: Any) -> bool:
    return isinstance(message, m.Whereabouts) and message.state == "wanted"
