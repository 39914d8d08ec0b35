"""A SHA-256 of examples, to detect that a data set has changed.

>>> digest([Example("0", "It is down", "network")])[:8]
'2e9fa177'
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from nlora.data.task import Example


def digest(examples: Sequence[Example]) -> str:
    """64 hexadecimal digits, determined by texts, answers and their order, but not by the examples' ids."""
    found = text_digest(text for example in examples for text in (example.sentence, example.label))
    if any(example.others for example in examples):
        found = text_digest([found, json.dumps([example.others for example in examples])])
    return found


def text_digest(texts: Iterable[str]) -> str:
    """The same for any texts; where one ends and the next begins counts."""
    found = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()
