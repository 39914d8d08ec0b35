"""Examples in batches that are tokenized together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nlora.data.task import Example

# Longer lists are not faster, and keep the offsets of more prompts in memory.
_BATCH = 1024
_BATCH_CHARACTERS = 1 << 20


def text_batches(examples: Sequence[Example], head_chars: int) -> Iterator[list[Example]]:
    """The examples in their order. head_chars: number of characters that are tokenized before each text."""
    some: list[Example] = []
    characters = 0
    for example in examples:
        some.append(example)
        characters += head_chars + len(example.sentence)
        if len(some) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some
