"""The checkpoints of one peer: saves its seats' states at step boundaries, finds them again.

    a seat has stepped --due--> compute.save() --> hashed, chunk by chunk --> state --> header
    a stage's buddy has pulled its state (engine/buddies) --> the same
    a peer starts ------------> headers --> states, each checked against its root --> holdings

What is saved is the same blob that joiners get, so a checkpoint can be given on as it is.
Only the copy in memory stands in the way of the next step; hashing gives way to the loop,
and the disk has a thread.

Invariants:
    * a state is saved of the position that its header says: one during which a step was taken
      is dropped;
    * nothing that does not match its root leaves this module, and what was found not to is not
      counted among what is held until it has been saved again;
    * whatever a disk refuses costs that checkpoint and an alarm, and nothing else;
    * one save of a stage at a time: a disk slower than the steps skips checkpoints, but not the
      last of who leaves.

Refused: saving in the step itself, to be sure of it. A slow disk would slow all peers down.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core import checkpoint as c
from p2ptrain.core.merkle import leaf_digest, merkle_root
from p2ptrain.core.resuming import Holding
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.pulling import Pulled
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.ports import Buffer, Store
    from p2ptrain.units import Digest, RunId, Stage


class Archive:
    """Checkpoints of one run in ``store``, every ``every_steps`` steps (0: none is written).

    ``lasting``: the store outlives this process, so what is saved there is told.
    """

    def __init__(
        self,
        store: Store,
        run: RunId,
        every_steps: int,
        *,
        emit: ev.Emit,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        lasting: bool = True,
    ) -> None:
        self._store, self._run, self._every_steps = store, run, every_steps
        self._lasting = lasting
        self._emit, self._spawn = emit, spawn
        self._saving: set[Stage] = set()
        self._begun: dict[Stage, Position] = {}  # which state of each was to be saved last
        self._last: dict[Stage, SeatRuntime] = {}  # who leaves: to be saved once more
        self._refused: set[tuple[Stage, c.Mark]] = set()  # read in vain: held no more

    @classmethod
    def of(cls, node: Node) -> Archive | None:
        """The archive of a node that has somewhere to keep it."""
        store, every = node.world.store, node.spec.checkpoint.every_steps
        if store is None:
            return None
        return cls(store, node.run_id, every, emit=node.emit, spawn=node.spawn)

    def stepped(self, seat: SeatRuntime) -> None:
        """``seat`` stands at a step boundary: save it, if that is due. Returns at once."""
        if not self._every_steps or (seat.version % self._every_steps and not seat.finished):
            return
        self._begin(seat)

    def leave(self, seat: SeatRuntime) -> None:
        """Save what was not due: nobody stays who would hold what the last steps have made.

        Once: leaving takes a while, and may be looked at again. Not skipped, however slow the
        disk is: nothing follows that could be saved instead.
        """
        begun = self._begun.get(seat.stage)
        if not self._every_steps or not seat.version or begun == seat.standing()[0]:
            return
        if seat.stage in self._saving:
            self._begun[seat.stage], self._last[seat.stage] = seat.standing()[0], seat
            return
        self._begin(seat)

    def _begin(self, seat: SeatRuntime) -> None:
        self._begun[seat.stage] = seat.standing()[0]
        if seat.stage in self._saving:
            self._alarm(seat.stage, seat.version, "the one before is still being written")
            return
        self._saving.add(seat.stage)
        self._spawn(self._save(seat))

    async def survey(self) -> tuple[Holding, ...]:
        """Every checkpoint here that is whole, newest first in each stage; reads them all."""
        try:
            found = c.listed(await self._store.names(), self._run)
        except OSError as error:
            self._emit(ev.Alarm(reason=f"checkpoints cannot be read: {_why(error)}"))
            return ()
        holdings = []
        for stage, marks in found.items():
            for mark in marks:
                whole = await self._load(stage, mark)
                if whole is not None:
                    holdings.append(Holding(stage=stage, at=whole[0].at))
        return tuple(holdings)

    async def keep(self, stage: Stage, pulled: Pulled) -> bool:
        """Keep a state of another peer's stage; whether it is here now, in place of older ones.

        What it was pulled by has been checked against its root: another is made of the bytes
        that lie here.
        """
        header = c.Header(
            format=c.FORMAT,
            run=self._run,
            stage=stage,
            at=pulled.at,
            members=pulled.members,
            size_bytes=len(pulled.blob),
            root=await _root(pulled.blob),
        )
        return await self._write(header, pulled.blob)

    async def holdings(self) -> list[Holding]:
        """Every checkpoint here that has a header, by stage, newest first; no state is read."""
        try:
            stages = c.listed(await self._store.names(), self._run)
        except OSError as error:
            self._emit(ev.Alarm(reason=f"checkpoints cannot be read: {_why(error)}"))
            return []
        return [Holding(stage=s, at=at) for s in stages for at in await self.positions(s)]

    async def positions(self, stage: Stage) -> list[Position]:
        """Of what steps there are headers of ``stage``, newest first; their states are not read."""
        found = []
        try:
            marks = c.listed(await self._store.names(), self._run).get(stage, [])
            for mark in marks:
                if (stage, mark) in self._refused:
                    continue  # who asks would wait for it for ever
                name = c.name_of(self._run, stage, mark, c.HEADER_SUFFIX)
                header = c.admit(await self._store.get(name) or b"", self._run, stage, mark)
                if not isinstance(header, str):
                    found.append(header.at)
        except OSError as error:
            self._emit(ev.Alarm(reason=f"checkpoints cannot be read: {_why(error)}"))
        return found

    async def read(self, stage: Stage, at: Position) -> bytes | None:
        """The state of ``stage`` at ``at``, if it is here and whole."""
        whole = await self.whole(stage, at)
        return None if whole is None else whole[1]

    async def whole(self, stage: Stage, at: Position) -> tuple[c.Header, bytes] | None:
        """The checkpoint of ``stage`` at ``at``, if it is here and whole."""
        found = await self._load(stage, c.Mark(at.epoch, at.step))
        return found if found is not None and found[0].at == at else None

    async def _load(self, stage: Stage, mark: c.Mark) -> tuple[c.Header, bytes] | None:
        """A checkpoint, checked whole; what is not whole is told and as if not there."""
        try:
            sealed = await self._store.get(c.name_of(self._run, stage, mark, c.HEADER_SUFFIX))
            state = await self._store.get(c.name_of(self._run, stage, mark, c.STATE_SUFFIX))
        except OSError as error:
            self._refuse(stage, mark, _why(error))
            return None
        if sealed is None:
            return None
        header = c.admit(sealed, self._run, stage, mark)
        if isinstance(header, str):
            self._refuse(stage, mark, header)
        elif state is None or not c.fits(header, len(state), await _root(state)):
            self._refuse(stage, mark, "its state is torn")
        else:
            return header, state
        return None

    async def _save(self, seat: SeatRuntime) -> None:
        """Cancelled, it leaves the checkpoint before this one, whole."""
        try:
            await self._save_once(seat)
            while (leaver := self._last.pop(seat.stage, None)) is not None:
                await self._save_once(leaver)
        finally:
            self._saving.discard(seat.stage)

    async def _save_once(self, seat: SeatRuntime) -> None:
        at, members = seat.standing()
        state = await seat.compute.save()
        if seat.standing()[0] != at:
            return  # a step was taken meanwhile: nobody can say of which this is
        header = c.Header(
            format=c.FORMAT,
            run=self._run,
            stage=seat.stage,
            at=at,
            members=members,
            size_bytes=len(state),
            root=await _root(state),
        )
        if await self._write(header, state) and self._lasting:
            at_step, size = header.at.step, len(state)
            saved = ev.CheckpointSaved(stage=seat.stage, version=at_step, size_bytes=size)
            self._emit(saved)

    async def _write(self, header: c.Header, state: Buffer) -> bool:
        """Whether it is whole in the store now."""
        stage, mark = header.stage, c.Mark(header.at.epoch, header.at.step)
        try:
            await self._store.put(c.name_of(self._run, stage, mark, c.STATE_SUFFIX), state)
            await self._store.put(
                c.name_of(self._run, stage, mark, c.HEADER_SUFFIX), c.seal(header)
            )
        except OSError as error:
            self._alarm(stage, header.at.step, _why(error))
            return False
        self._refused.discard((stage, mark))
        try:
            for name in c.superseded(await self._store.names(), self._run, stage, mark):
                await self._store.remove(name)
        except OSError as error:
            self._emit(ev.Alarm(reason=f"old checkpoints stay on the disk: {_why(error)}"))
        return True

    def _alarm(self, stage: Stage, step: int, why: str) -> None:
        reason = f"no checkpoint of stage {stage} at step {step}: {why}; training goes on"
        self._emit(ev.Alarm(reason=reason))

    def _refuse(self, stage: Stage, mark: c.Mark, why: str) -> None:
        self._refused.add((stage, mark))
        reason = f"the checkpoint of stage {stage} at step {mark.step} is not used: {why}"
        self._emit(ev.Alarm(reason=reason))


async def _root(state: Buffer) -> Digest:
    """The root of a state; gives way between its chunks."""
    leaves = []
    for piece in c.pieces(state):
        leaves.append(leaf_digest(piece))
        await asyncio.sleep(0)
    return merkle_root(leaves)


def _why(error: OSError) -> str:
    return error.strerror or str(error)
