"""A simulated signature binds a message to a peer of one world."""

from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import PeerId

A, B = PeerId("a"), PeerId("b")


def test_a_signature_verifies_for_its_peer_and_message_only() -> None:
    ours, theirs = SimSigner(A), SimSigner(B)
    signature = ours.sign(b"message")
    assert theirs.verify(A, b"message", signature)
    assert not theirs.verify(B, b"message", signature)
    assert not theirs.verify(A, b"massage", signature)
    assert not theirs.verify(A, b"message", b"")
    assert not theirs.verify(PeerId(""), b"message", signature)


def test_the_worlds_seed_makes_the_secret() -> None:
    assert SimSigner(A, seed=1).sign(b"x") == SimSigner(A, seed=1).sign(b"x")
    assert not SimSigner(B, seed=2).verify(A, b"x", SimSigner(A, seed=1).sign(b"x"))
