"""One byte string for one value: what is signed and what is hashed.

Each field is written as a type letter, a length and its bytes, after a domain name, so two
different lists of fields, or the same list meant for another purpose, never share bytes.
Integers are decimal text (they have no bound), floats IEEE 754 binary64, little-endian.

Alternative refused: signing the wire's encoding. It may change with the protocol version or
the library, and then every signature and every chain of an old run would be void.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

from p2ptrain.units import DIGEST_BYTES, Digest

_LENGTH = struct.Struct("<I").pack


def canonical(domain: str, *fields: bytes | str | float) -> bytes:
    """The bytes that stand for ``fields`` in ``domain``. A bool counts as 0 or 1."""
    parts = [_field(domain)]
    for value in fields:
        if type(value) is int:  # as most are
            body = b"%d" % value
            parts.append(b"i" + _LENGTH(len(body)) + body)
        else:
            parts.append(_field(value))
    return b"".join(parts)


def digest(domain: str, *fields: bytes | str | float) -> Digest:
    """BLAKE2b-256 over :func:`canonical`."""
    return Digest(blake2b(canonical(domain, *fields), digest_size=DIGEST_BYTES).digest())


def _field(value: bytes | str | float) -> bytes:
    if isinstance(value, bytes):
        kind, body = b"b", value
    elif isinstance(value, str):
        kind, body = b"s", value.encode()
    elif isinstance(value, int):
        kind, body = b"i", str(int(value)).encode()
    else:
        kind, body = b"f", struct.pack("<d", value)
    return kind + _LENGTH(len(body)) + body
