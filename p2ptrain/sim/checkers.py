"""Checkers: what must hold in every run, judged from the event stream and nothing else.

They see what an operator's log would show, never the engine's state, so that a bug cannot
hide by corrupting what it is judged by, and the same checkers judge a virtual swarm and
the event files of real peers.

    I1 covers    every commit's cover is a disjoint partition of its step's slots, each share
                 is exactly what its peer's accumulator once was, and no step is left out
    I2 digests   one digest per (epoch, chain, step, stage), one chain per step of a
                 lineage (core/lineage), and, where there is a reference, its digests; where
                 arithmetic differs, chains may part for a while, and one root per adoption
                 on each
    I3 progress  while every stage has a live replica, the next step commits in time
    I4 bounds    nothing is filled beyond its bound, and what went to a disk to stay within
                 comes back, unless the disk was struck
    I5 remains   see leftovers; I6 forgeries, where there is a forger: see witness

A verdict says how many facts it rests on: a checker that saw nothing has shown nothing.

Refused: assertions inside the engine as the judge. They test what the engine believes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.core.schedule import step_slots
from p2ptrain.observe import events as ev
from p2ptrain.sim.leftovers import check_leftovers
from p2ptrain.sim.verdicts import Verdict, verdict
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from p2ptrain.run import RunSpec
    from p2ptrain.units import Chain, Digest, Seconds, Stage, Step

ABSENCE_BEGINS = frozenset({"kill", "freeze", "isolate"})
BAD_DISK = "bad disk"
ABSENCE_ENDS = frozenset({"thaw", "mend"})
PARTITION_BEGINS = "partition"
PARTITION_ENDS = "heal"
STRIKES = ABSENCE_BEGINS | {PARTITION_BEGINS, "reset", "slow"}


_Root: TypeAlias = "tuple[int, int, bytes]"  # where a lineage begins


def judge(
    entries: Sequence[ev.Entry],
    spec: RunSpec,
    *,
    patience_seconds: Seconds,
    reference: Mapping[tuple[Step, Stage], Digest] | None = None,
) -> tuple[Verdict, ...]:
    """All checkers over a complete stream, ordered by time."""
    return (
        check_covers(entries, spec),
        check_digests(entries, reference=reference)
        if spec.sync.agreement == "bitwise"
        else check_names(entries),
        check_progress(entries, stages=spec.cut.stages, patience_seconds=patience_seconds),
        check_bounds(entries),
        check_leftovers(entries),
    )


def check_covers(entries: Iterable[ev.Entry], spec: RunSpec) -> Verdict:
    """I1."""
    facts, problems = 0, []
    accounts = _Accounts()
    steps: defaultdict[Stage, set[Step]] = defaultdict(set)
    first_loaded: dict[Stage, Step] = {}
    for entry in entries:
        event = entry.event
        accounts.note(entry.peer, event)
        if isinstance(event, ev.SeatOpened):
            first_loaded.setdefault(event.stage, event.version)
        elif isinstance(event, ev.StepCommitted):
            facts += 1
            steps[event.stage].add(event.step)
            problems += [f"{_name(entry, event)}: {text}" for text in _cover(event, spec, accounts)]
    for stage, seen in sorted(steps.items()):
        first = first_loaded.get(stage, min(seen))
        missing = [step for step in range(first, max(seen)) if step not in seen]
        problems += [f"stage {stage}: step {step} was never committed" for step in missing]
    return verdict("I1", facts, problems)


class _Accounts:
    """What every accumulator was, one after another, as its owner's log tells."""

    def __init__(self) -> None:
        self._now: dict[tuple[PeerId, Stage], tuple[Step, int]] = {}
        self._been: defaultdict[tuple[PeerId, Stage, Step], set[int]] = defaultdict(set)

    def note(self, peer: PeerId, event: ev.AnyEvent) -> None:
        """Take in one event of ``peer``."""
        if isinstance(event, ev.SlotCounted | ev.Subtracted):
            step, mask = self._now.get((peer, event.stage), (event.step, 0))
            bit = 1 << event.slot
            mask = mask if step == event.step else 0
            mask = mask | bit if isinstance(event, ev.SlotCounted) else mask & ~bit
            self._now[peer, event.stage] = (event.step, mask)
            self._been[peer, event.stage, event.step].add(mask)
        elif isinstance(event, ev.DepositTaken | ev.DepositReturned):
            step, mask = self._now.get((peer, event.stage), (event.step, 0))
            slots, mask = int.from_bytes(event.slots, "little"), mask if step == event.step else 0
            taken = isinstance(event, ev.DepositTaken)
            mask = mask | slots if taken else mask & ~slots
            self._now[peer, event.stage] = (event.step, mask)
            self._been[peer, event.stage, event.step].add(mask)
        elif isinstance(event, ev.SeatOpened):  # anew: what was counted before is gone
            self._now.pop((peer, event.stage), None)

    def was(self, peer: PeerId, stage: Stage, step: Step, mask: int) -> bool:
        """Whether the accumulator of ``peer`` once held exactly ``mask``."""
        return not mask or mask in self._been[peer, stage, step]


def _cover(event: ev.StepCommitted, spec: RunSpec, accounts: _Accounts) -> Iterator[str]:
    expected = int.from_bytes(event.expected, "little")
    if expected != step_slots(spec, event.step).mask:
        yield f"expects slots {expected:#x}, the step has {step_slots(spec, event.step).mask:#x}"
    union = 0
    for share in event.cover:
        slots = int.from_bytes(share.slots, "little")
        if union & slots:
            yield f"slots {union & slots:#x} are counted twice"
        union |= slots
        if not accounts.was(share.peer, event.stage, event.step, slots):
            yield f"{share.peer} never held exactly slots {slots:#x}"
    if union != expected:
        yield f"covers slots {union:#x} of {expected:#x}"


def check_digests(
    entries: Iterable[ev.Entry],
    *,
    reference: Mapping[tuple[Step, Stage], Digest] | None = None,
) -> Verdict:
    """I2. Steps are pure, so even the sides of a partition may not differ."""
    facts, problems = 0, []
    digests: dict[tuple[int, Chain, Step, Stage], Digest] = {}
    chains: dict[tuple[_Root, Step], Chain] = {}
    for root, entry, event in _by_lineage(entries):
        facts += 1
        key = (event.epoch, event.chain, event.step, event.stage)
        if digests.setdefault(key, event.digest) != event.digest:
            problems.append(f"{_name(entry, event)}: another digest under the same chain")
        if chains.setdefault((root, event.step), event.chain) != event.chain:
            problems.append(f"{_name(entry, event)}: another chain in the same epoch")
        if reference is not None:
            right = reference.get((event.step, event.stage))
            if right != event.digest:
                problems.append(f"{_name(entry, event)}: not the digest of the reference")
    return verdict("I2", facts, problems)


def check_names(entries: Iterable[ev.Entry]) -> Verdict:
    """I2 where arithmetic differs: under one chain one name of each sum, and one state adopted.

    Chains may part, and come together again (engine/forks); at a last step nobody needs to,
    for the weights differ by rounding only. Whoever was struck, or cut off, is passed over by
    the others: it stands alone with its state until the next adoption.
    """
    facts, problems = 0, []
    digests: dict[tuple[int, Chain, Step, Stage], Digest] = {}
    roots: defaultdict[tuple[Chain, Step, Stage], dict[PeerId, Digest]] = defaultdict(dict)
    struck: set[PeerId] = set()
    for entry, event in ((entry, entry.event) for entry in entries):
        if isinstance(event, ev.StepCommitted):
            facts += 1
            name = (event.epoch, event.chain, event.step, event.stage)
            if digests.setdefault(name, event.digest) != event.digest:
                problems.append(f"{_name(entry, event)}: another digest under the same chain")
        elif isinstance(event, ev.StateAdopted):
            facts += 1
            others = roots[event.chain, event.version, event.stage]
            others[entry.peer] = event.root
            if len({root for peer, root in others.items() if peer not in struck}) > 1:
                place = f"{entry.at:.3f} s, {entry.peer}, stage {event.stage}"
                problems.append(f"{place}: another state adopted at version {event.version}")
        elif isinstance(event, ev.FaultFired) and event.fault in STRIKES:
            struck |= {PeerId(peer) for peer in event.target.split(",")}
    return verdict("I2", facts, problems)


def check_progress(
    entries: Iterable[ev.Entry], *, stages: int, patience_seconds: Seconds
) -> Verdict:
    """I3. Patience begins anew with every first commit of a stage's step.

    Facts are the stretches of time in which every stage had a live replica.
    """
    watch = _ProgressWatch(stages, patience_seconds)
    for entry in entries:
        watch.see(entry)
    return verdict("I3", watch.facts, watch.problems)


class _ProgressWatch:
    """Who serves what, and since when the swarm could have committed but did not."""

    def __init__(self, stages: int, patience: Seconds) -> None:
        self.facts = 0
        self.problems: list[str] = []
        self._patience = patience
        self._serving: list[set[PeerId]] = [set() for _ in range(stages)]
        self._absent: set[PeerId] = set()
        self._split = False
        self._ended = False
        self._committed: set[tuple[int, Step, Stage]] = set()
        self._since: Seconds | None = None  # None: some stage has no live replica

    def see(self, entry: ev.Entry) -> None:
        if self._since is not None and entry.at - self._since > self._patience:
            waited = entry.at - self._since
            self.problems.append(f"no commit from {self._since:.3f} s on, for {waited:.3f} s")
            self._since = entry.at
        if self._note(entry):
            self._since = None  # patience begins anew
        able = (
            not self._split
            and not self._ended
            and all(seats - self._absent for seats in self._serving)
        )
        if not able:
            self._since = None
        elif self._since is None:
            self.facts += 1
            self._since = entry.at

    def _note(self, entry: ev.Entry) -> bool:
        """Take in one event; whether it is progress."""
        event = entry.event
        if isinstance(event, ev.SeatOpened):
            self._serving[event.stage].add(entry.peer)
        elif isinstance(event, ev.SeatClosed):
            self._serving[event.stage].discard(entry.peer)
        elif isinstance(event, ev.PeerStopped):
            self._gone(entry.peer)
        elif isinstance(event, ev.RunEnded):
            self._ended = True
        elif isinstance(event, ev.FaultFired):
            self._fault(event)
        elif isinstance(event, ev.StepCommitted):
            step = (event.epoch, event.step, event.stage)
            new = step not in self._committed
            self._committed.add(step)
            return new
        return False

    def _gone(self, peer: PeerId) -> None:
        for seats in self._serving:
            seats.discard(peer)

    def _fault(self, event: ev.FaultFired) -> None:
        target = PeerId(event.target)
        if event.fault in ABSENCE_BEGINS:
            self._absent.add(target)
            if event.fault == "kill":  # its seats die with it; a restarted one opens new ones
                self._gone(target)
                self._absent.discard(target)
        elif event.fault in ABSENCE_ENDS:
            self._absent.discard(target)
        elif event.fault == PARTITION_BEGINS:
            self._split = True
        elif event.fault == PARTITION_ENDS:
            self._split = False


def check_bounds(entries: Iterable[ev.Entry]) -> Verdict:
    """I4."""
    facts, problems = 0, []
    bad_disks: set[str] = set()
    for entry in entries:
        event = entry.event
        if isinstance(event, ev.FaultFired) and event.fault == BAD_DISK:
            bad_disks.add(event.target)
        elif isinstance(event, ev.SpillLost) and entry.peer not in bad_disks:
            problems.append(f"{_name(entry, event)}: a spilled {event.what} is lost")
        if not isinstance(event, ev.Bounds):
            continue
        fills = (
            ("queue", event.queue, event.queue_bound),
            ("parked", event.parked, event.parked_bound),
            ("retained bytes", event.retained_bytes, event.retained_bound),
            ("spilled bytes", event.spilled_bytes, event.spilled_bound),
        )
        for what, fill, bound in fills:
            facts += 1
            if fill > bound:
                where = f"{entry.at:.3f} s, {entry.peer}, stage {event.stage}"
                problems.append(f"{where}: {what} {fill} beyond {bound}")
    return verdict("I4", facts, problems)


def _by_lineage(entries: Iterable[ev.Entry]) -> Iterator[tuple[_Root, ev.Entry, ev.StepCommitted]]:
    """Every commit, with where its peer's lineage begins, as that peer has told."""
    roots: dict[PeerId, _Root] = {}
    for entry in entries:
        match entry.event:
            case ev.RolledBack(epoch=epoch, version=version, chain=chain):
                roots[entry.peer] = (epoch, version, chain)
            case ev.PeerStarted():
                roots.pop(entry.peer, None)
            case ev.StepCommitted() as event:
                unknown = (event.epoch, 0, b"")  # of the beginning, or never told
                root = roots.get(entry.peer, unknown)
                yield root if root[0] == event.epoch else unknown, entry, event
            case _:
                pass


def _name(entry: ev.Entry, event: ev.StepCommitted | ev.SpillLost) -> str:
    return f"{entry.at:.3f} s, {entry.peer}, stage {event.stage}, step {event.step}"
