"""Everything that the links bring, brought to whoever must hear it, in one order.

    control: the neighbourhood hears that the peer lives -> heartbeat | flow | round |
             leaving | transfers                         -> the timer is re-armed
    data:    the same                                    -> transfers | pipeline, reduction
    up, down: the neighbourhood                          -> the timer is re-armed

Invariants:
    * that a peer was heard is known before what it said is looked at: a false suspicion
      must not outlive the message that refutes it;
    * after everything but a heartbeat without news, every deadline is looked at again.

Refused: each part registering with the links itself. Who hears first would then depend on
the order of construction, and deadlines would be missed where one forgets to re-arm.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.lineage import Rollback
from p2ptrain.engine.dispatch import Flow, Round
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from p2ptrain.engine.dispatch import Dispatcher
    from p2ptrain.engine.holdings import Holdings
    from p2ptrain.engine.lineage import Lineage
    from p2ptrain.engine.links import Links
    from p2ptrain.engine.neighbourhood import Neighbourhood
    from p2ptrain.engine.resuming import Resumption
    from p2ptrain.engine.timer import Timer
    from p2ptrain.engine.transfers import Snapshots
    from p2ptrain.units import PeerId, Seconds


class Reception:
    """Hears ``links`` from :meth:`attend` on.

    ``give_state``: answers who wants a snapshot of ours; False where we serve no such seat.
    """

    def __init__(
        self,
        links: Links,
        dispatch: Dispatcher,
        near: Neighbourhood,
        snapshots: Snapshots,
        timer: Timer,
        give_state: Callable[[PeerId, m.WantManifest], bool],
    ) -> None:
        self.resumption: Resumption | None = None  # who hears what others hold on their disks
        self.lineage: Lineage | None = None  # which history is ours
        self.holdings: Holdings | None = None  # who knows what we hold beside our seats
        self._links, self._dispatch, self._near = links, dispatch, near
        self._snapshots, self._timer, self._give_state = snapshots, timer, give_state
        self._distrust: Container[PeerId] = frozenset()

    def attend(self, distrust: Container[PeerId] = frozenset()) -> None:
        """Take over the callbacks of the links; who is in ``distrust`` might as well be silent."""
        self._distrust = distrust
        links = self._links
        links.on_control, links.on_data = self._on_control, self._on_data
        links.on_up, links.on_down = self._on_up, self._on_down
        links.beats_to = self._near.is_near

    def _on_control(self, peer: PeerId, message: m.Control) -> None:
        if peer not in self._distrust:
            self._hear(peer, message)

    def _hear(self, peer: PeerId, message: m.Control) -> None:
        now = _now()
        self._near.heard(peer, now)
        if isinstance(message, m.Heartbeat):
            if not self._told(peer, message, now):
                self._timer.wake_by(self._near.due_at)  # the only deadline it may have set
                return
        elif isinstance(message, Flow):
            self._dispatch.flow(peer, message, now)
        elif isinstance(message, Round):
            self._dispatch.round(peer, message, now)
        elif isinstance(message, m.Leaving | m.Held | m.WantHeld | Rollback):
            self._word(peer, message, now)
        elif isinstance(message, m.WantManifest) and self._give_state(peer, message):
            pass
        elif not self._snapshots.handle(peer, message) and isinstance(message, m.NoSuch):
            self._dispatch.round(peer, message, now)  # else: nobody waits for it any more
        self._timer.rearm()

    def _told(self, peer: PeerId, message: m.Heartbeat, now: Seconds) -> bool:
        if self.lineage is not None:
            self.lineage.told(peer, message)
        return self._near.told(peer, message, now)

    def _word(
        self, peer: PeerId, message: m.Leaving | m.Held | m.WantHeld | Rollback, now: Seconds
    ) -> None:
        if isinstance(message, Rollback):
            if self.lineage is not None:
                self.lineage.heard(peer, message)
        elif isinstance(message, m.Leaving):
            self._near.left(peer, now)
        elif self.holdings is not None and self.resumption is not None:
            if isinstance(message, m.WantHeld):
                self.holdings.asked(peer)
            else:
                self.holdings.heard(peer, message)
                self.resumption.heard(peer, message)

    def _on_data(self, peer: PeerId, message: m.Data, payload: memoryview) -> None:
        if peer in self._distrust:
            return
        now = _now()
        self._near.heard(peer, now)
        if not self._snapshots.handle(peer, message, payload):
            self._dispatch.frame(peer, message, payload, now)
        self._timer.rearm()

    def _on_up(self, peer: PeerId) -> None:
        if peer in self._distrust:
            return
        self._near.up(peer, self._links.incarnation(peer), _now())
        if self.resumption is not None and self.lineage is not None:
            self.resumption.up(peer)
            self.lineage.up(peer)
        self._timer.rearm()

    def _on_down(self, peer: PeerId, _reason: str) -> None:
        self._near.down(peer, _now())
        self._snapshots.lost(peer)
        if self.resumption is not None and self.holdings is not None:
            self.resumption.down(peer)
            self.holdings.down(peer)
        self._timer.rearm()


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
