"""The ids of a text that continues another one."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def ids_after(
    ids: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    before: str,
    after: str,
    alone: Sequence[str],
) -> list[int] | None:
    """The ids of `after`, which follow those of `before`.

    Normally the ids of both together begin with those of `before`, and the rest is it. If the tokenizer merges across
    that boundary, one of the texts `alone` is tokenized separately, so that the whole decodes to the same text; None if
    none does.
    """
    base, whole = ids(before), ids(before + after)
    if whole[: len(base)] == base and len(whole) > len(base):
        return whole[len(base) :]
    wanted = decode(whole)
    return next((found for text in alone if (found := ids(text)) and decode(base + found) == wanted), None)
