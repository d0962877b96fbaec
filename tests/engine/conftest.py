"""A post that remembers, and a seat's parts around it, without links or network."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.offers import OfferBook
from p2ptrain.core.routing import Router
from p2ptrain.core.schedule import step_slots
from p2ptrain.engine.custodian import Custodian
from p2ptrain.engine.items import Place
from p2ptrain.engine.pipeline import Pipeline
from p2ptrain.sim.toy import ToyCorpus, toy_spec
from p2ptrain.units import PeerId, RunId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from p2ptrain.observe.events import AnyEvent
    from p2ptrain.run import RunSpec

ME, BELOW, ABOVE, MATE = PeerId("me"), PeerId("below"), PeerId("above"), PeerId("mate")


@dataclass
class Sent:
    """A data frame that went out."""

    peer: PeerId
    message: Any
    payload: tuple[bytes, ...]
    failed: Callable[[float], None]


@dataclass
class MemoryPost:
    """Implements ``post.Post``; what was said lies in ``told`` and ``sent``."""

    serving: dict[int, tuple[PeerId, ...]] = field(default_factory=dict)
    told: list[tuple[PeerId, Any]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def tell(self, peer: PeerId, message: Any) -> None:
        self.told.append((peer, message))

    def tell_all(self, peers: Iterable[PeerId], message: Any) -> None:
        for peer in sorted(set(peers)):
            self.tell(peer, message)

    def ship(
        self, peer: PeerId, message: Any, payload: Any, failed: Any, *, tries: int = 1
    ) -> None:
        assert tries > 0
        self.sent.append(Sent(peer, message, tuple(bytes(part) for part in payload), failed))

    def seats(self, stage: Stage) -> tuple[PeerId, ...]:
        return self.serving.get(stage, ())

    def serves(self, peer: PeerId, stage: Stage) -> bool:
        return peer in self.seats(stage)

    def everyone(self) -> tuple[PeerId, ...]:
        return tuple(sorted({peer for peers in self.serving.values() for peer in peers}))

    def last(self, kind: type) -> Any:
        """The newest message of a kind; an error if there was none."""
        return [message for _, message in self.told if isinstance(message, kind)][-1]

    def all(self, kind: type) -> list[Any]:
        return [message for _, message in self.told if isinstance(message, kind)]


@dataclass
class Bench:
    """One seat of stage 1 of 3, at step 0 of 8 microbatches, with a seat below and one above."""

    stage: Stage
    spec: RunSpec
    post: MemoryPost
    events: list[AnyEvent]
    router: Router
    custodian: Custodian
    pipeline: Pipeline
    at: Position
    each: int
    backlog: SimpleNamespace  # ``seconds``: of all seats of the peer


@pytest.fixture
def post() -> MemoryPost:
    return MemoryPost(serving={0: (BELOW,), 1: (MATE, ME), 2: (ABOVE,)})


@pytest.fixture
def bench(post: MemoryPost) -> Callable[..., Bench]:
    """Make a bench; ``parked`` is the parked bound, ``retained`` the bound of kept bytes."""

    def make(stage: int = 1, *, parked: int = 8, retained: int = 1 << 20) -> Bench:
        spec = toy_spec(stages=3, microbatches=8, steps=3)
        events: list[AnyEvent] = []
        router = Router(random.Random(0))
        router.set_seats(dict.fromkeys(post.seats(Stage(stage + 1)), 1.0))
        custodian = Custodian(Stage(stage), router, post, events.append)
        each, backlog = 100, SimpleNamespace(seconds=0.5)
        place = Place(
            me=ME,
            stage=Stage(stage),
            is_last=stage == 2,
            token_bytes=5,
            retained_bytes_each=each,
            retained_bound=retained,
        )
        pipeline = Pipeline(
            place,
            OfferBook(spec.limits, parked_bound=parked),
            custodian,
            post=post,
            emit=events.append,
            backlog=lambda: backlog.seconds,
        )
        at = Position(epoch=0, step=Step(0), chain=genesis_chain(RunId("0" * 32)))
        pipeline.begin(at, step_slots(spec, Step(0)), parked_bound=parked)
        pipeline.corpus = ToyCorpus(spec)
        return Bench(
            Stage(stage), spec, post, events, router, custodian, pipeline, at, each, backlog
        )

    return make
