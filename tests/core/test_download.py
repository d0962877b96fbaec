"""Whatever owners do, a download ends, and what it ends with is what two of them hold."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2ptrain.core.download import AHEAD_MOST, ANSWER_SECONDS, Download, Phase
from p2ptrain.core.merkle import leaf_digest, merkle_root
from p2ptrain.core.transfer import (
    Arrived,
    AskChunk,
    AskSnapshot,
    Denied,
    Gone,
    Keep,
    Offered,
    Refuse,
    Snapshot,
    Take,
    Warn,
)
from p2ptrain.units import Chain, Digest, PeerId, Step

if TYPE_CHECKING:
    from p2ptrain.core.transfer import Action, Event

CHUNK, SIZE, CHUNKS = 100, 950, 10
ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
WRONG = Digest(b"w" * 32)


def leaves(version: int, of: str = "") -> tuple[Digest, ...]:
    return tuple(leaf_digest(f"{version} {index} {of}".encode()) for index in range(CHUNKS))


def snapshot(version: int, of: str = "") -> Snapshot:
    return Snapshot(
        epoch=0,
        version=Step(version),
        chain=Chain(bytes((version % 256,)) * 32),
        size_bytes=SIZE,
        chunk_bytes=CHUNK,
        leaves=leaves(version, of),
        root=merkle_root(leaves(version, of)),
    )


Kind = Literal["honest", "liar", "corrupt", "stalls", "dies", "silent", "elsewhere", "empty"]


@dataclass
class Donor:
    """Is at ``base`` + time / ``step_seconds``; misbehaves from its chunk ``after`` on."""

    kind: Kind = "honest"
    base: int = 5
    step_seconds: float = 1e9
    delay: float = 0.1
    after: int = 2
    given: int = 0
    busy_until: float = 0.0

    def version(self, now: float) -> int:
        return self.base + int(now / self.step_seconds)


@dataclass
class World:
    """Answers what a download asks; time jumps from one event or deadline to the next."""

    donors: dict[PeerId, Donor]
    version: int = 5
    owners: int = 2
    now: float = 0.0
    actions: list[Action] = field(default_factory=list)
    kept: dict[int, Digest] = field(default_factory=dict)
    taken: Snapshot | None = None

    def __post_init__(self) -> None:
        self.download = Download(
            list(self.donors), version=Step(self.version), most_bytes=10_000, owners=self.owners
        )
        self.queue: list[tuple[float, int, Event]] = []
        self.order = itertools.count()

    def run(self) -> Download:
        self.perform(self.download.begin(now=0.0), None)
        for _ in range(10_000):
            due = self.download.due_at
            if due is None:
                return self.download
            if self.queue and self.queue[0][0] <= due:
                self.now, _, event = heapq.heappop(self.queue)
                self.perform(self.download.handle(event, now=self.now), event)
            else:
                self.now = due
                self.perform(self.download.tick(now=self.now), None)
        pytest.fail(f"still {self.download.phase} after {self.now} s")

    def perform(self, actions: tuple[Action, ...], event: Event | None) -> None:
        self.actions.extend(actions)
        for action in actions:
            match action:
                case AskSnapshot(peer, version):
                    self.asked_snapshot(peer, version)
                case AskChunk(peer, root, index):
                    self.asked_chunk(peer, root, index)
                case Take(taken):
                    self.kept = self.kept if taken == self.taken else {}
                    self.taken = taken
                case Keep(index):
                    assert isinstance(event, Arrived)
                    assert index not in self.kept
                    self.kept[index] = event.digest
                case _:
                    pass

    def put(self, seconds: float, event: Event) -> None:
        heapq.heappush(self.queue, (self.now + seconds, next(self.order), event))

    def asked_snapshot(self, peer: PeerId, version: Step) -> None:
        donor = self.donors[peer]
        at = donor.version(self.now)
        reached = max(0.0, (version - donor.base) * donor.step_seconds - self.now)
        if donor.kind == "silent":
            return
        if donor.kind == "empty":
            self.put(donor.delay, Denied(peer, "holds nothing"))
        elif donor.kind == "liar":
            self.put(donor.delay, Offered(peer, snapshot(max(at, version), f"by {peer}")))
        elif donor.kind == "elsewhere":
            self.put(donor.delay, Offered(peer, snapshot(at + 1000)))
        else:
            self.put(reached + donor.delay, Offered(peer, snapshot(max(at, version))))

    def asked_chunk(self, peer: PeerId, root: Digest, index: int) -> None:
        donor = self.donors[peer]
        donor.given += 1
        wrong = donor.given > donor.after
        assert self.taken is not None
        assert root == self.taken.root
        digest = self.taken.leaves[index]
        if donor.kind == "stalls" and wrong:
            return
        if donor.kind == "dies" and wrong:
            self.put(donor.delay, Gone(peer, "the link broke"))
            return
        if donor.kind == "corrupt" and wrong:
            digest = WRONG
        donor.busy_until = max(self.now, donor.busy_until) + donor.delay
        size = self.taken.bytes_of(index)
        self.put(donor.busy_until - self.now, Arrived(peer, root, index, size, digest))

    def refused(self, peer: PeerId) -> list[str]:
        return [a.reason for a in self.actions if isinstance(a, Refuse) and a.peer == peer]

    def warned(self) -> list[str]:
        return [action.reason for action in self.actions if isinstance(action, Warn)]

    def whole(self) -> bool:
        assert self.taken is not None
        return self.kept == dict(enumerate(self.taken.leaves))


def world(version: int = 5, **donors: Donor) -> World:
    return World({PeerId(name): donor for name, donor in donors.items()}, version=version)


# --- agreeing ---


def test_two_owners_of_one_step_both_give() -> None:
    here = world(ann=Donor(), bob=Donor())
    assert here.run().phase is Phase.DONE
    assert here.whole()
    assert here.download.sources == (ANN, BOB)
    assert here.warned() == []
    assert here.now < 2.0


def test_one_owner_is_believed_with_a_warning() -> None:
    here = world(ann=Donor())
    assert here.run().phase is Phase.DONE
    assert here.warned() == ["only ann vouches for the state of 5"]


def test_a_third_that_gives_another_root_is_named() -> None:
    here = world(ann=Donor("liar", delay=0.01), bob=Donor(), eve=Donor(delay=0.2))
    assert here.run().phase is Phase.DONE
    assert here.taken == snapshot(5)
    assert here.refused(ANN) == ["gives another state of step 5"]
    assert here.warned() == []


def test_two_that_contradict_each_other_are_not_believed() -> None:
    here = world(ann=Donor("liar"), bob=Donor())
    assert here.run().phase is Phase.FAILED
    assert here.download.reason == "ann, bob give different states of step 5"
    assert here.taken is None


def test_an_owner_that_is_a_step_ahead_is_met_there() -> None:
    here = world(ann=Donor(base=5, step_seconds=4.0), bob=Donor(base=6, step_seconds=4.0))
    assert here.run().phase is Phase.DONE
    assert here.taken == snapshot(6)
    assert here.warned() == []


@pytest.mark.parametrize("step_seconds", [0.05, 0.1, 0.3])
def test_owners_whose_steps_are_shorter_than_an_answer_meet_ahead(step_seconds: float) -> None:
    here = world(
        ann=Donor(step_seconds=step_seconds, delay=0.11),
        bob=Donor(step_seconds=step_seconds, delay=0.17),
    )
    assert here.run().phase is Phase.DONE
    assert here.warned() == []
    assert here.whole()


def test_a_donor_of_a_far_step_is_refused_and_the_other_used() -> None:
    here = world(ann=Donor("elsewhere"), bob=Donor())
    assert here.run().phase is Phase.DONE
    assert here.taken == snapshot(5)
    assert here.refused(ANN) == [f"is at step {5 + 1000}, asked for 5"]
    assert AHEAD_MOST < 1000


def test_an_older_state_than_asked_for_is_refused() -> None:
    download = Download([ANN, BOB], version=Step(5), most_bytes=10_000)
    download.begin(now=0.0)
    (refused,) = download.handle(Offered(ANN, snapshot(4)), now=1.0)
    assert refused == Refuse(ANN, "is at step 4, asked for 5", lied=False)


def test_a_manifest_that_is_too_large_or_torn_is_a_lie() -> None:
    for most_bytes, offered in ((SIZE - 1, snapshot(5)), (SIZE, snapshot(5))):
        download = Download([ANN], version=Step(5), most_bytes=most_bytes)
        download.begin(now=0.0)
        actions = download.handle(Offered(ANN, offered), now=1.0)
        assert isinstance(actions[0], Refuse if most_bytes < SIZE else Warn)


def test_the_silent_cost_one_deadline() -> None:
    here = world(ann=Donor("silent"), bob=Donor())
    assert here.run().phase is Phase.DONE
    assert here.refused(ANN) == ["no answer within 30 s"]
    assert ANSWER_SECONDS <= here.now < ANSWER_SECONDS + 2.0


def test_the_silent_cost_nothing_where_two_agree() -> None:
    here = world(ann=Donor("silent"), bob=Donor(), eve=Donor())
    assert here.run().phase is Phase.DONE
    assert here.now < 2.0


def test_nobody_has_it() -> None:
    assert world().run().reason == "nobody to take it from"
    here = world(ann=Donor("empty"), bob=Donor("silent"))
    assert here.run().phase is Phase.FAILED
    assert here.download.reason == "ann: holds nothing; bob: no answer within 30 s"


def test_where_roots_may_differ_one_owner_is_enough() -> None:
    here = World({ANN: Donor("liar"), BOB: Donor()}, owners=1)
    assert here.run().phase is Phase.DONE
    assert here.warned() == []


# --- fetching ---


@pytest.mark.parametrize("kind", ["corrupt", "stalls", "dies"])
def test_what_one_fails_to_give_the_other_gives(kind: Kind) -> None:
    here = world(ann=Donor(kind), bob=Donor())
    assert here.run().phase is Phase.DONE
    assert here.whole()
    assert here.refused(ANN)
    lied = [action.lied for action in here.actions if isinstance(action, Refuse)]
    assert any(lied) == (kind == "corrupt")


def test_the_only_donor_that_stalls_is_asked_once_more() -> None:
    here = world(ann=Donor("stalls"))
    assert here.run().phase is Phase.FAILED
    assert here.refused(ANN) == ["stalls, after 2 chunks"] * 2
    assert here.download.reason == "ann: stalls, after 2 chunks"


def test_what_comes_late_counts_and_brings_its_donor_back() -> None:
    download = Download([ANN], version=Step(5), most_bytes=10_000, owners=1)
    download.begin(now=0.0)
    actions = download.handle(Offered(ANN, snapshot(5)), now=0.0)
    (asked,) = [action for action in actions if isinstance(action, AskChunk)]
    again = download.tick(now=30.0)  # stalled; nobody else is there, so it is asked again
    assert isinstance(again[0], Refuse)
    leaf = snapshot(5).leaves[asked.index]
    kept = download.handle(Arrived(ANN, asked.root, asked.index, CHUNK, leaf), now=31.0)
    assert Keep(asked.index) in kept
    twice = download.handle(Arrived(ANN, asked.root, asked.index, CHUNK, leaf), now=31.0)
    assert Keep(asked.index) not in twice


def test_unasked_chunks_and_strangers_change_nothing() -> None:
    download = Download([ANN, BOB], version=Step(5), most_bytes=10_000)
    download.begin(now=0.0)
    download.handle(Offered(ANN, snapshot(5)), now=0.0)
    actions = download.handle(Offered(BOB, snapshot(5)), now=0.0)
    asked = {action.index for action in actions if isinstance(action, AskChunk)}
    free = next(index for index in range(CHUNKS) if index not in asked)
    root = snapshot(5).root
    assert download.handle(Arrived(ANN, root, free, CHUNK, WRONG), now=0.1) == ()
    assert download.handle(Arrived(EVE, root, min(asked), CHUNK, WRONG), now=0.1) == ()
    assert download.handle(Arrived(ANN, WRONG, min(asked), CHUNK, WRONG), now=0.1) == ()


def test_when_all_have_dropped_it_another_step_is_agreed_on() -> None:
    """Both forget the snapshot in the middle; a third, later, holds what is newer."""
    here = world(ann=Donor("dies"), bob=Donor("dies"), eve=Donor(base=9, delay=3.0))
    assert here.run().phase is Phase.DONE
    assert here.whole()
    assert here.taken is not None
    assert here.taken.version >= 9
    assert here.download.sources == (EVE,)


def test_a_late_answer_to_an_earlier_question_is_no_refusal() -> None:
    """Two that corrupt agree at once; when they are out, the honest ones answer the old ask."""
    here = world(
        ann=Donor("corrupt", 6, after=0, delay=0.06),
        bob=Donor("corrupt", 6, after=0, delay=0.06),
        eve=Donor(delay=0.2, step_seconds=0.2),
        fay=Donor(delay=0.2, step_seconds=0.2),
    )
    assert here.run().phase is Phase.DONE
    assert here.whole()


# --- any history ---

KINDS: tuple[Kind, ...] = (
    "honest",
    "liar",
    "corrupt",
    "stalls",
    "dies",
    "silent",
    "elsewhere",
    "empty",
)

donors = st.builds(
    Donor,
    kind=st.sampled_from(KINDS),
    base=st.integers(4, 6),
    delay=st.floats(0.01, 5.0),
    after=st.integers(0, 5),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(donors, max_size=5), st.sampled_from([0.2, 2.0, 20.0, 1e9]), st.integers(0, 2))
def test_every_history_ends_and_ends_well_where_two_honest_owners_stay(
    others: list[Donor], step_seconds: float, honest: int
) -> None:
    crowd = [*others, *(Donor(delay=0.2) for _ in range(honest))]
    for donor in crowd:
        donor.step_seconds = step_seconds
    here = World({PeerId(f"peer-{n}"): donor for n, donor in enumerate(crowd)})
    download = here.run()
    sound = [
        donor
        for donor in crowd
        if donor.kind == "honest" and donor.delay < 1.0 and (donor.base >= 5 or step_seconds <= 2.0)
    ]  # who never gets to the step that is asked for cannot give it
    if download.phase is Phase.DONE:
        assert here.taken is not None
        assert here.whole()
    else:
        assert download.reason
    liars = [donor for donor in crowd if donor.kind == "liar"]
    if len(sound) >= 2 and not any(d.kind in ("silent", "stalls") for d in crowd):
        assert download.phase is Phase.DONE, download.reason
    if download.phase is Phase.DONE and not liars:
        assert here.taken == snapshot(here.taken.version)  # type: ignore[union-attr]
    if here.taken is not None and not here.warned():
        given = [a for a in here.actions if isinstance(a, Take)]
        assert all(len(take.owners) >= 2 for take in given)
