"""A simulated DHT: one table of signed, owned, expiring records that all peers share.

It keeps the promises of ``ports.Directory`` (size, lifetime, one record per owner, the
highest sequence wins, nothing unsigned or forged is taken or shown) and fails as a DHT
does: it answers after a while, or, while it is down or this peer is cut off, not at all.
Split by a partition it goes on as one table per side, and the newer record wins when the
sides meet again. It is a hint: nothing in a run may depend on it for longer than a start.

Records are checked both when they are put and when they are read, by the reader's own
signer, so that ``put`` can be handed forgeries: they must leave no trace.

Refused: routing tables and hops. What the engine can see of them is the delay.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from p2ptrain.errors import DirectoryError
from p2ptrain.ports import Record
from p2ptrain.wire.records import SeatRecord, decode_record

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from p2ptrain.ports import Signer
    from p2ptrain.units import PeerId, Seconds

MAX_VALUE_BYTES = 4096
MAX_LIFETIME_SECONDS = 120.0

DEADLINE_SECONDS = 5.0
"""How long a call waits before it says that the directory does not answer."""

DELAY_SECONDS = 0.15
"""Of a lookup: a few hops of a small DHT over 50 ms links."""

JITTER_SECONDS = 0.1

HEARING_SECONDS = 2.0
"""Who calls once a second until it is answered has by then told of four seats, one by one."""

SEQUENCES_PER_SECOND = 1_000_000
"""Sequences begin at the time, so that a restarted peer's records replace its old ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A record as it lies in the table, with the signature over all the rest."""

    key: str
    owner: PeerId
    sequence: int
    expires_at: Seconds
    value: bytes
    signature: bytes

    def signed_bytes(self) -> bytes:
        """What the owner signs."""
        head = f"{self.key}\0{self.owner}\0{self.sequence}\0{self.expires_at!r}\0"
        return head.encode() + self.value


class SimTable:
    """What all directories of one simulated world hold together.

    ``down``: nobody gets an answer; who is unplugged gets none. ``refused`` counts the
    records that were not in order, or older than what was there.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.down = False
        self.refused = 0
        self._unplugged: set[PeerId] = set()
        self._plugged_at: dict[PeerId, Seconds] = {}
        self._seed = seed
        self._side: dict[PeerId, int] = {}
        self._tables: list[dict[str, dict[PeerId, Stored]]] = [{}]
        self._planted: dict[str, list[Stored]] = {}

    def directory(self, signer: Signer) -> SimDirectory:
        """The directory as ``signer.peer`` sees it."""
        return SimDirectory(self, signer, Random(f"{self._seed}/directory/{signer.peer}"))

    def answers(self, peer: PeerId) -> bool:
        """Whether a call of ``peer`` gets an answer."""
        return not self.down and peer not in self._unplugged

    def unplug(self, peer: PeerId) -> None:
        """``peer`` gets no answer from now on."""
        self._unplugged.add(peer)

    def plug(self, peer: PeerId) -> None:
        """It does again; harmless if it did all the time."""
        if peer in self._unplugged:
            self._unplugged.discard(peer)
            self._plugged_at[peer] = asyncio.get_running_loop().time()

    def has_listened(self, peer: PeerId) -> bool:
        """Whether ``peer`` has been answered for so long that it could have said all it had to."""
        since = asyncio.get_running_loop().time() - self._plugged_at.get(peer, -HEARING_SECONDS)
        return self.answers(peer) and since >= HEARING_SECONDS

    def put(self, stored: Stored, judge: Signer, *, now: Seconds) -> bool:
        """Take ``stored`` into the table of its judge's side if it is in order."""
        table = self._tables[self._side.get(judge.peer, 0)].setdefault(stored.key, {})
        if not self.in_order(stored, judge, now=now):
            return False
        old = table.get(stored.owner)
        if old is not None and old.sequence >= stored.sequence and old.expires_at > now:
            self.refused += 1
            return False
        table[stored.owner] = stored
        return True

    def plant(self, stored: Stored) -> None:
        """Let everybody find ``stored`` unchecked, as from a node without our validator."""
        self._planted.setdefault(stored.key, []).append(stored)

    def look_up(self, key: str, judge: Signer, *, now: Seconds) -> tuple[Record, ...]:
        """All records under ``key`` that are in order, by owner."""
        table = self._tables[self._side.get(judge.peer, 0)].get(key, {})
        for owner in [owner for owner, stored in table.items() if stored.expires_at <= now]:
            del table[owner]
        found: dict[PeerId, Record] = {}
        for stored in (*table.values(), *self._planted.get(key, ())):
            rival = found.get(stored.owner)
            newer = rival is None or rival.sequence < stored.sequence
            if newer and self.in_order(stored, judge, now=now):
                found[stored.owner] = Record(
                    owner=stored.owner, sequence=stored.sequence, value=stored.value
                )
        return tuple(record for _, record in sorted(found.items()))

    def serving(self, peer: PeerId, incarnation: int) -> int:
        """How many records say that this start of ``peer`` has a seat.

        What an earlier start left expires by itself.
        """
        found = [
            record[peer]
            for key, record in self._tables[self._side.get(peer, 0)].items()
            if peer in record and "/stage/" in key
        ]
        seats = [decode_record(each.value, SeatRecord) for each in found]
        return sum(seat.state != "gone" and seat.incarnation == incarnation for seat in seats)

    def in_order(self, stored: Stored, judge: Signer, *, now: Seconds) -> bool:
        """Whether size, lifetime and signature are right; counts those that are not."""
        good = (
            len(stored.value) <= MAX_VALUE_BYTES
            and now < stored.expires_at <= now + MAX_LIFETIME_SECONDS
            and judge.verify(stored.owner, stored.signed_bytes(), stored.signature)
        )
        self.refused += not good
        return good

    def split(self, groups: Sequence[Collection[PeerId]]) -> None:
        """One table per group from now on, all equal at first; others side with the first."""
        self.merge()
        self._side = {peer: side for side, group in enumerate(groups) for peer in group}
        whole = self._tables[0]
        self._tables = [{key: dict(whole[key]) for key in whole} for _ in groups]

    def merge(self) -> None:
        """One table again: of every owner the record with the highest sequence."""
        whole = self._tables[0]
        for table in self._tables[1:]:
            for key, records in table.items():
                for owner, stored in records.items():
                    old = whole.setdefault(key, {}).get(owner)
                    if old is None or old.sequence < stored.sequence:
                        whole[key][owner] = stored
        self._tables = [whole]
        self._side = {}


class SimDirectory:
    """One peer's view of the table: implements ``ports.Directory``."""

    def __init__(self, table: SimTable, signer: Signer, rng: Random) -> None:
        self._table = table
        self._signer = signer
        self._rng = rng
        self._sequence = 0

    async def store(self, key: str, value: bytes, *, lifetime: Seconds) -> bool:
        """See ``ports.Directory``."""
        if len(value) > MAX_VALUE_BYTES:
            msg = f"a record of {len(value)} bytes: at most {MAX_VALUE_BYTES}"
            raise ValueError(msg)
        if not 0 < lifetime <= MAX_LIFETIME_SECONDS:
            msg = f"a lifetime of {lifetime} s: at most {MAX_LIFETIME_SECONDS}"
            raise ValueError(msg)
        expires_at = asyncio.get_running_loop().time() + lifetime
        now = await self._answer()
        self._sequence = max(self._sequence + 1, int(now * SEQUENCES_PER_SECOND))
        stored = self.signed(key, value, sequence=self._sequence, expires_at=expires_at)
        return self._table.put(stored, self._signer, now=now)

    async def read(self, key: str) -> tuple[Record, ...]:
        """See ``ports.Directory``."""
        now = await self._answer()
        return self._table.look_up(key, self._signer, now=now)

    def signed(self, key: str, value: bytes, *, sequence: int, expires_at: Seconds) -> Stored:
        """Our record as it would lie in the table."""
        blank = Stored(
            key=key,
            owner=self._signer.peer,
            sequence=sequence,
            expires_at=expires_at,
            value=value,
            signature=b"",
        )
        return replace(blank, signature=self._signer.sign(blank.signed_bytes()))

    async def _answer(self) -> Seconds:
        """Wait as long as a lookup takes; the time then."""
        await asyncio.sleep(DELAY_SECONDS + self._rng.random() * JITTER_SECONDS)
        if not self._table.answers(self._signer.peer):
            await asyncio.sleep(DEADLINE_SECONDS)
            msg = f"the directory did not answer within {DEADLINE_SECONDS:.0f} s"
            raise DirectoryError(msg)
        return asyncio.get_running_loop().time()
