"""The values with which replicas agree on a step; the round machine and the wire both speak them.

A slot set is ``bytes``: bit ``i % 8`` of byte ``i // 8`` stands for slot ``i``, in
``ceil((G + E) / 8)`` bytes. Everything is frozen, strict and compared by value.
See DESIGN section 5: bitmaps are tagged (peer, incarnation, epoch, t, seq), the highest
(incarnation, seq) replaces, never an OR over time.
"""

from __future__ import annotations

import msgspec

from p2ptrain.units import Chain, Digest, PeerId, Stage, Step


class Message(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=False
):
    """Root of all messages: frozen, strict, tagged by class name."""


class Position(Message, frozen=True, array_like=True):
    """Where in the run's history a message belongs."""

    epoch: int
    step: Step
    chain: Chain


class Tallies(Message, frozen=True, array_like=True):
    """Integer sums over the ids of a bitmap. Losses are fixed point (2^-32 nats of mean loss)."""

    loss: int = 0
    tokens: int = 0
    val_loss: int = 0
    val_tokens: int = 0
    poisoned: int = 0


class Counted(Message, frozen=True, array_like=True):
    """Who counted which slots: a line of a sum's cover, or of what a bitmap has borrowed."""

    peer: PeerId
    slots: bytes


class Bitmap(Message, frozen=True, tag=True):
    """Which slots of a step one seat has counted. The highest (incarnation, seq) replaces.

    ``pace``: how fast the seat is, coarsely (core/sourcing); 0 while it does not know.
    ``borrowed``: those of ``slots`` that mates who are gone had counted, and that can be taken
    out only with all of that mate's (core/deposits); unset where there are none.
    """

    peer: PeerId
    incarnation: int
    at: Position
    stage: Stage
    seq: int
    slots: bytes
    tallies: Tallies
    signature: bytes
    pace: int = 0
    borrowed: tuple[Counted, ...] | msgspec.UnsetType = msgspec.UNSET


class Ballot(Message, frozen=True, array_like=True, order=True):
    """Orders plans: round first, then the leader's rank, then the plan's digest."""

    round: int
    rank: int
    digest: Digest


class Share(Message, frozen=True, array_like=True):
    """One member of a plan: the bitmap it must freeze at (by seq), and its shard in elements."""

    peer: PeerId
    incarnation: int
    seq: int
    slots: bytes
    tallies: Tallies
    start: int
    stop: int
    pace: int = 0


class Plan(Message, frozen=True, tag=True):
    """A leader's disjoint cover of M_t; members that counted nothing receive only."""

    at: Position
    stage: Stage
    ballot: Ballot
    shares: tuple[Share, ...]


class Ack(Message, frozen=True, tag=True):
    """Frozen at exactly what the plan says."""

    at: Position
    stage: Stage
    ballot: Ballot


class Nack(Message, frozen=True, tag=True):
    """Not this plan: my highest ballot, and the bitmaps I hold for you to merge."""

    at: Position
    stage: Stage
    ballot: Ballot
    highest: Ballot
    bitmaps: tuple[Bitmap, ...]


class Go(Message, frozen=True, tag=True):
    """All members acked: reduce under this ballot."""

    at: Position
    stage: Stage
    ballot: Ballot


class Sum(Message, frozen=True, tag=True):
    """SUM(t, s): unique for (run, epoch, chain, t, s), whoever publishes it.

    ``norms``: squared norm of every parameter's sum, in name order. ``cover`` and
    ``members`` are not unique: they are the publisher's and feed the ledger and the hashes.
    ``paces`` are the members', in their order: stage 0 shares the next step out by them.
    ``round`` is the ballot's round, for the log. ``final``: who tells it has stepped with it
    (said by the teller; it matters where arithmetic differs, see core/choice). ``signature``:
    of ``publisher``, in this ``incarnation``, over all but itself and ``final``: others pass a
    SUM on. It is empty while the seat that made it has told nobody.
    """

    at: Position
    stage: Stage
    digest: Digest
    norms: tuple[float, ...]
    finite: bool
    tallies: Tallies
    cover: tuple[Counted, ...]
    members: tuple[PeerId, ...]
    round: int
    paces: tuple[int, ...] = ()
    final: bool = False
    publisher: PeerId = PeerId("")
    incarnation: int = 0
    signature: bytes = b""
