"""What a RunSpec allows a message to say, and the exact size of every payload.

Intuition: everybody holds the same RunSpec, so nobody needs to be told how large a tensor
is; a peer that says otherwise is wrong, and is refused before a byte is allocated for it.
The ranges below are those of the run (its stages, slots, steps), not of the machine.

Invariants:
    * ``payload_bytes`` has one answer per message, from the RunSpec alone (a Chunk's and a
      CorpusChunk's last piece is shorter: see ``admits``);
    * a message that passed ``check`` indexes no stage, slot or element that does not exist,
      holds no number that is not finite, and no hash of a wrong length.

Every rule goes by a field's *name*: the vocabulary is small, and a name means one thing in all
messages. A test sees to it that no integer, float or bytes field of any is without a rule.

Refused: a size in the message that the receiver trusts up to some maximum. The maximum must
then fit the largest tensor of the run, and every small message may claim it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from p2ptrain.core.bottleneck import stage_elements
from p2ptrain.core.sizes import boundary_bytes, integer_bytes, microbatch_token_bytes
from p2ptrain.errors import WireError
from p2ptrain.units import DIGEST_BYTES
from p2ptrain.wire.messages import (
    Chunk,
    CorpusChunk,
    Data,
    Deposit,
    Forward,
    Gradient,
    Part,
    WantCorpus,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sized

    from p2ptrain.core.agreement import Message, Position
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Bytes, Stage
    from p2ptrain.wire.messages import AnyMessage

    Rule = Callable[[Any], str | None]

CHUNK_BYTES = 4 << 20
"""A snapshot's piece: one lost costs little, and the leaves of 1 GB fit one small message."""

CORPUS_CHUNK_BYTES = 1 << 20
"""A corpus is pulled once and while others train: short pieces do not delay their frames."""

CORPUS_BYTES = 256 << 20
"""Larger corpora are brought by their peers, not pulled (DESIGN 5)."""

COUNTER_MOST = 2**62
"""Sequence numbers, epochs and incarnations: no honest counter comes near, none overflows."""

TEXT_BYTES = 1024
"""Reasons and names are one line; a longer one would fill somebody's log."""

PEER_TEXT = 128
"""A libp2p peer id in base58 has 52 characters (Ed25519); older kinds a few more or less."""

SIGNATURE_BYTES = 128
"""Ed25519 takes 64; the room is for another scheme, not for cargo."""

SECONDS_MOST = 86_400.0
"""No lease, delay or retry of this protocol lasts a day."""


@dataclass(frozen=True, slots=True)
class Between:
    """An integer within both bounds."""

    least: int
    most: int

    def __call__(self, value: int) -> str | None:
        """What is wrong with ``value``, or None."""
        fits = self.least <= value <= self.most
        return None if fits else f"{value} is not in {self.least}..{self.most}"


class _Compiled:
    """The rules of one kind of message: the many ranges are compared without a call each."""

    def __init__(self, rules: Iterable[tuple[str, Rule]]) -> None:
        self.ranges: list[tuple[str, int, int]] = []
        self.others: list[tuple[str, Rule]] = []
        for name, rule in rules:
            if isinstance(rule, Between):
                self.ranges.append((name, rule.least, rule.most))
            else:
                self.others.append((name, rule))


class FrameLimits:
    """The rules of one run. Build once per peer; it is immutable."""

    def __init__(self, spec: RunSpec) -> None:
        self._stages = spec.cut.stages
        self._elements = stage_elements(spec)
        self._integer_bytes = integer_bytes(spec)
        self._token_bytes = microbatch_token_bytes(spec)
        self._spec = spec
        # An activation in fp32, for the compression ratio: codecs do not enter.
        self._tensor_bytes = 4 * spec.batch.sequences * spec.model.context * spec.model.d_model
        self._slots = spec.batch.microbatches + spec.evaluation.microbatches
        self._rules = self._make_rules(last_version=spec.optimizer.steps + 1)
        self._compiled: dict[type, _Compiled] = {}
        self._sound_position: Position | None = None  # the last one that passed

    # --- sizes ------------------------------------------------------------------------

    def elements(self, stage: Stage) -> int:
        """Length of a stage's accumulator, in integers."""
        return self._elements[stage]

    def payload_bytes(self, message: Data) -> Bytes:  # noqa: C901, PLR0912 - one arm per message
        """Size of the payload behind ``message``; for chunks the greatest (see ``admits``).

        Raises:
            WireError: such a frame cannot exist in this run.
        """
        self.check(message)
        match message:
            case Forward():
                if message.stage == 0:
                    raise WireError("a forward frame for stage 0, which has no input but data")
                if len(message.path) != message.stage:
                    raise WireError(f"a path of {len(message.path)} peers to stage {message.stage}")
                return self._token_bytes + boundary_bytes(
                    self._spec, message.stage - 1, "forward", message.at.step
                )
            case Gradient():
                if message.stage == self._stages - 1:
                    raise WireError("a gradient frame for the last stage, which makes its own")
                return boundary_bytes(self._spec, message.stage, "backward", message.at.step)
            case Part() | Deposit():
                if not 0 <= message.start <= message.stop <= self._elements[message.stage]:
                    raise WireError(
                        f"elements {message.start}..{message.stop} of stage {message.stage}, "
                        f"which has {self._elements[message.stage]}"
                    )
                return (message.stop - message.start) * self._integer_bytes
            case Chunk():
                return CHUNK_BYTES
            case CorpusChunk():
                return CORPUS_CHUNK_BYTES
            case _:
                assert_never(message)

    def admits(self, message: Data, declared_bytes: Bytes) -> None:
        """Refuse a frame that declares another size than its message demands.

        Chunks may be shorter: only who asked for one knows which is the last, and checks.

        Raises:
            WireError: it must not be received.
        """
        exact = self.payload_bytes(message)
        shorter = isinstance(message, Chunk | CorpusChunk) and 0 < declared_bytes <= exact
        if declared_bytes != exact and not shorter:
            what = f"{declared_bytes} bytes behind {type(message).__name__}"
            raise WireError(f"{what}: it takes {exact}")

    def token_bytes(self) -> Bytes:
        """Size of the token ids that come first in a Forward's payload."""
        return self._token_bytes

    def tensor_bytes(self, message: Data, payload_bytes: Bytes) -> Bytes:
        """What the frame's tensor takes uncompressed, in fp32 (chunks and parts: as sent)."""
        return self._tensor_bytes if isinstance(message, Forward | Gradient) else payload_bytes

    # --- ranges -----------------------------------------------------------------------

    def check(self, message: AnyMessage | Message) -> None:
        """Refuse values that no message of this run can hold.

        Raises:
            WireError: names the message, the field and why.
        """
        kind = type(message)
        compiled = self._compiled.get(kind)
        if compiled is None:
            compiled = self._compiled[kind] = _Compiled(self._rules_of(kind))
        for name, least, most in compiled.ranges:
            if not least <= (value := getattr(message, name)) <= most:
                raise WireError(f"{kind.__name__}.{name}: {self._rules[name](value)}")
        for name, rule in compiled.others:
            if (problem := rule(getattr(message, name))) is not None:
                raise WireError(f"{kind.__name__}.{name}: {problem}")
        if (
            kind is WantCorpus
            and isinstance(message, WantCorpus)
            and not (
                0 < message.size_bytes <= CORPUS_CHUNK_BYTES
                and message.offset + message.size_bytes <= CORPUS_BYTES
            )
        ):
            raise WireError("WantCorpus: beyond a piece, or beyond the largest corpus pulled")

    def ruled_fields(self) -> frozenset[str]:
        """Names of the fields that have a rule; the rest are FREE_FIELDS."""
        return frozenset(self._rules)

    def _rules_of(self, kind: type) -> Iterator[tuple[str, Rule]]:
        for name in kind.__struct_fields__:  # type: ignore[attr-defined]  # msgspec's
            if name in self._rules:
                yield name, self._rules[name]
            elif name not in FREE_FIELDS:
                msg = f"{kind.__name__}.{name} has no rule"
                raise AssertionError(msg)

    def _make_rules(self, *, last_version: int) -> dict[str, Rule]:
        counter = Between(0, COUNTER_MOST)
        version = Between(0, last_version)  # who has finished is one beyond
        seconds, element = finite(0.0, SECONDS_MOST), Between(0, max(self._elements))
        digest = sized(DIGEST_BYTES, DIGEST_BYTES)
        peer, text = sized(1, PEER_TEXT), sized(0, TEXT_BYTES)
        stage, few = Between(0, self._stages - 1), sized(0, self._stages)
        return {
            "stage": stage,
            "stages": lambda named: few(named) or each(stage)(named),
            "taken": lambda sums: few(sums) or self._all_nested(sums),
            "slot": Between(0, self._slots - 1),
            "slots": sized(0, -(-self._slots // 8)),
            "borrowed": lambda told: self._all_nested(told) if isinstance(told, tuple) else None,
            "paces": each(counter),
            **dict.fromkeys(("step", "version", "least_above", "least_below"), version),
            **dict.fromkeys(("epoch", "incarnation", "seq", "round", "attempt", "count"), counter),
            **dict.fromkeys(("queue", "parked", "protocol", "poisoned", "index"), counter),
            "rank": Between(-1, COUNTER_MOST),
            **dict.fromkeys(("tokens", "val_tokens", "room", "pace"), counter),
            **dict.fromkeys(("loss", "val_loss"), Between(-COUNTER_MOST, COUNTER_MOST)),
            **dict.fromkeys(("start", "stop"), element),
            **dict.fromkeys(("delay_seconds", "service_seconds", "lag_seconds"), seconds),
            **dict.fromkeys(("lease_seconds", "retry_seconds"), seconds),
            "rate": finite(0.0, 1e9),
            "norms": each(finite(0.0, math.inf)),
            **dict.fromkeys(("chain", "digest", "root"), digest),
            "leaves": each(digest),
            **dict.fromkeys(("base", "result"), lambda one: None if one is None else digest(one)),
            "signature": sized(0, SIGNATURE_BYTES),
            "peer": peer,
            **dict.fromkeys(("holder", "publisher"), sized(0, PEER_TEXT)),
            "path": each(sized(0, PEER_TEXT)),
            "members": each(lambda one: peer(one) if isinstance(one, str) else each(peer)(one)),
            **dict.fromkeys(("reason", "run", "arithmetic"), text),
            "offset": Between(0, CORPUS_BYTES),
            "chunk_bytes": Between(0, CHUNK_BYTES),
            **dict.fromkeys(("ballot", "highest", "tallies", "bitmap"), self._nested),
            "at": self._position,
            **dict.fromkeys(
                ("shares", "bitmaps", "cover", "seats", "held", "let_go"), self._all_nested
            ),
        }

    def _position(self, value: Position) -> str | None:
        if value != self._sound_position:  # nearly all messages of a step name the same
            self.check(value)
            self._sound_position = value
        return None

    def _all_nested(self, values: Iterable[Message]) -> str | None:
        for value in values:
            self.check(value)
        return None

    def _nested(self, value: Message) -> str | None:
        return self._all_nested((value,))


FREE_FIELDS = frozenset(
    {  # choices and flags: the schema says it all
        "channel", "what", "state", "replay", "behind", "finite", "available", "waiting", "final",
        "begun", "spare", "bare",
        "size_bytes",  # of a snapshot: the puller bounds it; of a corpus piece: see check
    }
)  # fmt: skip


# --- rules: each returns what is wrong, or None -----------------------------------------


def finite(least: float, most: float) -> Rule:
    """A finite number within both bounds (a NaN compares with nothing, so it fails too)."""

    def rule(value: float) -> str | None:
        fits = least <= value <= most and value < math.inf
        return None if fits else f"{value} is no number in {least}..{most}"

    return rule


def sized(least: int, most: int) -> Rule:
    """Text, bytes or a list of a length within both bounds."""

    def rule(value: Sized) -> str | None:
        fits = least <= len(value) <= most
        return None if fits else f"length {len(value)} is not in {least}..{most}"

    return rule


def each(rule: Rule) -> Rule:
    """Every element meets ``rule``; how many there are is bounded by the message's size."""

    def rule_of_all(values: tuple[Any, ...]) -> str | None:
        for value in values:
            if (problem := rule(value)) is not None:
                return problem
        return None

    return rule_of_all
