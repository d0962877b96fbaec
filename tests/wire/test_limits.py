"""Sizes follow from the RunSpec, and nothing outside the run's ranges passes."""

import math

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from p2ptrain.core.agreement import (
    Ballot,
    Bitmap,
    Counted,
    Message,
    Position,
    Sum,
    Tallies,
)
from p2ptrain.errors import WireError
from p2ptrain.run import Batch, Codec, Composition, Cut, Evaluation, Model, RunSpec
from p2ptrain.units import Chain, Digest, PeerId, Slot, Stage, Step
from p2ptrain.wire.limits import (
    CHUNK_BYTES,
    CORPUS_BYTES,
    CORPUS_CHUNK_BYTES,
    FREE_FIELDS,
    FrameLimits,
)
from p2ptrain.wire.messages import (
    Ask,
    Chunk,
    CorpusChunk,
    Data,
    Deposit,
    Forward,
    Gradient,
    Heartbeat,
    Offer,
    Part,
    SeatStatus,
    StageManifest,
    WantCorpus,
    WantManifest,
    WantSums,
)

SPEC = RunSpec(
    model=Model(d_model=8, n_layers=4, n_heads=2, n_kv_heads=1, d_ff=16, context=10),
    cut=Cut(stages=3, layers=(2, 1, 1)),
    batch=Batch(sequences=2, microbatches=5),
    codec=Codec(boundaries=("bf16", "fp32")),
    evaluation=Evaluation(microbatches=6),
)
LIMITS = FrameLimits(SPEC)
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))
BALLOT = Ballot(round=0, rank=0, digest=Digest(bytes(32)))
ANN = PeerId("ann")


def forward(stage: int = 1, slot: int = 0, path: tuple[PeerId, ...] | None = None) -> Forward:
    return Forward(
        at=AT,
        slot=Slot(slot),
        stage=Stage(stage),
        attempt=0,
        replay=False,
        path=(ANN,) * stage if path is None else path,
    )


def part(start: int, stop: int, stage: int = 1) -> Part:
    return Part(at=AT, stage=Stage(stage), ballot=BALLOT, what="own", start=start, stop=stop)


def deposit(start: int, stop: int, stage: int = 1) -> Deposit:
    bitmap = Bitmap(
        peer=ANN,
        incarnation=1,
        at=AT,
        stage=Stage(stage),
        seq=1,
        slots=bytes(2),
        tallies=Tallies(),
        signature=b"",
    )
    return Deposit(at=AT, stage=Stage(stage), bitmap=bitmap, start=start, stop=stop)


TOKEN_BYTES = 2 * 11 * 1  # sequences x (context + 1), one byte each
CELLS = 2 * 10 * 8  # sequences x context x d_model


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (forward(stage=1), TOKEN_BYTES + 2 * CELLS),
        (forward(stage=2), TOKEN_BYTES + 4 * CELLS),
        (Gradient(at=AT, slot=Slot(0), stage=Stage(0)), 2 * CELLS),
        (Gradient(at=AT, slot=Slot(0), stage=Stage(1)), 4 * CELLS),
        (part(3, 10), 7 * 8),
        (part(0, 0), 0),
        (deposit(3, 10), 7 * 8),
    ],
)
def test_exact_sizes(message: Data, size: int) -> None:
    assert LIMITS.payload_bytes(message) == size
    LIMITS.admits(message, size)
    for wrong in (size - 1, size + 1, 4 * 10**12):
        with pytest.raises(WireError, match="it takes"):
            LIMITS.admits(message, wrong)


@pytest.mark.parametrize(
    ("message", "most"),
    [
        (Chunk(stage=Stage(0), root=Digest(bytes(32)), index=0), CHUNK_BYTES),
        (CorpusChunk(offset=0), CORPUS_CHUNK_BYTES),
    ],
)
def test_a_last_chunk_may_be_short_but_none_is_empty_or_long(message: Data, most: int) -> None:
    for size in (1, most):
        LIMITS.admits(message, size)
    for wrong in (0, most + 1):
        with pytest.raises(WireError):
            LIMITS.admits(message, wrong)


def test_a_part_of_a_million_million_elements_is_refused() -> None:
    with pytest.raises(WireError, match=r"Part\.stop"):
        LIMITS.payload_bytes(part(0, 10**12))
    beyond = LIMITS.elements(Stage(1)) + 1  # stage 0 is larger: the field alone would pass
    with pytest.raises(WireError, match="elements"):
        LIMITS.payload_bytes(part(0, beyond))
    with pytest.raises(WireError, match="elements"):
        LIMITS.payload_bytes(part(5, 4))
    with pytest.raises(WireError, match="elements"):
        LIMITS.payload_bytes(deposit(0, beyond))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (forward(stage=0), "stage 0"),
        (Gradient(at=AT, slot=Slot(0), stage=Stage(2)), "last stage"),
        (forward(stage=2, path=(ANN,)), "path"),
        (forward(stage=3), r"Forward\.stage"),
        (forward(stage=-1, path=()), r"Forward\.stage"),
        (forward(slot=11), r"Forward\.slot"),
    ],
)
def test_frames_that_cannot_exist(message: Data, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        LIMITS.payload_bytes(message)


def test_the_size_of_a_frame_follows_the_schedule_of_its_direction() -> None:
    warming = Composition(name="x", scale="block", forward=((0, 8), (3, 4)), backward=((0, 16),))
    codec = Codec(name="x", compositions=(warming,))
    limits = FrameLimits(msgspec.structs.replace(SPEC, codec=codec))
    blocks = -(-CELLS // 64)
    before = msgspec.structs.replace(AT, step=Step(2))
    early = msgspec.structs.replace(forward(), at=before)
    assert limits.payload_bytes(early) == TOKEN_BYTES + 2 + blocks * (2 + 64)
    assert limits.payload_bytes(forward()) == TOKEN_BYTES + 2 + blocks * (2 + 32)
    gradient = Gradient(at=AT, slot=Slot(0), stage=Stage(0))
    assert limits.payload_bytes(gradient) == 2 * CELLS
    with pytest.raises(WireError, match="it takes"):
        limits.admits(forward(), limits.payload_bytes(early))


def test_evaluation_slots_exist() -> None:
    LIMITS.payload_bytes(forward(slot=10))


def bitmap(slots: bytes = b"\x1f", chain: bytes = bytes(32)) -> Bitmap:
    return Bitmap(
        peer=ANN,
        incarnation=0,
        at=Position(epoch=0, step=Step(0), chain=Chain(chain)),
        stage=Stage(0),
        seq=1,
        slots=slots,
        tallies=Tallies(),
        signature=bytes(64),
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (bitmap(slots=bytes(3)), "slots"),
        (bitmap(chain=b"short"), "chain"),
        (
            Ask(
                at=Position(epoch=-1, step=Step(0), chain=Chain(bytes(32))),
                slot=Slot(0),
                stage=Stage(0),
                attempt=0,
                replay=False,
            ),
            "epoch",
        ),
        (
            Ask(
                at=Position(epoch=0, step=Step(10**9), chain=Chain(bytes(32))),
                slot=Slot(0),
                stage=Stage(0),
                attempt=0,
                replay=False,
            ),
            "step",
        ),
        (
            Heartbeat(
                count=0,
                lag_seconds=0.0,
                seats=(
                    SeatStatus(
                        stage=Stage(0),
                        state="serving",
                        version=Step(0),
                        rate=math.nan,
                        queue=0,
                        parked=0,
                    ),
                ),
            ),
            "rate",
        ),
        (
            Sum(
                at=AT,
                stage=Stage(0),
                digest=Digest(bytes(32)),
                norms=(1.0, math.inf),
                finite=True,
                tallies=Tallies(),
                cover=(),
                members=(ANN,),
                round=0,
            ),
            "norms",
        ),
        (WantCorpus(offset=CORPUS_BYTES, size_bytes=1), "corpus"),
        (WantCorpus(offset=0, size_bytes=-1), "corpus"),
    ],
)
def test_values_outside_the_run_are_refused(message: Message, field: str) -> None:
    with pytest.raises(WireError, match=field):
        LIMITS.check(message)  # type: ignore[arg-type]


@pytest.mark.parametrize("base", [None, Digest(bytes(32))])
def test_a_difference_may_be_wanted_to_a_state_that_has_a_name(base: Digest | None) -> None:
    LIMITS.check(WantManifest(stage=Stage(0), version=Step(0), base=base))


def test_a_difference_to_a_state_without_a_name_is_refused_with_a_reason() -> None:
    with pytest.raises(WireError, match="base: length 0 is not in 32"):
        LIMITS.check(WantManifest(stage=Stage(0), version=Step(0), base=Digest(b"")))


def test_no_more_sums_are_said_to_lead_to_a_state_than_there_are_stages() -> None:
    whole = Sum(
        at=AT,
        stage=Stage(0),
        digest=Digest(bytes(32)),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=0,
    )
    manifest = StageManifest(
        stage=Stage(0),
        available=True,
        epoch=0,
        version=Step(1),
        chain=Chain(bytes(32)),
        size_bytes=1,
        chunk_bytes=1,
        leaves=(Digest(bytes(32)),),
        root=Digest(bytes(32)),
        members=(),
    )
    most = SPEC.cut.stages
    LIMITS.check(msgspec.structs.replace(manifest, taken=(whole,) * most))
    torn = msgspec.structs.replace(whole, digest=Digest(b""))
    for taken in ((whole,) * (most + 1), (torn,)):
        with pytest.raises(WireError, match=r"taken|digest"):
            LIMITS.check(msgspec.structs.replace(manifest, taken=taken))


@given(st.floats())
def test_no_delay_that_is_not_finite_passes(delay: float) -> None:
    offer = Offer(
        at=AT,
        slot=Slot(0),
        stage=Stage(0),
        attempt=0,
        delay_seconds=delay,
        service_seconds=0.1,
        lease_seconds=10.0,
    )
    if 0 <= delay <= 86_400:
        LIMITS.check(offer)
    else:
        with pytest.raises(WireError, match="delay_seconds"):
            LIMITS.check(offer)


def all_messages(root: type) -> list[type]:
    return [sub for child in root.__subclasses__() for sub in (child, *all_messages(child))]


def test_every_field_of_every_message_has_a_rule() -> None:
    ruled = LIMITS.ruled_fields()
    for kind in all_messages(Message):
        for field in msgspec.structs.fields(kind):
            assert field.name in ruled | FREE_FIELDS, f"{kind.__name__}.{field.name}"
    assert not ruled & FREE_FIELDS


def test_what_is_borrowed_is_looked_at_like_all_else() -> None:
    LIMITS.check(msgspec.structs.replace(bitmap(), borrowed=(Counted(ANN, b"\x01"),)))
    with pytest.raises(WireError, match=r"Counted.slots: length"):
        LIMITS.check(msgspec.structs.replace(bitmap(), borrowed=(Counted(ANN, bytes(64)),)))


def test_nobody_wants_more_sums_than_there_are_stages() -> None:
    LIMITS.check(WantSums(at=AT, stages=(Stage(0), Stage(1), Stage(2))))
    with pytest.raises(WireError, match=r"WantSums.stages: length 4"):
        LIMITS.check(WantSums(at=AT, stages=(Stage(0),) * 4))
