"""What every ``ports.Signer`` promises."""

from typing import Any

from p2ptrain.units import PeerId


def test_a_signature_binds_a_message_to_a_peer(world: Any) -> None:
    async def scenario(a: Any, b: Any) -> None:
        signature = a.signer.sign(b"message")
        assert b.signer.verify(a.signer.peer, b"message", signature)
        assert a.signer.verify(a.signer.peer, b"message", signature)
        assert not b.signer.verify(b.signer.peer, b"message", signature)
        assert not b.signer.verify(a.signer.peer, b"massage", signature)

    world(scenario, peers=2)


def test_what_is_malformed_does_not_verify_and_does_not_raise(world: Any) -> None:
    async def scenario(a: Any) -> None:
        signature = a.signer.sign(b"message")
        for broken in (b"", signature[:-1], signature + b"\0", bytes(len(signature))):
            assert not a.signer.verify(a.signer.peer, b"message", broken)
        for nobody in ("", "nobody", "12D3KooW", "0OIl"):
            assert not a.signer.verify(PeerId(nobody), b"message", signature)

    world(scenario, peers=1)
