"""What this peer tells the directory of itself, and what the directory tells of others.

    announcing   own seats, at once when they change and every third of a record's life;
                 the RunSpec and the run's name, while fewer than SPONSORS others do
    reading      all stages (see listing): quickly at first and while one has nobody, then seldom
    withdrawing  what was announced, when we leave: until the directory has heard it, or for
                 WITHDRAW_TRIES seconds

Intuition: the directory is how strangers find each other, no more. Whatever it says is
replaced by first-hand news (heartbeats) as soon as there is a link, and when it fails,
what was read last stays: training goes on without it.

Invariants:
    * a failed read or write changes nothing that is known, and is tried again later;
    * at most READ_AT_ONCE calls are under way; phases are drawn, so peers do not call in step.

Refused: subscriptions and gossip of records. The engine's own links carry what is urgent.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from p2ptrain.engine.listing import Listing
from p2ptrain.errors import DirectoryError
from p2ptrain.observe.events import Alarm
from p2ptrain.run import encode
from p2ptrain.units import Stage, Step
from p2ptrain.wire.records import (
    ADDRESSES_MOST,
    NAME_CHARACTERS_MOST,
    RUNS_KEY,
    CommitRecord,
    RunEntry,
    RunsRecord,
    SeatRecord,
    commit_key,
    encode_record,
    spec_key,
    stage_key,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from p2ptrain.core.assignment import SeatState, SeatView
    from p2ptrain.observe.events import Emit
    from p2ptrain.ports import Directory
    from p2ptrain.run import RunSpec
    from p2ptrain.units import PeerId, RunId, Seconds
    from p2ptrain.wire.messages import SeatStatus

SPONSORS = 5  # copies of the RunSpec (4 kB each) under one key; each outlives its owner a while
READ_AT_ONCE = 4  # calls under way: a DHT shares its pipe with everybody else's calls
FIRST_GAP_SECONDS = 1.0  # between the first reads: peers that start together find each other
HOLE_GAP_SECONDS = 2.0  # while a stage has nobody, everybody waits for it
GAP_GROWTH = 1.5
CHANGE_GAP_SECONDS = 0.5  # between two announcements of changes
RETRY_SECONDS = 2.0  # after a failed write
COMMIT_GAP_SECONDS = 10.0  # commits are a trail for latecomers, not a channel
WITHDRAW_GAP_SECONDS = 1.0  # between two tries to withdraw: several times an answer's time
WITHDRAW_TRIES = 6  # more than p2pd takes to be restarted; who pressed Ctrl-C waits that long
ALARM_FAILURES = 3  # failed reads of everything in a row before somebody is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """Who announces: this start of this peer, in this run."""

    run: RunId
    peer: PeerId
    incarnation: int
    addresses: tuple[str, ...] = ()


class Presence:
    """See the module. Run :meth:`run`; ``ready`` is set after the first whole read."""

    def __init__(
        self,
        directory: Directory,
        spec: RunSpec,
        me: Announcer,
        *,
        rng: random.Random,
        emit: Emit,
    ) -> None:
        self.ready: Final = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        self._directory = directory
        self._spec = spec
        self._run = me.run
        self._me = me
        self._rng = rng
        self._emit = emit
        self._stages = tuple(Stage(stage) for stage in range(spec.cut.stages))
        self._listing = Listing(me.peer, spec)
        self._own: dict[Stage, SeatStatus] = {}
        self._versions: dict[Stage, Step] = {}
        self._published: set[Stage] = set()
        self._commits: dict[Stage, CommitRecord] = {}
        self._commits_at: Seconds = -COMMIT_GAP_SECONDS
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        self._failures = 0
        self._left = False
        self._announcing: asyncio.Task[None] | None = None

    # --- told by the engine ----------------------------------------------------------------

    def announce(self, statuses: Sequence[SeatStatus]) -> None:
        """These are our seats now. Cheap: call it whenever they may have changed."""
        if self._left:
            return  # a seat may still come to its step's end
        own = {status.stage: status for status in statuses}
        if self._shape(own) != self._shape(self._own):
            self._changed.set()
            self._look.set()
        self._own = own
        self._versions = {s: v for s, v in self._versions.items() if s in own}

    def committed(self, stage: Stage, commit: CommitRecord) -> None:
        """Our seat of ``stage`` has taken a step."""
        self._commits[stage] = commit
        self._versions[stage] = Step(commit.step + 1)
        if commit.step == 0:
            self._changed.set()  # from now on a newcomer must fetch state: say so at once

    def seats(self) -> tuple[SeatView, ...]:
        """Seats of others as read last, by stage and peer."""
        return self._listing.seats()

    async def withdraw(self) -> None:
        """Say that we have left; gives up quietly when the directory does not hear it.

        A call that meets a p2pd that stands still may never be answered, one that meets a slow
        directory is answered late, and while p2pd restarts each fails at once. So every second
        one more sets out and none is called back: the first that is answered ends it. Only our
        own seconds count, for a process that stood still finds one of them over, however long
        it was. What is given up on expires by itself, and who is near hears of us directly.
        """
        self._left, self._own = True, {}
        if self._announcing is not None:
            self._announcing.cancel()  # else its older word could come in last
        told = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tries = []
            for _ in range(WITHDRAW_TRIES):
                tries.append(group.create_task(self._say_gone(told)))
                if await _wait(told, WITHDRAW_GAP_SECONDS):
                    break
            for each in tries:
                each.cancel()

    async def _say_gone(self, told: asyncio.Event) -> None:
        with suppress(DirectoryError):
            await self._publish_seats()
            told.set()

    # --- announcing ------------------------------------------------------------------------

    async def run(self) -> None:
        """Announce and read until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._announcing = tasks.create_task(self._announce_forever())
            tasks.create_task(self._read_forever())

    async def _announce_forever(self) -> None:
        period = self._spec.limits.record_seconds / 3
        while True:
            self._changed.clear()
            try:
                await self._publish_seats()
                await self._publish_commits()
                await self._sponsor()
                wait = self._draw(period)
            except DirectoryError:
                wait = RETRY_SECONDS
            await asyncio.sleep(CHANGE_GAP_SECONDS)
            await _wait(self._changed, wait)

    async def _publish_seats(self) -> None:
        for stage in sorted(self._published | set(self._own)):
            status = self._own.get(stage)
            if status is None:
                start = self._me.incarnation
                record = SeatRecord(
                    state="gone", version=Step(0), rate=0.0, queue=0, incarnation=start
                )
            else:
                self._published.add(stage)
                record = SeatRecord(
                    state=_listed(status),
                    version=max(status.version, self._versions.get(stage, Step(0))),
                    rate=status.rate,
                    queue=status.queue,
                    incarnation=self._me.incarnation,
                    addresses=self._me.addresses[:ADDRESSES_MOST],
                    epoch=status.epoch,
                )
            await self._store(stage_key(self._run, stage), encode_record(record))
            if status is None:
                self._published.discard(stage)

    async def _publish_commits(self) -> None:
        now = asyncio.get_running_loop().time()
        if not self._commits or now - self._commits_at < COMMIT_GAP_SECONDS:
            return
        self._commits_at = now
        for stage, commit in sorted(self._commits.items()):
            await self._store(commit_key(self._run, stage), encode_record(commit))
        self._commits.clear()

    async def _sponsor(self) -> None:
        """Publish RunSpec and run, unless enough others do already."""
        entry = RunEntry(run=self._run, name=self._spec.name[:NAME_CHARACTERS_MOST])
        runs = encode_record(RunsRecord(runs=(entry,)))
        for key, value in ((spec_key(self._run), encode(self._spec)), (RUNS_KEY, runs)):
            same = [each.owner for each in await self._directory.read(key) if each.value == value]
            if self._me.peer in same or len(same) < SPONSORS:
                await self._store(key, value)

    async def _store(self, key: str, value: bytes) -> None:
        lifetime = self._spec.limits.record_seconds
        if not await self._directory.store(key, value, lifetime=lifetime):
            raise DirectoryError(f"nobody took the record {key}")

    # --- reading ---------------------------------------------------------------------------

    async def _read_forever(self) -> None:
        slowest = self._spec.limits.record_seconds / 3
        gap = FIRST_GAP_SECONDS
        while True:
            self._look.clear()
            before = self._listing.shape()
            answered = await self._read_all()
            self._note(answered=answered)
            if before != self._listing.shape():
                gap = FIRST_GAP_SECONDS
                self.on_change()
            hole = self._listing.vacant().difference(self._own)
            most = min(slowest, HOLE_GAP_SECONDS) if hole else slowest
            if await _wait(self._look, self._draw(min(gap, most))):
                gap = FIRST_GAP_SECONDS
                await asyncio.sleep(CHANGE_GAP_SECONDS)
            gap = min(gap * GAP_GROWTH, slowest)

    async def _read_all(self) -> bool:
        """Read every stage; whether all of them answered."""
        places = asyncio.Semaphore(READ_AT_ONCE)
        answered = []

        async def read(stage: Stage) -> None:
            async with places:
                try:
                    records = await self._directory.read(stage_key(self._run, stage))
                except DirectoryError:
                    return
                self._listing.take(stage, records)
                answered.append(stage)

        async with asyncio.TaskGroup() as tasks:
            for stage in self._stages:
                tasks.create_task(read(stage))
        return len(answered) == len(self._stages)

    def _note(self, *, answered: bool) -> None:
        if answered:
            self._failures = 0
            self.ready.set()
            return
        self._failures += 1
        if self._failures == ALARM_FAILURES:
            known = len(self.seats())
            self._emit(
                Alarm(reason=f"the directory does not answer; going on with {known} known seats")
            )

    def _draw(self, seconds: Seconds) -> Seconds:
        return seconds * self._rng.uniform(0.8, 1.2)

    @staticmethod
    def _shape(own: dict[Stage, SeatStatus]) -> list[tuple[Stage, str, bool]]:
        """What is told at once when it changes: a rate when it is known, not what it is."""
        return sorted((stage, _listed(each), each.rate > 0) for stage, each in own.items())


def _listed(status: SeatStatus) -> SeatState:
    """As it is announced: only who counts beside a draining seat need know that it has parted."""
    return "draining" if status.state == "parted" else status.state


async def _wait(event: asyncio.Event, seconds: Seconds) -> bool:
    """Whether ``event`` came within ``seconds``."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
