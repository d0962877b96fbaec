"""The forger says what it says it does, with no secret but its own."""

from p2ptrain.core.agreement import Bitmap
from p2ptrain.core.ledger import bitmap_bytes
from p2ptrain.observe import events as ev
from p2ptrain.sim.forger import FORGER, GHOST, Forger
from p2ptrain.sim.points import Side, read_frames
from p2ptrain.sim.scenario import Scenario, crowd
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.witness import Witness
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage


class Visited(SimWorld):
    """Whoever first counts in the second step of stage 1 is visited."""

    def __init__(self) -> None:
        spec = toy_spec(stages=2, microbatches=16, steps=4)
        super().__init__(Scenario(spec=spec, peers=crowd(4, speeds=(0.1,))))
        self.witness = Witness(SimSigner(PeerId("witness")), self.now)
        self.tap = self.hear
        self.told: list[Bitmap] = []
        self.forger: Forger | None = None

    def now(self) -> float:
        return self.clock.time()  # there is a clock once the run has begun

    def hear(self, side: Side, ends: tuple[PeerId, PeerId], data: bytes | memoryview) -> None:
        self.witness.heard(side, ends, data)
        if side == "sent" and ends[0] == FORGER:
            self.told += [each for each in read_frames(bytes(data)) if isinstance(each, Bitmap)]

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        super().emit(peer, event)
        counted = isinstance(event, ev.SlotCounted) and (event.stage, event.step) == (1, 1)
        if counted and self.forger is None:
            self.forger = Forger(self, self.run_id, self.witness)
            now = self.clock.time()
            self.harm.later(1.0, self.spawn, self.forger.visit([peer], Stage(1), now))


def test_its_lies_are_replayed_unsigned_and_foreign_and_nobody_acts_on_them() -> None:
    world = Visited()
    result = world.run()
    assert result.holds, result.verdicts
    truth = SimSigner(PeerId("judge"))
    good = [truth.verify(each.peer, bitmap_bytes(each), each.signature) for each in world.told]
    assert good == [True, False, False, False]  # the first one was true once
    assert world.told[0].seq < world.told[1].seq
    assert world.told[1].signature == b""
    assert world.witness.judge().holds
    assert world.witness.judge().facts == 4


def test_its_ghosts_are_called_by_nobody_but_can_be() -> None:
    world = Visited()
    world.run()
    assert GHOST not in {
        entry.event.peer for entry in world.entries if hasattr(entry.event, "peer")
    }

    class Credulous(Visited):
        def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
            super().emit(peer, event)
            if isinstance(event, ev.StepCommitted) and event.step == 2 and self.told:
                node = self.hosts[peer].node
                assert node is not None
                node.links.open(GHOST)

    believing = Credulous()
    believing.run()
    assert not believing.witness.judge().holds
