"""What this peer keeps of stages that it does not serve, so that no stage dies with its replicas.

    a seat of ours has stepped, a step is due, we are a stage's buddy (core/buddies)
        --> pull its state as a joiner would, checked --> the archive, in place of the one before

Invariants:
    * one pull of a stage at a time: a line slower than the steps skips some;
    * what cannot be had or kept costs that copy and nothing else; the step never waits;
    * the state here is of no use to ourselves: it is given to whoever comes to serve the stage.

Refused: replicas sending their state. Who sends does not know what the receiver has room
for, and two of them would have to agree on which of them sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.buddies import donors, due, wards
from p2ptrain.errors import PeerError
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from p2ptrain.engine.archive import Archive
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import PeerId, Stage, Step


class Buddies:
    """The stages that one node guards. ``archive``: where their states are kept."""

    def __init__(self, node: Node, archive: Archive) -> None:
        self._node, self._archive = node, archive
        self._asked: dict[Stage, Step] = {}
        self._pulling: set[Stage] = set()

    def stepped(self, seat: SeatRuntime) -> None:
        """``seat`` stands at a step boundary: so do the stages beside it, or soon."""
        node, version = self._node, seat.version
        if seat.finished or not due(node.spec.checkpoint.every_steps, version):
            return
        serving = self._serving()
        for stage in wards(node.run_id, node.me, serving):
            if stage not in self._pulling and self._asked.get(stage) != version:
                self._asked[stage] = version
                self._pulling.add(stage)
                givers = donors(node.run_id, stage, version, serving[stage])
                node.spawn(self._keep(stage, version, givers))

    def _serving(self) -> dict[Stage, list[PeerId]]:
        found: dict[Stage, list[PeerId]] = {}
        for view in self._node.roster.views():
            if view.state != "joining":
                found.setdefault(view.stage, []).append(view.peer)
        return found

    async def _keep(self, stage: Stage, version: Step, givers: tuple[PeerId, ...]) -> None:
        """Cancelled, it leaves the copy before this one, whole."""
        snapshots = self._node.snapshots
        try:
            pulled = await snapshots.pull(stage, givers, version=version, owners=len(givers))
            if await self._archive.keep(stage, pulled):
                size = len(pulled.blob)
                kept = ev.StateKept(stage=stage, version=pulled.at.step, size_bytes=size)
                self._node.emit(kept)
        except PeerError:
            pass  # who could not give is named in events of its own; the next step is due soon
        finally:
            self._pulling.discard(stage)
