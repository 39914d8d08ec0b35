"""Shortens the texts of prompts that are too long; the head before a text and "Answer:" after it stay whole."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def fit(
    tokenize: Callable[[list[str]], Mapping[str, Any]], head: str, texts: Sequence[str], tail: str, room: int
) -> list[list[int]]:
    """The ids of each prompt, at most `room`, with its text shortened by the surplus tokens.

    tokenize: returns input_ids and offset_mapping of texts.

    The tokens at the new end can differ, so a second round is sometimes needed. Every round removes at least one
    character from each prompt that is still too long.
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
    """The same for a tokenizer in plain Python, which has no offsets."""
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
    # rstrip, because the space before a token may or may not belong to it.
    return text[: min(starts[-surplus] - head_chars, len(text) - 1)].rstrip()
