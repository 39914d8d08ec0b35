"""What tells two sets of examples apart: a SHA-256 of their texts and labels, in their order.

digest(task.test)        # 64 hexadecimal digits
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from nlora.data.task import Example


def digest(examples: Sequence[Example]) -> str:
    """64 hexadecimal digits, decided by order, texts and labels; an example's id is its place and says no more."""
    return text_digest(text for example in examples for text in (example.sentence, example.label))


def text_digest(texts: Iterable[str]) -> str:
    """The same of any texts; where one ends and the next begins counts."""
    found = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()
