"""A SUM's digest, the chain, and what a step came to."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
import pytest

from p2ptrain.core.agreement import Counted, Position, Sum, Tallies
from p2ptrain.core.chain import genesis_chain, leads_to, next_chain, step_outcome, sum_digest
from p2ptrain.units import Chain, Digest, PeerId, RunId, Stage, Step

AT = Position(epoch=0, step=Step(1), chain=Chain(bytes(32)))


def total(stage: int = 0, **tallies: int) -> Sum:
    return Sum(
        at=AT, stage=Stage(stage), digest=Digest(b"d" * 32), norms=(1.0, 2.0), finite=True,
        tallies=Tallies(**tallies), cover=(), members=(), round=0,
    )  # fmt: skip


UNIQUE: list[dict[str, object]] = [
    {"at": Position(epoch=1, step=Step(1), chain=Chain(bytes(32)))},
    {"at": Position(epoch=0, step=Step(2), chain=Chain(bytes(32)))},
    {"at": Position(epoch=0, step=Step(1), chain=Chain(b"\x01" * 32))},
    {"stage": Stage(1)},
    {"digest": Digest(b"e" * 32)},
    {"norms": (1.0, 2.0000000000000004)},
    {"finite": False},
    {"tallies": Tallies(val_loss=1)},
]
PUBLISHERS: list[dict[str, object]] = [
    {"cover": (Counted(peer=PeerId("ann"), slots=b"\x01"),)},
    {"members": (PeerId("ann"),)},
    {"round": 7},
    {"norms": (1, 2)},
]


@pytest.mark.parametrize("change", UNIQUE)
def test_the_digest_sees_all_that_is_unique(change: dict[str, object]) -> None:
    assert sum_digest(msgspec.structs.replace(total(), **change)) != sum_digest(total())


@pytest.mark.parametrize("change", PUBLISHERS)
def test_the_digest_ignores_who_published_how(change: dict[str, object]) -> None:
    assert sum_digest(msgspec.structs.replace(total(), **change)) == sum_digest(total())


def test_the_chain_begins_with_the_run_and_grows_with_every_sum() -> None:
    first = genesis_chain(RunId("run"))
    assert first == blake2b(b"p2ptrain genesisrun", digest_size=32).digest()
    sums = [total(0), total(1)]
    chains = {
        first,
        next_chain(first, 0, Step(0), sums),
        next_chain(first, 0, Step(1), sums),
        next_chain(first, 1, Step(0), sums),
        next_chain(first, 0, Step(0), sums[::-1]),
        next_chain(genesis_chain(RunId("other")), 0, Step(0), sums),
    }
    assert len(chains) == 6
    assert {len(chain) for chain in chains} == {32}


def test_who_says_what_led_to_a_position_is_believed_only_if_it_did() -> None:
    both = (total(0), total(1))
    chain = next_chain(AT.chain, AT.epoch, AT.step, both)
    at = Position(epoch=AT.epoch, step=Step(AT.step + 1), chain=chain)
    assert leads_to(at, both, 2)
    other = msgspec.structs.replace(total(1), digest=Digest(b"e" * 32))
    for said in ((), both[:1], both[::-1], (*both, total(2)), (total(0), other)):
        assert not leads_to(at, said, 2)
    assert not leads_to(msgspec.structs.replace(at, step=AT.step), both, 2)
    assert not leads_to(msgspec.structs.replace(at, epoch=1), both, 2)
    one = (total(0),)  # a chain of its own making, of another run's stages
    chain = next_chain(AT.chain, AT.epoch, AT.step, one)
    assert not leads_to(msgspec.structs.replace(at, chain=chain), one, 2)


def test_losses_are_nats_per_token() -> None:
    """Two microbatches of 8 nominal tokens, one of them with 4 valid tokens at 2 nats."""
    loss = int((8 * 2.0 / 8 + 4 * 2.0 / 8) * 2**32)
    outcome = step_outcome([total(0), total(1, loss=loss, tokens=12)], 8)
    assert (outcome.tokens, outcome.loss, outcome.skip) == (12, 2.0, False)
    assert (outcome.val_tokens, outcome.val_loss) == (0, None)
    assert outcome.norms == (1.0, 2.0, 1.0, 2.0)


def test_an_evaluation_step_trains_nothing() -> None:
    outcome = step_outcome([total(0, val_loss=3 << 31, val_tokens=8)], 8)
    assert (outcome.loss, outcome.val_loss, outcome.skip) == (None, 1.5, True)


def test_one_stage_that_is_not_finite_skips_the_step_everywhere() -> None:
    bad = msgspec.structs.replace(total(0, poisoned=1), finite=False)
    outcome = step_outcome([bad, total(1, loss=1, tokens=4)], 8)
    assert outcome.skip
    assert outcome.poisoned == 1
