"""What a module's name says: its layer and its kind, and the order in which people count layers.

in_order(["model.layers.10.q_proj", "model.layers.2.q_proj"])   # layer 2 first
layer_of("model.layers.2.self_attn.q_proj")                     # 2
kinds_of(names)                                                 # ["q_proj", "v_proj", ...]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted with the numbers in them counted, not spelt."""
    return sorted(names, key=lambda name: [_part(part) for part in re.split(r"(\d+)", name)])


def layer_of(name: str) -> int | None:
    """The first part of the name that is a number; None where there is none.

    Encoder and decoder both count from 0: the kind tells them apart.
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def kinds_of(names: Sequence[str]) -> list[str]:
    """The kind of each module: the last part of its name, with what else is needed to tell kinds apart.

    All modules of LLaMA that end with q_proj are of the kind q_proj. Those of T5 that end with q are three:
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
