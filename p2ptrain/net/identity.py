"""Who a peer is: an Ed25519 key in a file, and the peer id that contains its public half.

Intuition: a libp2p peer id made from an Ed25519 key *is* the key (12D3Koo...), so anybody
can check a signature knowing only who claims to have signed. The file is libp2p's own
protobuf ``PrivateKey``, so p2pd reads it as it is.

Invariants: a key file is written once, whole, readable by its owner alone; one running
program uses a key (a lock file says so, and the kernel drops the lock with the process);
a foreign, damaged or exposed key is refused in one line, never repaired.

Refused: hivemind's RSA identities (its peer ids hide the key, records grow by 356 bytes)
and hivemind's own check whether an identity is free (it reads RSA only).
"""

from __future__ import annotations

import fcntl
import functools
import os
import stat
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2ptrain.errors import UserError
from p2ptrain.net.scratch import scratch_folder
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

KEY_BYTES: Final = 32
# protobuf PrivateKey{type: Ed25519, data: seed || public}: field 1 varint 1, field 2 of 64 bytes
PRIVATE_PREFIX: Final = bytes((0x08, 0x01, 0x12, 0x40))
PRIVATE_FILE_BYTES: Final = len(PRIVATE_PREFIX) + 2 * KEY_BYTES
# identity multihash (0x00) of 36 bytes around protobuf PublicKey{type: Ed25519, data: public}
PEER_PREFIX: Final = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
PEER_TEXT_CHARS: Final = 52  # every Ed25519 peer id has this length in base58
# A parsed key is about 200 bytes; more peers than this rarely speak to one peer.
KEPT_KEYS: Final = 4096

_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS: Final = {letter: digit for digit, letter in enumerate(_ALPHABET)}


def base58_encode(raw: bytes) -> str:
    """Bitcoin's base58, as libp2p writes peer ids."""
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + text


def base58_decode(text: str) -> bytes:
    """Inverse of ``base58_encode``.

    Raises:
        ValueError: a character that is not base58.
    """
    number = 0
    for letter in text:
        if letter not in _DIGITS:
            raise ValueError(f"{letter!r} is not a base58 character")
        number = number * 58 + _DIGITS[letter]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id that contains this Ed25519 public key (32 bytes)."""
    return PeerId(base58_encode(PEER_PREFIX + public_key))


def public_key_of(peer: str) -> bytes | None:
    """The public key inside ``peer``, or None if it is not an Ed25519 peer id."""
    if len(peer) != PEER_TEXT_CHARS:
        return None
    try:
        raw = base58_decode(peer)
    except ValueError:
        return None
    if len(raw) != len(PEER_PREFIX) + KEY_BYTES or not raw.startswith(PEER_PREFIX):
        return None
    return raw[len(PEER_PREFIX) :]


@functools.lru_cache(maxsize=KEPT_KEYS)
def _parsed(peer: str) -> Ed25519PublicKey | None:
    raw = public_key_of(peer)
    return None if raw is None else Ed25519PublicKey.from_public_bytes(raw)


class Ed25519Signer:
    """Signs as one peer; verifies anybody from the peer id alone (ports.Signer)."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self._peer = peer_id_of(private_key.public_key().public_bytes_raw())

    @property
    def peer(self) -> PeerId:
        """Who signs."""
        return self._peer

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over ``message``."""
        return self._private_key.sign(message)

    def verify(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether ``peer`` signed ``message``; False also for malformed ids and signatures."""
        public_key = _parsed(peer)
        if public_key is None:
            return False
        try:
            public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Identity:
    """A key in use: its file, its signer, and the lock that keeps others from using it.

    Close it (or leave the ``with``) when the program ends; a killed process needs no cleaning.
    """

    def __init__(
        self,
        path: Path,
        signer: Ed25519Signer,
        lock: int,
        folder: ExitStack | None = None,
    ) -> None:
        self.path = path
        self.signer = signer
        self._lock: int | None = lock
        self._temporary = folder

    @property
    def peer(self) -> PeerId:
        """Who we are."""
        return self.signer.peer

    @classmethod
    def open(cls, path: Path) -> Identity:
        """Read the key at ``path``, or make one there, and lock it.

        Raises:
            UserError: the file is no Ed25519 identity, is exposed, cannot be used, or
                another running peer uses it.
        """
        return cls._open(path, None)

    @classmethod
    def temporary(cls) -> Identity:
        """A new identity that is forgotten when closed (simulations, tests, one-off questions)."""
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            return cls._open(folder / "identity", stack.pop_all())

    @classmethod
    def _open(cls, path: Path, folder: ExitStack | None) -> Identity:
        if _is_there(path):
            _read(path)  # what is no key is refused before a lock is laid beside it
        lock = _lock(path)
        try:
            _create_if_missing(path)
            signer = Ed25519Signer(_read(path))
        except BaseException:
            os.close(lock)
            raise
        return cls(path, signer, lock, folder)

    def close(self) -> None:
        """Release the key for other programs; may be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._temporary is not None:
            self._temporary.close()
            self._temporary = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _is_there(path: Path) -> bool:
    """Look before anything is locked, opened or advised: a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise UserError(f"identity {path} is {kind}; give a file with --identity-path")
    return True


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"identity {path}: cannot be used ({error.strerror}); "
        "mend its permissions, or give another file with --identity-path"
    )


def _lock(path: Path) -> int:
    """Lock ``path``.lock for this process; the lock lives as long as the descriptor returned."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(
            f"identity {path}: cannot write there ({error.strerror}); "
            "give another file with --identity-path"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise UserError(
            f"identity {path} is in use by another running peer or bootstrap; "
            "stop that one, or give each its own --identity-path FILE"
        ) from error
    return lock


def _create_if_missing(path: Path) -> None:
    """Write a new key whole and durably under a temporary name, then give it its name."""
    if path.exists():
        return
    private_key = Ed25519PrivateKey.generate()
    blob = (
        PRIVATE_PREFIX
        + private_key.private_bytes_raw()
        + private_key.public_key().public_bytes_raw()
    )
    # O_EXCL: the name is ours alone; a leftover of a crash is replaced, the lock is held.
    unfinished = path.with_name(path.name + ".new")
    try:
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(
            f"identity {path}: cannot write there ({error.strerror}); "
            "give another file with --identity-path"
        ) from error


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            blob = file.read(PRIVATE_FILE_BYTES + 1)
    except OSError as error:
        raise _unusable(path, error) from error
    seed = blob[len(PRIVATE_PREFIX) : len(PRIVATE_PREFIX) + KEY_BYTES]
    if len(blob) != PRIVATE_FILE_BYTES or not blob.startswith(PRIVATE_PREFIX):
        raise _foreign(path)
    private_key = Ed25519PrivateKey.from_private_bytes(seed)
    if not blob.endswith(private_key.public_key().public_bytes_raw()):
        raise _foreign(path)
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(
            f"identity {path} can be read by others (mode {stat.S_IMODE(mode):03o}); "
            f"run: chmod 400 {path}"
        )
    return private_key


def _foreign(path: Path) -> UserError:
    return UserError(
        f"identity {path} is not an Ed25519 key of this program (RSA keys of hivemind do not "
        "serve); give another file with --identity-path, a new one is made there"
    )
