"""The ports: all that the engine asks of the world, and what it is promised.

Each port has one contract suite (tests/contracts) that its real and its simulated
implementation both pass. A port promises behaviour, not mechanism: nothing here
names libp2p, torch or a file. No port reads the wall clock for the engine: the
event loop is the clock.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from p2ptrain.core.health import BoundaryReading
    from p2ptrain.units import Bytes, Digest, Microbatch, Seconds, Stage, Step

Buffer: TypeAlias = bytes | bytearray | memoryview

# --- Transport -----------------------------------------------------------------------


class Stream(Protocol):
    """An ordered, reliable byte stream to one peer, with backpressure."""

    @property
    def peer(self) -> PeerId:
        """The authenticated peer at the other end."""
        ...

    async def send(self, *buffers: Buffer) -> None:
        """Write all of ``buffers``; wait while the peer does not read.

        Cancelled or failed, an unknown prefix may have gone out: close the stream then.

        Raises:
            LinkError: the stream is broken or closed.
        """
        ...

    async def receive_into(self, buffer: memoryview) -> None:
        """Fill all of ``buffer``.

        Raises:
            LinkError: the stream ended or broke first.
        """
        ...

    async def close(self) -> None:
        """Close both directions; never raises, waits for nobody."""
        ...


StreamHandler: TypeAlias = Callable[[Stream], Awaitable[None]]
"""Called in a task of the transport for each stream that a peer opens; owns the stream."""


class Transport(Protocol):
    """Streams between peers that know each other's ids."""

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses to share, ending in ``/p2p/<peer id>``; may be empty in simulation."""
        ...

    async def listen(self, handler: StreamHandler) -> None:
        """Hand every incoming stream to ``handler`` from now on; call once."""
        ...

    async def open(self, peer: PeerId) -> Stream:
        """Open a stream to ``peer``, within the transport's own deadline.

        Raises:
            LinkError: it cannot be reached.
        """
        ...


# --- Directory ------------------------------------------------------------------------


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record as read: the directory has verified owner, signature, age and sequence."""

    owner: PeerId
    sequence: int
    value: bytes


class Directory(Protocol):
    """Small, owned, signed, expiring records under a key. A hint, never an authority."""

    async def store(self, key: str, value: bytes, *, lifetime: Seconds) -> bool:
        """Publish our record under ``key`` (at most 4 kB, at most 120 s); False if nobody took it.

        Raises:
            ValueError: too large or too long-lived.
            DirectoryError: no answer within the directory's own deadline.
        """
        ...

    async def read(self, key: str) -> tuple[Record, ...]:
        """All valid records under ``key``, one per owner, ordered by owner.

        Raises:
            DirectoryError: no answer within the directory's own deadline.
        """
        ...


# --- Signer ---------------------------------------------------------------------------


class Signer(Protocol):
    """Signs as this peer and checks anybody's signature from the peer id alone."""

    @property
    def peer(self) -> PeerId:
        """Who signs."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return a signature over ``message``."""
        ...

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed ``message``; False also for malformed ids and signatures."""
        ...


# --- Compute --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What the last stage learnt of one microbatch.

    ``loss``: 2^-32 nats, the sum of token losses over the *nominal* token count;
    ``gradient``: encoded, for the stage below (None when evaluating or when S = 1).
    ``poisoned``: the gradient was not finite or out of range, and counted as zero.
    A loss that is not finite counts as loss 0, tokens 0 and zero gradient (weight 0).
    """

    loss: int
    tokens: int
    gradient: Buffer | None
    poisoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """What a backward pass gave: the encoded gradient for the stage below (None at stage 0)."""

    gradient: Buffer | None
    poisoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What follows from the whole integer sum of a stage: a pure function of it."""

    digest: Digest
    norms: tuple[float, ...]
    finite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What every stage needs to step: equal in all stages.

    ``tokens`` / nominal tokens per microbatch is the divisor D_t; ``norms``: squared norm
    of every parameter's sum of *all* stages, in stage order, then name order. ``skip``:
    advance t without touching weights or optimizer state.
    """

    step: Step
    tokens: int
    norms: tuple[float, ...]
    skip: bool


class Difference(Protocol):
    """One seat's state, told as its difference to the last one that all of its stage adopted.

    Whoever has that (``base``) and adopts a difference to it ends with the same state, on every
    device. Between making or adopting one and ``mark`` there is no base.
    """

    @property
    def base(self) -> Digest | None:
        """Name of the state that differences are to: GENESIS of core/adoption at first.

        None: another state was loaded, or nobody has named the one that was adopted.
        """
        ...

    @property
    def size_bytes(self) -> Bytes:
        """Of every difference of this stage."""
        ...

    async def make(self) -> bytes | None:
        """Adopt what the difference of our own state leads to, and return that difference.

        It is lossy, so this changes our state; what is lost goes into the next one. None:
        there is none, for our state is not finite or there is no base; nothing was changed.
        """
        ...

    async def adopt(self, blob: Buffer) -> None:
        """Adopt what ``blob`` leads to. It clears like ``load``.

        Raises:
            MisbehaviourError: it does not fit this stage; nothing was changed.
        """
        ...

    async def mark(self, base: Digest) -> None:
        """The state of this seat is what all have adopted, under this name."""
        ...


class OwnCopy(Protocol):
    """An accumulator as it was at one moment."""

    async def read(self, start: int, stop: int) -> Buffer:
        """Elements of it, little-endian integers."""
        ...


class StageCompute(Protocol):
    """One seat's weights, optimizer state and accumulator.

    Calls of one peer are serialised in the order in which they were made. Buffers given
    must stay unchanged until the call returns. A cancelled call may still take effect:
    after cancelling an accumulating call, ``clear`` before trusting the accumulator.

    Passes (``forward``, ``backward``, ``loss``, ``evaluate``) of a microbatch of the next step
    use the weights as they are. Those of the step before use the weights that it began with,
    while they are kept (see ``step``), give the same bits as they did then, and take ``sign`` 0.
    """

    @property
    def stage(self) -> Stage:
        """Which stage this is."""
        ...

    @property
    def elements(self) -> int:
        """Length of the accumulator, in integers."""
        ...

    async def forward(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Buffer:
        """Encoded output for the stage above. ``given``: encoded input, None at stage 0."""
        ...

    async def backward(
        self,
        work: Microbatch,
        tokens: Buffer,
        given: Buffer | None,
        gradient: Buffer,
        *,
        sign: Literal[1, 0, -1] = 1,
    ) -> Backward:
        """Add ``sign`` times this microbatch's gradient to the accumulator (not the last stage).

        With 0 only the gradient for the stage below is made, the same as ever.
        """
        ...

    async def loss(
        self, work: Microbatch, tokens: Buffer, given: Buffer | None, *, sign: Literal[1, 0, -1] = 1
    ) -> Loss:
        """The last stage: forward, loss, backward and accumulation in one."""
        ...

    async def evaluate(self, work: Microbatch, tokens: Buffer, given: Buffer | None) -> Loss:
        """The last stage: forward and loss of a held-out microbatch; nothing accumulates."""
        ...

    async def read_own(self, start: int, stop: int) -> bytes:
        """Elements of the own accumulator, little-endian integers."""
        ...

    async def copy_own(self) -> OwnCopy:
        """The whole own accumulator as it is now, whatever is added to it later.

        It takes as much memory as the accumulator, until it is dropped.
        """
        ...

    async def add(self, pieces: Sequence[tuple[int, Buffer]], sign: Literal[1, -1]) -> None:
        """Add ``sign`` times the integers of others, as (start, integers), to the accumulator.

        All pieces in one call: nobody sees it with some of them.

        Raises:
            MisbehaviourError: a piece does not fit; nothing was changed.
        """
        ...

    async def sum_parts(self, parts: Sequence[Buffer]) -> bytes:
        """Elementwise integer sum of equally long parts."""
        ...

    async def finish(self, pieces: Sequence[tuple[int, Buffer]]) -> Whole:
        """Take the whole sum, given as (start, integers) pieces that tile it, for ``step``."""
        ...

    async def read_sum(self, start: int, stop: int) -> bytes:
        """Elements of the last finished whole sum (for a member that missed parts)."""
        ...

    async def step(self, update: Update, *, keep: bool = False) -> None:
        """Apply the finished sum, clear the accumulator, and forget kept graphs.

        ``keep``: the weights before it stay beside the new ones, until ``release`` or the next
        step: as much memory as the weights take.
        """
        ...

    async def release(self, step: Step) -> None:
        """Let go of the weights that ``step`` began with, if they are the ones that are kept."""
        ...

    async def clear(self) -> None:
        """Zero the accumulator and forget kept graphs and sums."""
        ...

    async def save(self) -> bytes:
        """Weights, optimizer state and step as one self-describing blob: equal on all replicas."""
        ...

    async def load(self, blob: Buffer, *, keep: bool = False) -> None:
        """Take over a blob of ``save``.

        ``keep``: weights that are kept of the step before stay, if the blob is of the version
        that this seat has come to: another replica's, for what follows.

        Raises:
            MisbehaviourError: it does not fit this stage; nothing was changed.
        """
        ...

    @property
    def difference(self) -> Difference | None:
        """Where the run adopts states as differences; else None."""
        ...

    async def probe(self) -> None:
        """One forward pass over fixed input; nothing accumulates and nothing is kept.

        Raises:
            MisbehaviourError: what comes out is not finite or of a wrong size: the state that
                was loaded is of no use here.
        """
        ...

    @property
    def reading(self) -> BoundaryReading | None:
        """Of the boundary above, taken in the last step; None: none was, or at the last stage."""
        ...

    async def tensor_digests(self) -> Mapping[str, str]:
        """Digest (hex) of every weight tensor, by global name; see weights_digest in run.py."""
        ...

    async def weights(self) -> Mapping[str, bytes]:
        """Raw little-endian bytes of every weight tensor by global name (small models, verify)."""
        ...


class Compute(Protocol):
    """One peer's devices: makes seats."""

    @property
    def arithmetic(self) -> str:
        """The class within which results are bit-equal (device kind, torch, threads, dtype)."""
        ...

    async def open(self, stage: Stage) -> StageCompute:
        """A seat with the initial weights of the RunSpec. Close by dropping it.

        Raises:
            UserError: it does not fit the memory bound.
        """
        ...

    def seat_bytes(self, stage: Stage) -> Bytes:
        """Estimated memory of a seat of ``stage``."""
        ...

    @property
    def memory_bytes(self) -> Bytes:
        """How much memory this peer gives to seats."""
        ...


# --- Spill ----------------------------------------------------------------------------------


SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of a process that lacks something at the moment: they say nothing of what a disk holds."""


DISTRUST_SECONDS = 30.0
"""For so long a disk that has not given back a frame is given no other: a kernel has reset a
drive by then. Not for ever: a seat that has no mate would wait for memory that never comes."""


class Spill(Protocol):
    """Frames put out of memory for as long as this process lives; nothing outlives it.

    Bounded: a put that would pass ``bound_bytes`` is refused like one that the disk refuses.
    """

    @property
    def bound_bytes(self) -> Bytes:
        """How much may lie here in all."""
        ...

    @property
    def used_bytes(self) -> Bytes:
        """How much lies here, or is on its way."""
        ...

    async def put(self, parts: Sequence[Buffer]) -> int:
        """Put a frame away, given as its parts; they must stay unchanged until this returns.

        Returns the handle by which it is had back. Cancelled, nothing stays.

        Raises:
            OSError: the disk, or the bound, refused, or it has not given back a frame within
                DISTRUST_SECONDS; nothing stays.
        """
        ...

    async def get(self, handle: int) -> tuple[bytes, ...]:
        """The parts as they were given; they stay here.

        Raises:
            OSError: it was dropped, or the disk does not give back what it was given; or, with
                an errno of SHORTAGES, it can be had later.
        """
        ...

    def drop(self, handle: int) -> None:
        """Forget a frame; one that is not there is no matter. Never waits, never raises."""
        ...


# --- Corpus and Store -------------------------------------------------------------------


class Corpus(Protocol):
    """The training data of a run, complete and verified."""

    def tokens(self, work: Microbatch) -> bytes:
        """Token ids of a microbatch: sequences x (context + 1), little-endian.

        One byte each up to 256 tokens of vocabulary, two up to 65536, else four. The last
        token of each sequence is only a label.
        """
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Raw bytes of the corpus, files in manifest order, concatenated."""
        ...


class Store(Protocol):
    """Blobs by name that survive a restart; written whole or not at all."""

    async def put(self, name: str, blob: Buffer) -> None:
        """Write durably, replacing.

        Raises:
            OSError: the disk refused; the old blob is intact.
        """
        ...

    async def get(self, name: str) -> bytes | None:
        """The blob as last written whole, or None.

        Raises:
            OSError: the disk cannot read it.
        """
        ...

    async def names(self) -> Sequence[str]:
        """All names, sorted."""
        ...

    async def remove(self, name: str) -> None:
        """Forget a blob; one that is not there is no matter.

        Raises:
            OSError: the disk refused; the blob may still be there.
        """
        ...
