"""Prompts that are too long, shortened in their text: the head before it and "Answer:" after it stay.

fit(tokenize, head, texts, tail, room=500)             # ids of each prompt, at most 500
fit_by_search(ids, head, texts, tail, room=500)        # without knowing which characters a token stands for
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def fit(
    tokenize: Callable[[list[str]], Mapping[str, Any]], head: str, texts: Sequence[str], tail: str, room: int
) -> list[list[int]]:
    """The ids of each prompt with its text shortened by as many tokens as are too many.

    tokenize: gives input_ids and offset_mapping of texts.

    Tokens at the cut can split differently than before it, so a second round is sometimes needed; every
    round removes at least one character of each prompt that is still too long.
    """
    fitting: dict[int, list[int]] = {}
    texts = list(texts)
    while rest := [i for i in range(len(texts)) if i not in fitting]:
        batch = tokenize([head + texts[i] + tail for i in rest])
        for i, ids, offsets in zip(rest, batch["input_ids"], batch["offset_mapping"], strict=True):
            if len(ids) <= room:
                fitting[i] = ids
            else:
                texts[i] = _shorten(texts[i], len(head), len(ids) - room, offsets)
    return [fitting[i] for i in range(len(texts))]


def fit_by_search(
    ids: Callable[[str], list[int]], head: str, texts: Sequence[str], tail: str, room: int
) -> list[list[int]]:
    """The same for a tokenizer in plain Python, which cannot say which characters a token stands for."""
    fitting = []
    for text in texts:

        def n_tokens(chars: int, text: str = text) -> int:
            return len(ids(head + text[:chars] + tail))

        chars = bisect_right(range(len(text)), room, key=n_tokens) - 1
        fitting.append(ids(head + text[: max(chars, 0)] + tail))
    return fitting


def _shorten(text: str, head_chars: int, surplus: int, offsets: Sequence[tuple[int, int]]) -> str:
    """The text without its last `surplus` tokens.

    offsets: (start, end) of each token of the prompt, in characters; the text begins at head_chars.
    """
    end_chars = head_chars + len(text)
    starts = [start for start, end in offsets if head_chars <= start < end_chars and end > start]
    if surplus >= len(starts):
        return ""
    # rstrip: the space before a token may belong to it or not.
    return text[: min(starts[-surplus] - head_chars, len(text) - 1)].rstrip()
