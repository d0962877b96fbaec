"""What a new seat needs before it serves: the stage's state, probed, and at stage 0 the data.

    at genesis   the initial weights, which everybody computes from the seed
    later        donors' snapshot (several give, see core/download) -> load -> probe
    nobody left  what a disk or the stage's buddy kept (holdings) -> load -> probe
    our own      that a seat of ours began its step with, to begin it again (rewinding)

The probe is a forward pass over fixed input. A state that two owners hold can still be of
no use *here*: another device, a fault of this machine's memory. Better found before the
first microbatch than by its neighbours.

Invariant: what does not load, verify or pass the probe is never served; the reason is told
once, and it is tried again at the next look.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core.lineage import Known, fitting
from p2ptrain.core.resuming import Holding
from p2ptrain.errors import LinkError, PeerError
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage, Step

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.pulling import Pulled
    from p2ptrain.ports import Corpus, StageCompute
    from p2ptrain.units import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Where a state that was loaded stands, and what its giver says of the step before.

    ``members``: the peers of that step's record, per stage; ``taken``: see StageManifest.
    """

    at: Position
    members: tuple[tuple[PeerId, ...], ...]
    taken: tuple[Sum, ...] = ()


DONORS_MOST = 6  # asked at once: more neither fill a line better nor vouch better


class Loader:
    """Loads what one node's seats need."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._told = ""
        self.own: dict[Stage, Pulled] = {}  # for the next seat of that stage, before all others

    async def state(self, stage: Stage, compute: StageCompute, *, fresh: bool) -> Loaded | None:
        """Where the stage stands, with its state loaded; None: not now.

        ``fresh``: nobody was ever heard to be past the first step.
        """
        node = self._node
        own = self.own.pop(stage, None)
        if own is not None or node.resumption.origin is not None:
            pull = node.resumption.fetch(stage) if own is None else _given(own)
            return await self._take_over(stage, compute, pull)
        fresh = (fresh or node.resumption.anew) and node.lineage.root.step == 0
        if fresh and all(view.version == 0 for view in node.roster.views()):
            return self._beginning()
        donors = self._donors(stage)
        early = node.lineage.root.step == 0 and self.foremost() <= 1
        if early and not donors and await self._seed_will_do(stage):
            return self._beginning()
        if not donors:
            pull = node.holdings.restore(stage, self.foremost())
            return await self._take_over(stage, compute, pull)
        taken = await self._take_over(stage, compute, self._pull(stage, donors))
        if taken is None and not set(donors) & set(node.links.peers()):  # all we knew are dead
            pull = node.holdings.restore(stage, self.foremost())
            return await self._take_over(stage, compute, pull)
        return taken

    async def _seed_will_do(self, stage: Stage) -> bool:
        """Whether the others are in the first step, or one further and can give that again.

        So they can if nobody is left: nobody has let anything go.
        """
        node, root, version = self._node, self._node.lineage.root, self.foremost()
        if version == root.step:
            return True
        others = await node.holdings.of_others()
        seed = (Holding(stage=stage, at=root),)
        known = Known(held=seed, let_go=node.holdings.let_go(others))
        return bool(fitting(root, version, stage, known))

    def _pull(self, stage: Stage, donors: list[PeerId]) -> Coroutine[None, None, Pulled]:
        """Two must give the same; where replicas drift apart, no two do between adoptions."""
        node, version = self._node, self._version()
        if node.spec.sync.agreement != "canonical":
            return node.snapshots.pull(stage, donors, version=version)
        self.alarm(f"stage {stage}: {donors[0]} alone vouches for its state until all adopt one")
        return node.snapshots.pull(stage, donors[:1], version=version, owners=1)

    async def _take_over(
        self, stage: Stage, compute: StageCompute, pull: Coroutine[None, None, Pulled]
    ) -> Loaded | None:
        node = self._node
        try:
            pulled = await pull
            if not node.lineage.admits(pulled.at):
                raise LinkError(f"its state of step {pulled.at.step} is of another history")
            await compute.load(pulled.blob)
            await compute.probe()
        except PeerError as error:
            self.alarm(f"no state for stage {stage}: {error.reason}")
            return None
        self._told = ""
        self._tell(stage, pulled)
        if node.lineage.begins(pulled.at):  # those who took that step may be gone
            return self._beginning()
        return Loaded(at=pulled.at, members=pulled.members, taken=pulled.taken)

    def _beginning(self) -> Loaded:
        """Where a lineage begins there is no step record: who serves then counts."""
        nobody = tuple(() for _ in range(self._node.spec.cut.stages))
        return Loaded(at=self._node.lineage.root, members=nobody)

    async def corpus(self) -> Corpus | None:
        """The run's data: ours, or pulled from a peer of stage 0."""
        world, data = self._node.world, self._node.spec.data
        if world.corpus is not None or world.corpus_from is None:
            return world.corpus
        donors = self._donors(Stage(0))
        try:
            blob = await self._node.snapshots.pull_corpus(donors, data.total_bytes, data.root)
            return world.corpus_from(blob)
        except PeerError as error:
            self.alarm(f"no data for stage 0: {error.reason}")
            return None

    def alarm(self, reason: str) -> None:
        """Once for each reason: it is tried again every look."""
        if reason != self._told:
            self._told = reason
            self._node.emit(ev.Alarm(reason=reason))

    def _donors(self, stage: Stage) -> list[PeerId]:
        """Some of those who serve ``stage``: who is behind the run last, else drawn."""
        node, version = self._node, self._version()
        views = [
            view
            for view in node.roster.views()
            if view.stage == stage and view.state != "joining" and view.peer != node.me
        ]
        ranked = [(view.version < version, node.rng.random(), view.peer) for view in views]
        return [peer for _, _, peer in sorted(ranked)[:DONORS_MOST]]

    def _version(self) -> Step:
        """Where the run stands: the middle of what all say, so that one who lies moves nothing.

        Of those heard so far, if there are any: the directory tells how far its records were.
        When nobody is left to say it, it stood where whoever has left was.
        """
        roster, root = self._node.roster, self._node.lineage.root
        views = [view for view in roster.views() if view.state != "joining"]
        heard = [view for view in views if roster.counts(view.peer)] or views
        versions = [view.version for view in heard]
        left = max(root.step, roster.departed.middle)
        return Step(statistics.median_low(versions)) if versions else left

    def foremost(self) -> Step:
        """Where the run stands, of those who have stepped already: nobody is further ahead.

        A seat of ours knows it to a step; of far stages we may have heard long ago.
        """
        node = self._node
        told = [view.version for view in node.roster.views() if view.state != "joining"]
        own = [seat.version for seat in node.seats.values() if seat.position is not None]
        known = max(own, default=self._version())
        return max((version for version in told if version <= known + 1), default=known)

    def _tell(self, stage: Stage, pulled: Pulled) -> None:
        loaded = ev.StateLoaded(
            stage=stage,
            version=pulled.at.step,
            source=pulled.sources[0],
            size_bytes=len(pulled.blob),
            sources=pulled.sources,
        )
        self._node.emit(loaded)


async def _given(pulled: Pulled) -> Pulled:
    return pulled
