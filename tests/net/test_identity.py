"""Identities: made once, read back, locked, and refused with one clear line."""

import errno
import os
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.errors import UserError
from p2ptrain.net.identity import (
    Ed25519Signer,
    Identity,
    base58_decode,
    base58_encode,
    peer_id_of,
    public_key_of,
)
from p2ptrain.units import PeerId


@given(st.binary(max_size=64))
def test_base58_gives_back_every_byte_string(raw):
    assert base58_decode(base58_encode(raw)) == raw


@given(st.text(max_size=60))
def test_no_text_is_mistaken_for_a_peer_id(text):
    key = public_key_of(text)
    assert key is None or peer_id_of(key) == text


def test_a_known_key_has_the_peer_id_that_libp2p_gives_it():
    # From the libp2p peer id specification's test vector for Ed25519.
    public = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
    assert peer_id_of(public) == "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


def test_a_missing_identity_is_made_with_its_folders_and_read_back(tmp_path):
    path = tmp_path / "deep" / "er" / "identity"
    with Identity.open(path) as made:
        assert path.stat().st_mode & 0o777 == 0o400
        assert made.peer.startswith("12D3Koo")
        first = made.peer
    with Identity.open(path) as again:
        assert again.peer == first
    assert sorted(file.name for file in path.parent.iterdir()) == ["identity", "identity.lock"]


def test_an_identity_in_use_is_refused_until_it_is_released(tmp_path):
    path = tmp_path / "identity"
    with Identity.open(path), pytest.raises(UserError, match="in use by another running peer"):
        Identity.open(path)
    Identity.open(path).close()


def test_a_killed_process_releases_its_identity(tmp_path):
    path = tmp_path / "identity"
    program = (
        "import os, pathlib, sys; from p2ptrain.net.identity import Identity;"
        "held = Identity.open(pathlib.Path(sys.argv[1])); print(held.peer, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -9
    with Identity.open(path) as identity:
        assert identity.peer == killed.stdout.strip()


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(68), b"\x08\x00\x12\x40" + bytes(64)])
def test_a_foreign_key_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o400)
    with pytest.raises(UserError, match="not an Ed25519 key"):
        Identity.open(path)
    assert path.read_bytes() == content


def test_what_is_no_key_is_not_said_to_be_one_that_others_can_read(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("seed = 1")
    path.chmod(0o644)
    with pytest.raises(UserError, match=r"run\.toml is not an Ed25519 key"):
        Identity.open(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.toml"]


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(tmp_path):
    path = tmp_path / "identity"
    Identity.open(path).close()
    path.chmod(0o440)
    with pytest.raises(UserError, match=f"chmod 400 {path}"):
        Identity.open(path)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for path, kind in ((folder, "a folder"), (pipe, "no ordinary file")):
        with pytest.raises(UserError, match=f"{kind}; give a file with --identity-path"):
            Identity.open(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot be used \(File name too long\)"):
        Identity.open(tmp_path / ("x" * 300))


def test_a_disk_that_fills_up_leaves_no_half_of_a_key(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        Identity.open(tmp_path / "identity")
    assert [file.name for file in tmp_path.iterdir()] == ["identity.lock"]
    monkeypatch.undo()
    Identity.open(tmp_path / "identity").close()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="--identity-path"):
        Identity.open(tmp_path / "file" / "identity")


def test_a_temporary_identity_leaves_nothing(tmp_path):
    with Identity.temporary() as identity:
        folder = identity.path.parent
        assert folder.exists()
    assert not folder.exists()


def test_a_signature_is_verified_from_the_peer_id_alone():
    signer, other = (Ed25519Signer(Ed25519PrivateKey.generate()) for _ in range(2))
    signature = signer.sign(b"message")
    assert other.verify(signer.peer, b"message", signature)
    assert not other.verify(signer.peer, b"massage", signature)
    assert not other.verify(other.peer, b"message", signature)
    assert not other.verify(PeerId("12D3KooW"), b"message", signature)
    assert not other.verify(signer.peer, b"message", signature[:-1])
