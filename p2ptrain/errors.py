"""The error tree: whose fault it was decides what happens next.

    P2PTrainError
    |- UserError             the person at the keyboard can mend it      exit 2
    |  |- RunSpecError       a RunSpec that cannot be run                exit 2
    |  `- DataError          missing, empty or foreign data              exit 2
    |- BootstrapError        no bootstrap address answers                exit 3
    |- RefusedError          the run does not take this peer             exit 4
    |- UnreachableError      nobody can reach this peer from outside     exit 5
    |- LostError             the run cannot go on: a stage is lost    exit 6
    |- PeerError             another peer's fault: drop it, go on
    |  |- WireError          bytes that are no message of ours
    |  |- MisbehaviourError  a well-formed message that breaks the rules
    |  `- LinkError          the link to a peer is gone
    |- DirectoryError        the DHT did not answer; it is a hint: try later
    `- InternalError         our own fault: a broken invariant

Foreign errors are mapped to these where they enter. ``exit_code`` is what the
command returns when the error reaches it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from p2ptrain.units import PeerId


class P2PTrainError(Exception):
    """Root of everything that this project raises."""

    exit_code: ClassVar[int] = 1


class UserError(P2PTrainError):
    """Something the user gave cannot work; the message says what to give instead."""

    exit_code = 2


class RunSpecError(UserError):
    """A RunSpec is malformed or impossible."""


class DataError(UserError):
    """Training data is missing, empty or not what the RunSpec pins."""


class BootstrapError(P2PTrainError):
    """No bootstrap address could be reached."""

    exit_code = 3


class RefusedError(P2PTrainError):
    """The run refused this peer: another run, version or arithmetic."""

    exit_code = 4


class UnreachableError(P2PTrainError):
    """Other peers cannot dial this peer."""

    exit_code = 5


class LostError(P2PTrainError):
    """Nobody within reach has what the run would go on from."""

    exit_code = 6


class PeerError(P2PTrainError):
    """Another peer's fault. Fields say whose."""

    def __init__(self, reason: str, *, peer: PeerId | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.peer = peer


class WireError(PeerError):
    """Bytes that are not a valid frame of this protocol."""


class MisbehaviourError(PeerError):
    """A well-formed message that the protocol does not allow."""


class LinkError(PeerError):
    """The link to a peer broke, or could not be opened."""


class DirectoryError(P2PTrainError):
    """The directory did not answer in time."""


class InternalError(P2PTrainError):
    """A broken invariant of our own."""
