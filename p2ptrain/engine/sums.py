"""SUMs of one seat beside those that its round machine waits for: early, late, and to be given.

    a SUM of the next step   -> kept until that step is taken up
    a SUM of the last step   -> who tells another than the one we stepped with is told ours
    ... from who stepped so  -> kept: the run may have come in two (engine/forks)
    a Plan of the last step  -> answered with its SUM: the adopt rule, one step late
    those of the last step   -> given along with our state, and learned with somebody else's:
                                where a step can have two names, a newcomer must know which
    any SUM                  -> looked at only with the signature of a seat of its stage; two
                                under one signature are a lie, and the liar is told (distrust)

Invariants: of the next step one SUM for each stage is kept, the one that counts (core/choice);
the integers of a sum are given only while compute holds exactly those that the SUM names.

Bounds: signed SUMs of three steps, of each at most STARTS_MOST of a seat that publishes (what is
beyond, or of other steps, is not looked at); of each peer that tells what it stepped with, one
SUM for each stage of one step; a peer is given the sum of a step at most PULLS_MOST times
(beyond, it is told that there is none).

Refused: the machine keeping what belongs to other steps. It is drawn for one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from p2ptrain.core.chain import sum_bytes, sum_digest
from p2ptrain.core.choice import precedes
from p2ptrain.core.rounds import Phase
from p2ptrain.errors import MisbehaviourError
from p2ptrain.units import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.agreement import Plan, Position, Sum
    from p2ptrain.engine.committing import Committer, Done
    from p2ptrain.engine.distrust import Distrust
    from p2ptrain.engine.driving import Driver
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import Signer
    from p2ptrain.units import PeerId, Stage


PULLS_MOST = 8
"""Once is enough; links break, and each round may begin the fetch anew."""

STARTS_MOST = 8
"""Each start of a peer may sign a SUM of its own; nobody starts more often within a step."""

TAKEN_BYTES = 128 << 10
"""Of a step's SUMs beside a state's leaves: nine bytes a parameter tensor, and some hundred a
replica. Larger ones stay behind, or the manifest would be longer than a message can be."""

Account: TypeAlias = "tuple[Position, Stage, PeerId, int]"  # who can sign one SUM only


class Sums:
    """See the module. ``canonical``: arithmetic differs among the peers of the run."""

    def __init__(  # noqa: PLR0913 - wired once, in stepping
        self,
        stage: Stage,
        driver: Driver,
        committer: Committer,
        post: Post,
        *,
        signer: Signer,
        incarnation: int,
        distrust: Distrust,
    ) -> None:
        self._stage, self._driver, self._committer, self._post = stage, driver, committer, post
        self._signer, self._incarnation, self._distrust = signer, incarnation, distrust
        self._recent = Step(0)  # signed SUMs of it and of two steps after are remembered
        self._signed: dict[Account, Sum] = {}
        self._pulls: Counter[tuple[Position, PeerId]] = Counter()
        self._early: dict[Stage, tuple[PeerId, Sum]] = {}
        self._others: dict[PeerId, dict[Stage, Sum]] = {}  # what they took the last step with
        self._last_held = False  # the whole sum of the last step is still in compute
        self._canonical = False

    def begin(self, at: Position, *, canonical: bool) -> list[tuple[PeerId, Sum]]:
        """A step is about to be taken up; returns what was heard of it before, and from whom."""
        machine, last = self._driver.machine, self._committer.last
        self._canonical = canonical
        self._last_held = bool(machine and last and machine.holds(last.sums[self._stage]))
        self._recent = recent = Step(at.step - 1)
        self._signed = {key: one for key, one in self._signed.items() if key[0].step >= recent}
        self._pulls = Counter({key: n for key, n in self._pulls.items() if key[0].step >= recent})
        early, self._early, self._others = self._early, {}, {}
        return [heard for _, heard in sorted(early.items())]

    def seal(self, whole: Sum) -> Sum:
        """``whole``, of our own making, under our signature; what we signed there, if we have."""
        named = msgspec.structs.replace(
            whole, publisher=self._signer.peer, incarnation=self._incarnation
        )

        def sign() -> Sum:
            return msgspec.structs.replace(named, signature=self._signer.sign(sum_bytes(named)))

        return self._distrust.once(whole, sign)

    def distrusts(self, peer: PeerId) -> bool:
        """Whether ``peer`` was caught lying."""
        return peer in self._distrust

    def admits(self, peer: PeerId, whole: Sum, members: Sequence[tuple[PeerId, ...]]) -> bool:
        """Whether a SUM that ``peer`` tells may be looked at: who signed it has a seat there.

        ``members``: the last step record's peers, per stage.

        Raises:
            MisbehaviourError: its signature is wrong.
        """
        recorded = any(whole.publisher in seats for seats in members[whole.stage :][:1])
        seated = recorded or self._post.serves(whole.publisher, whole.stage)
        near = self._recent <= whole.at.step <= self._recent + 2
        if not (seated and near) or whole.publisher in self._distrust:
            return False
        plain = msgspec.structs.replace(whole, final=False)
        account = (whole.at, whole.stage, whole.publisher, whole.incarnation)
        known = self._signed.get(account)
        if known == plain:
            return True
        if known is None and self._starts(whole) >= STARTS_MOST:
            return False
        if not self._signer.verify(whole.publisher, sum_bytes(whole), whole.signature):
            raise MisbehaviourError("a SUM with a wrong signature", peer=peer)
        if known is not None and sum_digest(known) != sum_digest(plain):
            proof = f"has signed two SUMs for stage {whole.stage} of step {whole.at.step}"
            self._distrust.catch(whole.publisher, proof)
            return False
        self._signed[account] = plain
        return True

    def _starts(self, whole: Sum) -> int:
        """How many such SUMs its signer has signed: of how many starts and histories."""
        of = (whole.at.step, whole.stage, whole.publisher)
        return sum((at.step, stage, who) == of for at, stage, who, _ in self._signed)

    def gives(self, peer: PeerId, at: Position) -> Sum | None:
        """The SUM of our stage whose integers ``peer`` gets now; None: it gets none."""
        whole = self.held(at)
        if whole is None or self._pulls[at, peer] >= PULLS_MOST:
            return None
        self._pulls[at, peer] += 1
        return whole

    def forget(self) -> None:
        """Another state is about to be loaded: the whole sum of the last step goes with ours."""
        if self._driver.machine is not None:
            self._driver.machine.forget()

    def elsewhere(self, peer: PeerId, whole: Sum) -> None:
        """``peer`` tells a SUM of another step than the present."""
        machine, last = self._driver.machine, self._committer.last
        if machine is not None and whole.at.step == machine.at.step + 1:
            known = self._early.get(whole.stage)
            if known is None or not (self._canonical and precedes(known[1], whole)):
                self._early[whole.stage] = (peer, whole)
        elif self._canonical and last is not None and whole.at == last.at:
            taken = self._taken(last)[whole.stage]
            if whole.final:
                self._others.setdefault(peer, {})[whole.stage] = whole
            elif sum_digest(taken) != sum_digest(whole):
                self._post.tell(peer, taken)

    def of_others(self) -> tuple[dict[Stage, Sum], ...]:
        """What others say that they took the last step with, by stage, each peer's apart."""
        return tuple(self._others.values())

    async def stand_on(self, done: Done) -> bool:
        """Take ``done`` for the last step; False: too late, the present one is being taken.

        The present step is over with that: the seat must begin it anew, after ``done``.
        """
        machine = self._driver.machine
        if machine is None or machine.phase is Phase.COMMITTED:
            return False
        self._driver.close()
        self._last_held = False  # compute forgets it, and its name is not ours any more
        await self._committer.stand_on(done)
        return True

    def taken(self, at: Position) -> tuple[Sum, ...]:
        """What led to ``at``, for whoever takes over our state; nothing where names cannot part."""
        last = self._committer.last
        if not self._canonical or last is None or last.chain != at.chain:
            return ()
        return last.sums if len(msgspec.msgpack.encode(last.sums)) <= TAKEN_BYTES else ()

    def learn(self, at: Position, taken: tuple[Sum, ...]) -> None:
        """Our state stands ``at``, and whoever gave it says that these led there.

        They are told to others from now on, so one wrong signature spoils them all.
        """
        if self._canonical and all(map(self._is_signed, taken)):
            self._committer.learn(at, taken)

    def _is_signed(self, whole: Sum) -> bool:
        return self._signer.verify(whole.publisher, sum_bytes(whole), whole.signature)

    def late(self, peer: PeerId, plan: Plan) -> None:
        """``peer`` plans at a position that is not the present one."""
        last = self._committer.last
        if last is not None and plan.at == last.at:
            self._post.tell(peer, self._taken(last)[self._stage])

    def known(self, at: Position) -> dict[Stage, Sum]:
        """The SUMs that we know of a position, this one or the last, as we tell them."""
        machine, last = self._driver.machine, self._committer.last
        if machine is not None and at == machine.at:
            return machine.told()
        if last is not None and at == last.at:
            return {whole.stage: whole for whole in self._taken(last)}
        return {}

    def held(self, at: Position) -> Sum | None:
        """The SUM of our stage whose integers can be given; it may still be stepping."""
        machine, last = self._driver.machine, self._committer.last
        if machine is not None and at == machine.at:
            whole = machine.sums.get(self._stage)
            return whole if whole is not None and machine.holds(whole) else None
        held = last is not None and at == last.at and self._last_held
        return last.sums[self._stage] if last is not None and held else None

    def _taken(self, done: Done) -> tuple[Sum, ...]:
        return done.told() if self._canonical else done.sums
