"""A peer that forges: it has no seat and no secret but its own, and all the bytes of others.

Called upon, it visits peers, with a fresh link for each lie, and says:

    replayed    an early bitmap of another peer, truly signed, after that one has said more
    unsigned    another peer's newest bitmap, with more counted in it and no signature
    forged      the same under the signature of the true one
    foreign     the same under its own signature

After each it sends a Go that nobody led to: whoever gets that answers with a Nack that holds
all its bitmaps, for the witness to see whether a lie is among them. And it leaves in the
directory, as a node without our validator would, records of seats of peers that do not
exist: unsigned, and signed by itself. Who believes one of them calls the ghost; nobody else
can.

Invariant: it never has another's secret; whatever of it is acted on is the engine's fault.

Refused: drawing lies at random. Almost all fail at the first byte and test the decoder,
which has tests of its own (tests/wire).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import msgspec

from p2ptrain.core.agreement import Ballot, Go
from p2ptrain.core.ledger import bitmap_bytes
from p2ptrain.errors import LinkError
from p2ptrain.sim.directory import Stored
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import Digest, PeerId, Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire import messages as m
from p2ptrain.wire.handshake import greeting
from p2ptrain.wire.records import SeatRecord, encode_record, stage_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.agreement import Bitmap
    from p2ptrain.ports import Stream
    from p2ptrain.sim.witness import Witness
    from p2ptrain.sim.world import SimWorld
    from p2ptrain.units import RunId, Seconds

FORGER = PeerId("forger")
GHOST = PeerId("ghost")

Lie: TypeAlias = Literal["replayed", "unsigned", "forged", "foreign"]

LIES: tuple[Lie, ...] = get_args(Lie)

ANSWER_SECONDS = 0.5
"""For the victim to open its own stream and answer; the link that a lie cost is gone by then."""

FAR_SEQUENCE = 1 << 40
"""Whoever believes such a bitmap once never listens to its peer again."""

FOUR_SLOTS = 0x0F
"""Added to what the true one has counted: every step has as many."""

RECORD_SECONDS = 100.0
"""How long the ghosts' records live; the directory refuses more than 120 s."""


class Forger:
    """The one forger of a world."""

    def __init__(self, world: SimWorld, run: RunId, witness: Witness) -> None:
        self._world = world
        self._run = run
        self._witness = witness
        self._transport = world.network.transport(FORGER)
        self._ghost = world.network.transport(GHOST)
        self._signer = SimSigner(FORGER, seed=world.scenario.seed)
        self._incarnation = 0
        self._open = False

    async def visit(self, victims: Sequence[PeerId], stage: Stage, now: Seconds) -> None:
        """Tell all lies about ``stage`` to all ``victims``."""
        if not self._open:
            self._open = True
            await self._transport.listen(self._receive)
            await self._ghost.listen(self._believed)
            self._haunt(now)
        for lie in LIES:
            bitmaps = {victim: self._bitmap(lie, stage, victim) for victim in victims}
            async with asyncio.TaskGroup() as tasks:
                for victim, bitmap in bitmaps.items():
                    if bitmap is not None:  # somebody has counted something by now
                        tasks.create_task(self._tell(victim, bitmap))

    # --- bitmaps ----------------------------------------------------------------------------

    def _bitmap(self, lie: Lie, stage: Stage, victim: PeerId) -> Bitmap | None:
        newest, early = self._witness.sample(stage, but=victim)
        if newest is None or early is None:
            return None
        if lie == "replayed":
            return early if early.seq < newest.seq else None
        slots = bytes((newest.slots[0] | FOUR_SLOTS,)) + newest.slots[1:]
        grown = msgspec.structs.replace(newest, slots=slots, seq=newest.seq + FAR_SEQUENCE)
        if lie == "unsigned":
            return msgspec.structs.replace(grown, signature=b"")
        if lie == "foreign":
            own = self._signer.sign(bitmap_bytes(grown))
            return msgspec.structs.replace(grown, signature=own)
        return grown

    async def _tell(self, victim: PeerId, bitmap: Bitmap) -> None:
        """Tell a lie, then ask with a Go of nobody's what the victim holds now."""
        self._incarnation += 1
        hello = greeting(self._run, self._incarnation, "toy")
        ballot = Ballot(round=0, rank=0, digest=Digest(bytes(32)))
        go = Go(at=bitmap.at, stage=bitmap.stage, ballot=ballot)
        with contextlib.suppress(LinkError):
            stream = await self._transport.open(victim)
            await stream.send(framing.encode(hello))
            await stream.send(framing.encode(bitmap))
            self._witness.lied()
            await stream.send(framing.encode(go))
            await asyncio.sleep(ANSWER_SECONDS)
            await stream.close()

    async def _receive(self, stream: Stream) -> None:
        """Take what the victim's own stream brings, and answer nothing."""
        with contextlib.suppress(LinkError):
            await stream.send(framing.encode(m.Welcome(incarnation=self._incarnation)))
            while True:
                await stream.receive_into(memoryview(bytearray(1)))

    # --- records ----------------------------------------------------------------------------

    def _haunt(self, now: Seconds) -> None:
        record = SeatRecord(state="serving", version=Step(0), rate=1e6, queue=0, incarnation=9)
        stages = range(self._world.scenario.spec.cut.stages)
        for stage in stages:
            blank = Stored(
                key=stage_key(self._run, Stage(stage)),
                owner=GHOST,
                sequence=FAR_SEQUENCE,
                expires_at=now + RECORD_SECONDS,
                value=encode_record(record),
                signature=b"",
            )
            own = self._signer.sign(blank.signed_bytes())
            for signature in (b"", own):
                self._world.table.plant(replace(blank, signature=signature))

    async def _believed(self, stream: Stream) -> None:
        """Somebody calls a peer that exists only in forged records."""
        self._witness.lured(stream.peer)
        await stream.close()
