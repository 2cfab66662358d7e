"""Indices and checksums as short text."""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from typing import Any


def encoded(kept: Sequence[int]) -> str:
    """Return rising indices as text: one bit for each index up to the last, compressed.

    >>> len(encoded(range(0, 4096, 3))) < 40
    True
    """
    mask = bytearray(kept[-1] // 8 + 1)
    for index in kept:
        mask[index // 8] |= 1 << index % 8
    return base64.b85encode(zlib.compress(bytes(mask), 9, -15)).decode()


def decoded(text: str) -> tuple[int, ...]:
    """Return the indices that `encoded` wrote.

    >>> decoded(encoded((0, 2, 3)))
    (0, 2, 3)
    """
    mask = zlib.decompress(base64.b85decode(text), -15)
    return tuple(8 * place + bit for place, byte in enumerate(mask) for bit in range(8) if byte >> bit & 1)


def tuples(value: Any) -> Any:
    """Return what was read from JSON with tuples for its lists."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def hashed(content: object) -> str:
    """Return a hash of what JSON can say, whatever the order of names.

    >>> hashed({"a": 1, "b": (2, 3)}) == hashed({"b": [2, 3], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
