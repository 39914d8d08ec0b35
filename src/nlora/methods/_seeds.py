"""Random numbers that a text determines, so that a resumed run and every process draw the same ones."""

from __future__ import annotations

import hashlib


def drawn(what: str) -> int:
    """A 64-bit number that depends only on the text, and on no library's random numbers.

    >>> drawn("0/q_proj") == drawn("0/q_proj") != drawn("0/k_proj")
    True
    """
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "big")
