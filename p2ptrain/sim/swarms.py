"""Random swarms: from a plan a swarm, its troubles, and the verdict on what it did.

    seed -> drawing -> SwarmPlan -> run -> Outcome (how it ended, what fired where, its log's hash)

A plan is a value that says everything, so that a failure is repeated from its seed, and a
shorter plan (see shrinking) from its text. Everything that happens hangs on points of the
protocol, not on instants: "the 17th microbatch counted", "the second plan on its way".

Outcomes:
    trained    everybody's last step has committed, every checker is content
    violated   a checker is not
    stalled    no end, although every stage had somebody with its newest state
    bereft     no end, because the newest state of a stage died with its last holder: seen
               from outside where no states are kept, said by the peers (RunLost) where they are
    crashed    the engine raised what it should not

Invariant: equal plans give equal event logs.

Refused: a plan drawn while it is carried out. What a fault hits would then change the
draws behind it, and no shorter plan would still be the same story.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from p2ptrain.errors import InternalError
from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint
from p2ptrain.sim import loop
from p2ptrain.sim.bereavement import bereft_stages
from p2ptrain.sim.blows import Blow, Striker
from p2ptrain.sim.forger import Forger
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.spill import disk_bytes, short_of_memory
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.sim.witness import Witness
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Seconds, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.sim.points import Side
    from p2ptrain.sim.verdicts import Verdict
    from p2ptrain.sim.world import Host

End: TypeAlias = Literal["trained", "violated", "stalled", "bereft", "crashed"]

PATIENCE_SECONDS = 90.0
"""Of the progress checker: every wait in the protocol is shorter, with its retries."""

STALL_SECONDS = 240.0
"""Of the watchdog, which ends a run that goes nowhere: well above the patience."""

BEREFT_SECONDS = 30.0
"""After a death that took a stage's newest state along, the run is given up: nothing brings
it back. Where states are kept the peers decide, and the watchdog over them."""


class SwarmPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A random swarm. ``speeds``: one per peer, multiples of the toy's; so many peers.

    ``canonical_steps``: not 0, every peer rounds in its own way, and states are adopted so often;
    ``adoption``: as what (see Sync). ``checkpoint_steps``: states are kept so often, and the
    peers find out what can be restored.
    ``retained``: of so many microbatches the frames have room in memory (None: of all).
    """

    seed: int
    stages: int
    microbatches: int
    steps: int
    replicas: int
    speeds: tuple[float, ...]
    interval_seconds: Seconds
    latency_seconds: Seconds
    jitter_seconds: Seconds
    rate_bytes_per_second: float | None = None
    corruption: float = 0.0
    retained: int | None = None
    blows: tuple[Blow, ...] = ()
    canonical_steps: int = 0
    checkpoint_steps: int = 0
    adoption: Literal["exact", "int8", "int4"] = "exact"
    deposit_every: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of a plan. ``fired``: how often, by "kind at point"."""

    plan: SwarmPlan
    end: End
    reason: str
    event_log_hash: str
    fired: dict[str, int] = {}
    seconds: Seconds = 0.0

    @property
    def failed(self) -> bool:
        """Whether the protocol is to blame."""
        return self.end in ("violated", "stalled", "crashed")


class Swarm(SimWorld):
    """The world of a plan."""

    def __init__(self, plan: SwarmPlan) -> None:
        super().__init__(_scenario(plan))
        self._stages = plan.stages
        self._striker = Striker(self, plan.blows, self.random("blows"), self._forge)
        self._forger: Forger | None = None
        self._witness: Witness | None = None
        self.tap = self._striker.watch.heard
        if any(blow.kind == "forge" for blow in plan.blows):
            nobody = SimSigner(PeerId("witness"), seed=plan.seed)
            self._witness = Witness(nobody, self._now)
            self.tap = self._hear_all

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        """Also what the blows wait for."""
        super().emit(peer, event)
        self._striker.happened(peer, event)
        if isinstance(event, ev.FaultFired) and event.fault == "kill":
            self.harm.later(BEREFT_SECONDS, self._give_up_if_bereft)
        if self._witness is not None:
            self._tell(self._witness, peer, event)

    def _tell(self, witness: Witness, peer: PeerId, event: ev.AnyEvent) -> None:
        match event:
            case ev.FaultFired(fault="thaw") | ev.SeatOpened():
                witness.forgave(peer)
            case ev.LinkDown():
                witness.broke(peer, event.peer)
            case _:
                pass

    def judge(self) -> tuple[Verdict, ...]:
        """Also what the witness says, if there was a forger."""
        heard = () if self._witness is None else (self._witness.judge(),)
        return (*super().judge(), *heard)

    def _now(self) -> Seconds:
        return self.clock.time()  # there is a clock once the run has begun

    def _hear_all(self, side: Side, ends: tuple[PeerId, PeerId], data: bytes | memoryview) -> None:
        assert self._witness is not None
        self._witness.heard(side, ends, data)
        self._striker.watch.heard(side, ends, data)

    def _forge(self, host: Host) -> None:
        assert self._witness is not None
        self.harm.fired("forge", host.peer)
        if self._forger is None:
            self._forger = Forger(self, self.run_id, self._witness)
        stage = min(host.stages, default=Stage(0))
        victims = [each.peer for each in self.harm.replicas()[stage]]
        self.spawn(self._forger.visit(victims, stage, self.clock.time()))

    def _give_up_if_bereft(self) -> None:
        if not self.keeps_states and bereft_stages(self.entries, self._stages):
            self.abandon()

    @property
    def keeps_states(self) -> bool:
        """Whether a lost stage may come back, so that only the peers can give the run up."""
        return self.scenario.spec.checkpoint.every_steps > 0

    def bereft(self) -> str:
        """Why the run could not end, where that is no fault of the protocol; else nothing."""
        if self.ended:
            return ""
        if not self.keeps_states:
            stages = bereft_stages(self.entries, self._stages)
            which = ", ".join(map(str, stages))
            return f"nobody holds the newest state of stage {which}" if stages else ""
        said = [e.event.reason for e in self.entries if isinstance(e.event, ev.RunLost)]
        if any(host.alive for host in self.hosts.values()):
            return ""  # who lives has neither trained nor given up
        return said[0] if said else "nobody is left"

    @property
    def fired(self) -> Mapping[str, int]:
        """What fired where."""
        return self._striker.fired


def _scenario(plan: SwarmPlan) -> Scenario:
    rate, mixed = plan.rate_bytes_per_second, plan.canonical_steps > 0
    spec = toy_spec(
        stages=plan.stages,
        microbatches=plan.microbatches,
        steps=plan.steps,
        seed=plan.seed,
        replicas=plan.replicas,
    )
    if mixed:
        spec = mixed_spec(spec, canonical_steps=plan.canonical_steps, adoption=plan.adoption)
    spec = short_of_memory(spec, plan.retained)
    sync = msgspec.structs.replace(spec.sync, deposit_every=plan.deposit_every)
    kept = Checkpoint(every_steps=plan.checkpoint_steps)
    spec = msgspec.structs.replace(spec, checkpoint=kept, sync=sync)
    return Scenario(
        spec=spec,
        spill_bytes=disk_bytes(spec),
        peers=[
            PeerPlan(
                peer=PeerId(f"peer-{number:02}"),
                speed=speed,
                starts_at=number * plan.interval_seconds,
                rounding=f"device {number}" if mixed else "",
            )
            for number, speed in enumerate(plan.speeds)
        ],
        seed=plan.seed,
        verify=not mixed,  # no two covers give one sum
        link=Link(
            latency_seconds=plan.latency_seconds,
            jitter_seconds=plan.jitter_seconds,
            rate_bytes_per_second=math.inf if rate is None else rate,
            corruption=plan.corruption,
        ),
        patience_seconds=PATIENCE_SECONDS,
        stall_seconds=STALL_SECONDS,
    )


def run(plan: SwarmPlan) -> Outcome:
    """Carry out ``plan`` to whatever end."""
    swarm = Swarm(plan)
    end: End = "trained"
    reason = ""
    verdicts: tuple[Verdict, ...] | None = None
    try:
        verdicts = swarm.run().verdicts
    except loop.SimulationError as error:
        end, reason = "stalled", f"{type(error).__name__}: {error}"
    except (ExceptionGroup, InternalError) as error:
        end, reason = "crashed", _innermost(error)
    if end != "crashed" and (why := swarm.bereft()):
        end, reason = "bereft", why
    problems = [
        f"{verdict.invariant} {verdict.problems[0]}"
        for verdict in (swarm.judge() if verdicts is None else verdicts)
        if not verdict.holds and (verdict.invariant != "I3" or end == "trained")
    ]
    if problems and end != "crashed":
        end, reason = "violated", "; ".join(problems)
    return Outcome(
        plan=plan,
        end=end,
        reason=reason,
        event_log_hash=swarm.event_log_hash,
        fired=dict(swarm.fired),
        seconds=swarm.entries[-1].at if swarm.entries else 0.0,
    )


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
