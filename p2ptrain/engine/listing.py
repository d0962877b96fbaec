"""Who serves what, by the records that the directory gave last.

    records of a stage -> in order? -> of another peer, not gone, of this run's steps -> seats

Intuition: most of what is read was read before. Only what has changed is decoded again.

Invariants:
    * a record that is not in order is as if it were not there: anybody may write any bytes;
    * this peer never stands here: its own old records would mislead it after a restart;
    * of a stage at most SEATS_MOST records are looked at, those of the first peers by name.

Refused: adding up what several reads said. Who is listed no more has left, or its record has
expired; of both nothing should stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.assignment import SeatView
from p2ptrain.core.schedule import last_step
from p2ptrain.errors import WireError
from p2ptrain.units import Stage
from p2ptrain.wire.records import SeatRecord, decode_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from p2ptrain.ports import Record
    from p2ptrain.run import RunSpec
    from p2ptrain.units import PeerId

SEATS_MOST = 1024  # of one stage that are looked at; more than anybody needs to choose from


class Listing:
    """See the module. ``me``: who reads."""

    def __init__(self, me: PeerId, spec: RunSpec) -> None:
        self._me, self._last = me, last_step(spec)
        self._seats: dict[Stage, tuple[SeatView, ...]] = {
            Stage(stage): () for stage in range(spec.cut.stages)
        }
        self._decoded: dict[Stage, dict[PeerId, tuple[bytes, SeatView | None]]] = {}

    def take(self, stage: Stage, records: Sequence[Record]) -> None:
        """``records`` are all that lie under the key of ``stage`` now."""
        before, after = self._decoded.get(stage, {}), {}
        for record in sorted(records, key=lambda each: each.owner)[:SEATS_MOST]:
            value, view = before.get(record.owner, (None, None))
            if value != record.value:
                view = self._view(stage, record)
            after[record.owner] = (record.value, view)
        self._decoded[stage] = after
        self._seats[stage] = tuple(view for _, view in after.values() if view is not None)

    def seats(self) -> tuple[SeatView, ...]:
        """All seats, by stage and peer."""
        return tuple(view for views in self._seats.values() for view in views)

    def vacant(self) -> frozenset[Stage]:
        """Stages of which no seat is listed."""
        return frozenset(stage for stage, views in self._seats.items() if not views)

    def shape(self) -> list[tuple[Stage, PeerId, str]]:
        """What is news when it changes: rates and versions do all the time."""
        return [(view.stage, view.peer, view.state) for view in self.seats()]

    def _view(self, stage: Stage, record: Record) -> SeatView | None:
        try:
            seat = decode_record(record.value, SeatRecord)
        except WireError:
            return None
        beyond = seat.version > self._last + 1  # no seat of this run got there
        if seat.state == "gone" or record.owner == self._me or beyond:
            return None
        return SeatView(
            peer=record.owner,
            stage=stage,
            state=seat.state,
            rate=seat.rate,
            version=seat.version,
            epoch=seat.epoch,
        )


def at_listed_rates(
    listed: Iterable[SeatView], told: Mapping[PeerId, Mapping[Stage, SeatView]]
) -> Iterator[SeatView]:
    """Seats as their peers have ``told`` of them, each at the rate that is ``listed`` since.

    Of who sends us no heartbeats: its own word may be as old as the run, and say of a rate that
    it is not known yet.
    """
    for seat in listed:
        view = told.get(seat.peer, {}).get(seat.stage)
        if view is not None and view.state == seat.state and seat.rate:
            yield msgspec.structs.replace(view, rate=seat.rate)
