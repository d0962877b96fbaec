"""Toy seats meet as real ones do; who has not what they share, or other bytes, goes astray."""

from __future__ import annotations

import pytest

from p2ptrain.core.adoption import GENESIS
from p2ptrain.errors import MisbehaviourError
from p2ptrain.sim.compute import CostModel, ToyCompute, ToyStage
from p2ptrain.sim.loop import run
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.units import DIGEST_BYTES, Digest, PeerId, Stage

NAME = Digest(b"a root".ljust(DIGEST_BYTES))
PLAIN = toy_spec(stages=2, microbatches=4, steps=4)
SPEC = mixed_spec(PLAIN, canonical_steps=1, adoption="int4")


async def seat(seed: int = 0) -> ToyStage:
    """With weights of its own, that no mate has; ``seed`` 0: the seed's."""
    free = CostModel(forward_seconds=0.0, backward_seconds=0.0, step_seconds=0.0)
    opened = await ToyCompute(SPEC, PeerId(f"peer {seed}"), cost=free).open(Stage(1))
    if seed:
        other = toy_spec(stages=2, microbatches=4, steps=4, seed=seed)
        drifted = await ToyCompute(other, PeerId("drifted"), cost=free).open(Stage(1))
        await opened.load(await drifted.save())
    return opened


def test_a_seat_that_adopts_whole_states_has_none() -> None:
    async def main() -> None:
        opened = await ToyCompute(PLAIN, PeerId("whole")).open(Stage(0))
        assert opened.difference is None

    run(main())


def test_seats_with_one_base_meet_and_others_do_not() -> None:
    async def main() -> None:
        first, second, stray = await seat(), await seat(), await seat(seed=3)
        sender, mate, other = first.difference, second.difference, stray.difference
        assert sender is not None
        assert mate is not None
        assert other is not None
        assert (sender.base, mate.base, other.base) == (GENESIS, GENESIS, None)
        assert await other.make() is None
        await other.mark(NAME)  # it says so, but it is another state
        before = await first.save()
        blob = await sender.make()
        assert blob is not None
        assert len(blob) == sender.size_bytes < len(before) // 7
        assert await first.save() != before
        for each in (mate, other):
            await each.adopt(blob)
            assert each.base is None
        assert await second.save() == await first.save() != await stray.save()

    run(main())


def test_what_is_owed_shows_in_the_next_bytes_alone() -> None:
    async def main() -> None:
        seats = [await seat(), await seat()]
        one, other = (each.difference for each in seats)
        assert one is not None
        assert other is not None
        blob = await one.make()
        assert blob is not None
        await other.adopt(blob)
        for each in (one, other):
            await each.mark(NAME)
        assert one.base == other.base == NAME
        again = await other.make()
        assert again not in (None, blob)
        assert again == await one.make()  # they owe the same: they had not drifted
        assert await seats[0].save() == await seats[1].save()

    run(main())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:-1] + b"?"])
def test_bytes_that_nobody_sent_are_refused_and_change_nothing(damage: object) -> None:
    async def main() -> None:
        sender, victim = (await seat()).difference, await seat()
        assert sender is not None
        assert victim.difference is not None
        blob, before = await sender.make(), await victim.save()
        with pytest.raises(MisbehaviourError, match="no difference of toy stage 1"):
            await victim.difference.adopt(damage(blob))  # type: ignore[operator]
        assert (await victim.save(), victim.difference.base) == (before, GENESIS)

    run(main())
