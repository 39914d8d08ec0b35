"""The layer and the kind in a module's name, and names in the order of the layers.

>>> in_order(["layers.10.q_proj", "layers.2.q_proj"])
['layers.2.q_proj', 'layers.10.q_proj']
>>> layer_of("model.layers.2.self_attn.q_proj")
2
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted by the value of the numbers in them: 2 before 10."""
    return sorted(names, key=lambda name: [_part(part) for part in re.split(r"(\d+)", name)])


def layer_of(name: str) -> int | None:
    """The first part of the name that is a number, or None.

    Encoder and decoder both count from 0; their kinds differ.
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def kinds_of(names: Sequence[str]) -> list[str]:
    """The kind of each module: the last part of its name, with the parts that tell different kinds apart.

    In LLaMA all modules that end with q_proj are of one kind, q_proj. In T5 those that end with q are of three:
    encoder.SelfAttention.q, decoder.SelfAttention.q, decoder.EncDecAttention.q.
    """
    patterns = [tuple(part for part in name.split(".") if not part.isdecimal()) or (name,) for name in names]
    by_end: dict[str, set[tuple[str, ...]]] = {}
    for pattern in patterns:
        by_end.setdefault(pattern[-1], set()).add(pattern)
    common = {end: set.intersection(*map(set, some)) for end, some in by_end.items()}
    return [
        ".".join([*(part for part in pattern[:-1] if part not in common[pattern[-1]]), pattern[-1]])
        for pattern in patterns
    ]


def _part(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdecimal() else (-1, text)
