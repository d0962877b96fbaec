"""A pipeline of offer books never waits in a circle, whoever dies; without the rules it does.

A toy pipeline runs on real OfferBooks: random depth, replicas, speeds, latencies and
deaths. After every event that leaves somebody waiting, who waits for whom is written
down as a graph and must have no cycle; at the end every stage has counted every
microbatch. The same pipeline with one rule broken is the control: there the graph shows
the circle, and the pipeline stands still.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Literal

import pytest

from p2ptrain.core.offers import OfferBook, Offered, parked_bound
from p2ptrain.run import Limits
from p2ptrain.units import Microbatch, Slot, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMITS = Limits()
Kind = Literal["forward", "recompute", "replay"]
Broken = Literal["", "gradients ask", "slot before input"]
Node = tuple[str, int, int]  # which bound, of which seat: ("queue" | "parked", stage, number)


@dataclass(eq=False)
class Seat:
    stage: int
    number: int
    speed: float
    book: OfferBook
    alive: bool = True
    computing: bool = False
    kinds: dict[Microbatch, Kind] = field(default_factory=dict)
    inputs: set[Microbatch] = field(default_factory=set)
    gradients: set[Microbatch] = field(default_factory=set)
    retained: set[Microbatch] = field(default_factory=set)

    def node(self, bound: str) -> Node:
        return bound, self.stage, self.number


class Pipeline:
    """All seats of one step, with an all-knowing hand that carries out both custodies."""

    def __init__(self, seed: int, broken: Broken) -> None:
        self.rng = random.Random(seed)
        self.broken = broken
        self.stages = self.rng.randint(2, 4)
        self.replicas = self.rng.randint(1, 3)
        self.window = self.rng.randint(1, 2)
        self.works = [Microbatch(Step(0), Slot(i)) for i in range(self.rng.randint(6, 14))]
        self.now, self.events, self.deaths, self.edges = 0.0, 0, 0, 0
        self.heap: list[tuple[float, int, Callable[[], bool]]] = []
        self.seats: list[list[Seat]] = [[] for _ in range(self.stages)]
        self.held: dict[tuple[int, Microbatch], Seat] = {}
        self.counted: dict[tuple[int, Microbatch], Seat] = {}
        self.tried: set[tuple[int, Microbatch]] = set()
        self.unfinished = self.works
        for stage in range(self.stages):
            for _ in range(self.replicas):
                self.join(stage)
        for _ in range(self.rng.randint(0, 4)):
            self.at(self.rng.uniform(0.0, 3.0) * len(self.works), self.death)

    # --- the machinery of time ---

    def at(self, delay: float, then: Callable[[], bool]) -> None:
        self.events += 1
        heapq.heappush(self.heap, (self.now + delay, self.events, then))

    def run(self) -> None:
        self.fulfil()
        while self.heap:
            self.now, _, then = heapq.heappop(self.heap)
            if then():
                self.fulfil()
            assert self.events < 4000, "the pipeline runs in circles"
        missing = len(self.works) * self.stages - len(self.counted)
        assert missing == 0, f"the pipeline stands still; {missing} counts are missing"

    # --- who comes and goes ---

    def join(self, stage: int) -> None:
        bound = parked_bound(
            stages=self.stages,
            stage=stage,
            share=1 / self.replicas,
            replicas=self.replicas,
            total_slots=len(self.works),
            window_per_stage=self.window,
        )
        number = len(self.seats[stage])
        speed = self.rng.choice([1.0, 1.0, 0.1]) * self.rng.uniform(0.5, 2.0)
        self.seats[stage].append(Seat(stage, number, speed, OfferBook(LIMITS, parked_bound=bound)))

    def live(self, stage: int) -> list[Seat]:
        return [seat for seat in self.seats[stage] if seat.alive]

    def death(self) -> bool:
        stage = self.rng.randrange(self.stages)
        if self.rng.random() < 0.5 or len(self.live(stage)) == 1:
            self.join(stage)  # a seat that starts from nothing; nobody is ever the last to go
        victim = self.rng.choice(self.live(stage))
        victim.alive = False
        self.deaths += 1
        self.held = {key: seat for key, seat in self.held.items() if seat is not victim}
        self.counted = {key: seat for key, seat in self.counted.items() if seat is not victim}
        self.unfinished = [work for work in self.works if not self.whole(work)]
        return True

    # --- both custodies: what must be asked for now ---

    def input_at_hand(self, stage: int, work: Microbatch) -> bool:
        return stage == 0 or any(work in seat.retained for seat in self.live(stage - 1))

    def whole(self, work: Microbatch) -> bool:
        return all((stage, work) in self.counted for stage in range(self.stages))

    def duties(self) -> Iterator[tuple[int, Microbatch, Kind]]:
        for work in self.unfinished:
            for stage in range(self.stages):
                key, above = (stage, work), (stage + 1, work)
                if key in self.held:
                    if not self.has_input(self.held[key], work):
                        yield from self.recomputing(stage - 1, work)
                    continue
                replay = above in self.counted
                waits = above in self.held and self.has_input(self.held[above], work)
                if key in self.counted or (waits and not replay):
                    continue  # nothing to do, or the gradient will come of itself
                ready = self.input_at_hand(stage, work)
                if ready or (replay and self.broken == "slot before input"):
                    yield stage, work, "replay" if replay else "forward"
                if not ready:
                    yield from self.recomputing(stage - 1, work)

    def recomputing(self, stage: int, work: Microbatch) -> Iterator[tuple[int, Microbatch, Kind]]:
        """The input of stage + 1 is lost: who counted it once computes it again."""
        while (stage, work) in self.counted and (stage, work) not in self.held:
            if self.input_at_hand(stage, work):
                yield stage, work, "recompute"
                return
            stage -= 1

    def fulfil(self) -> None:
        blocked = [duty for duty in self.duties() if not self.place(*duty)]
        refused = self.deliver_gradients()
        for stage in range(self.stages):
            for seat in self.live(stage):
                self.start_next(seat)
        if blocked or refused:
            self.check_wait_graph(blocked, refused)

    def place(self, stage: int, work: Microbatch, kind: Kind) -> bool:
        seats = self.live(stage)
        self.rng.shuffle(seats)
        again = kind != "forward" or (stage, work) in self.tried
        for seat in seats:
            if stage == 0 and not again:
                placed = seat.book.source(work)
            else:
                placed = isinstance(seat.book.ask(work, replay=again, now=self.now), Offered)
            if placed:
                self.held[stage, work], seat.kinds[work] = seat, kind
                self.tried.add((stage, work))
                self.at(self.rng.uniform(0.0, 0.3), partial(self.arrive, seat, work))
                return True
        return False

    def arrive(self, seat: Seat, work: Microbatch) -> bool:
        """True, here and in what follows: duties may have changed."""
        if not seat.alive or seat.book.state(work) == "none":
            return False
        if not self.has_input(seat, work) and self.broken != "slot before input":
            assert seat.book.decline(work)  # the sender died under way: the lease would lapse
            del self.held[seat.stage, work]
            return True
        assert seat.book.state(work) != "reserved" or seat.book.arrived(work, now=self.now)
        self.start_next(seat)
        return False

    def has_input(self, seat: Seat, work: Microbatch) -> bool:
        if self.input_at_hand(seat.stage, work):
            seat.inputs.add(work)
        return work in seat.inputs

    # --- computing ---

    def start_next(self, seat: Seat) -> None:
        if seat.computing:
            return
        ready = [work for work in seat.book.waiting() if self.startable(seat, work)]
        work = min([*ready, *sorted(seat.gradients)], default=None)
        if work is None:
            return
        seat.computing = True
        backward = work in seat.gradients
        if not backward:
            assert seat.book.started(work)
        cost = (2.0 if backward else 1.0) / seat.speed
        self.at(cost, partial(self.done, seat, work, backward=backward))

    def startable(self, seat: Seat, work: Microbatch) -> bool:
        return self.has_input(seat, work) and seat.book.may_start(parks=self.parks(seat, work))

    def parks(self, seat: Seat, work: Microbatch) -> bool:
        return seat.kinds[work] == "forward" and seat.stage < self.stages - 1

    def done(self, seat: Seat, work: Microbatch, *, backward: bool) -> bool:
        seat.computing = False
        if not seat.alive:
            return False
        key = (seat.stage, work)
        if backward:
            seat.gradients.discard(work)
            assert seat.book.returned(work)
        else:
            parks = self.parks(seat, work)
            seat.retained.add(work)
            assert seat.book.computed(work, parks=parks)
            if parks:
                return True
        del self.held[key]
        self.counted.setdefault(key, seat)
        self.unfinished = [open_ for open_ in self.unfinished if not self.whole(open_)]
        return True

    def deliver_gradients(self) -> list[Seat]:
        """Gradients that are due go to who parked the input; return who refused one."""
        refused = []
        for (stage, work), seat in self.held.items():
            due = (stage + 1, work) in self.counted and seat.book.state(work) == "parked"
            if not due or work in seat.gradients:
                continue
            if self.broken == "gradients ask" and not self.queue_has_room(seat):
                refused.append(seat)
            else:
                seat.gradients.add(work)
        return refused

    def queue_has_room(self, seat: Seat) -> bool:
        probe = Microbatch(Step(1), Slot(0))
        free = isinstance(seat.book.ask(probe, replay=False, now=self.now), Offered)
        seat.book.decline(probe)
        return free

    # --- who waits for whom ---

    def check_wait_graph(
        self, blocked: list[tuple[int, Microbatch, Kind]], refused: list[Seat]
    ) -> None:
        wanted = {(stage, work) for stage, work, _ in blocked}
        graph: dict[Node, set[Node]] = {}
        for (stage, work), seat in self.held.items():
            if seat.book.state(work) == "parked":
                graph.setdefault(seat.node("parked"), set()).update(
                    self.in_the_way(stage + 1, work, wanted)
                )
            elif not self.has_input(seat, work):
                graph.setdefault(seat.node("queue"), set()).update(
                    self.in_the_way(stage - 1, work, wanted)
                )
            elif seat.book.state(work) == "queued" and not self.startable(seat, work):
                graph.setdefault(seat.node("queue"), set()).add(seat.node("parked"))
        for seat in refused:
            graph.setdefault(seat.node("parked"), set()).add(seat.node("queue"))
        self.edges += sum(map(len, graph.values()))
        TopologicalSorter(graph).prepare()

    def in_the_way(
        self, stage: int, work: Microbatch, wanted: set[tuple[int, Microbatch]]
    ) -> set[Node]:
        """Whose bound the microbatch waits for, to get on at ``stage``."""
        if (stage, work) in wanted:
            return {seat.node("queue") for seat in self.live(stage)}
        holder = self.held.get((stage, work))
        if holder is None:
            return set()
        return {holder.node("parked" if holder.book.state(work) == "parked" else "queue")}


SEEDS = 540


@pytest.mark.parametrize("block", range(6))
def test_no_cycle_in_the_wait_graph_and_everything_is_counted(block: int) -> None:
    deaths = edges = 0
    for seed in range(block * SEEDS // 6, (block + 1) * SEEDS // 6):
        pipeline = Pipeline(seed, broken="")
        try:
            pipeline.run()
        except (AssertionError, CycleError) as error:
            error.add_note(f"reproduce with Pipeline({seed=}, broken='').run()")
            raise
        deaths += pipeline.deaths
        edges += pipeline.edges
    assert deaths > 100  # else nothing was at stake
    assert edges > 500


@pytest.mark.parametrize("broken", ["gradients ask", "slot before input"])
def test_without_either_rule_the_graph_has_a_cycle(broken: Broken) -> None:
    found = 0
    for seed in range(60):
        try:
            Pipeline(seed, broken=broken).run()
        except CycleError:
            found += 1
    assert found > 0
