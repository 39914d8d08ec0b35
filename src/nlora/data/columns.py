"""Encoded examples in columns: what their prompts begin with is held once, whatever the number of examples.

    rows = TokenizedExamples([block_of(first, examples, cut=[0, 1]), ...])
    rows[1]                   # TokenizedExample(prompt_ids=[1, 894, ...], answer_ids=[344, 2]), fresh lists
    rows.shared_tokens        # how many tokens all prompts begin with

A prompt is written as the number of tokens that it has in common with the first prompt of its set, and the tokens
that follow. So the instruction and the options, which all prompts of a task begin with, are held by the first alone,
and the least of those numbers is what they all share.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, overload

import numpy as np

from nlora.data.task import TokenizedExample


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists in two buffers of 32-bit integers: row i is values[starts[i] : starts[i + 1]]."""

    starts: Any
    values: Any

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Lists:
        """From lists."""
        starts = array("i", accumulate(map(len, rows), initial=0))
        return cls(starts, array("i", chain.from_iterable(rows)))

    def row(self, i: int) -> list[int]:
        """The list at a place."""
        starts = integers(self.starts)
        return integers(self.values)[starts[i] : starts[i + 1]].tolist()

    def lengths(self, rows: int) -> list[int]:
        """The lengths of the first so many rows (a buffer of a file may be longer than what is in it)."""
        return [end - start for start, end in pairwise(integers(self.starts)[: rows + 1].tolist())]


@dataclass(frozen=True, slots=True)
class Block:
    """Some examples of a set.

    first: the set's first prompt.
    same, cut: for each row, the tokens that its prompt has in common with `first`, and 1 where its text was
        shortened, else 0; buffers of 32-bit integers.
    rests: what follows these tokens.
    """

    rows: int
    first: list[int]
    same: Any
    cut: Any
    rests: Lists
    answers: Lists

    def row(self, i: int) -> TokenizedExample:
        """The example at a place, in lists of its own."""
        return TokenizedExample(self.first[: integers(self.same)[i]] + self.rests.row(i), self.answers.row(i))


class TokenizedExamples(Sequence[TokenizedExample]):
    """Examples in columns: 4 bytes a token, where a list of Python's integers takes about 40.

    Each access makes fresh lists. Equal to a list of the same examples. Can be pickled, and given to a DataLoader as
    it is.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        """blocks: of one set, or of several, one after another."""
        self.blocks = list(blocks)
        self._ends = list(accumulate(block.rows for block in self.blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[operator.index(index)]
        number = bisect_right(self._ends, i)
        return self.blocks[number].row(i - (self._ends[number - 1] if number else 0))

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (block.row(i) for block in self.blocks for i in range(block.rows))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, its answer included."""
        return [
            sum(parts)
            for block in self.blocks
            for parts in zip(
                integers(block.same)[: block.rows].tolist(),
                block.rests.lengths(block.rows),
                block.answers.lengths(block.rows),
                strict=True,
            )
        ]

    @property
    def shared_tokens(self) -> int:
        """How many tokens all prompts begin with; 0 without examples."""
        firsts = list({id(block.first): block.first for block in self.blocks}.values())
        same = (min(integers(block.same)[: block.rows]) for block in self.blocks)
        return min(shared_prefix(firsts), *same) if firsts else 0

    @property
    def largest_id(self) -> int:
        """The largest id of all prompts and answers; -1 without examples."""
        buffers = [
            part[:count]
            for block in self.blocks
            for part, count in (
                (integers(block.rests.values), integers(block.rests.starts)[block.rows]),
                (integers(block.answers.values), integers(block.answers.starts)[block.rows]),
            )
        ]
        firsts = [max(block.first, default=-1) for block in self.blocks]
        return max(
            [*firsts, *(int(np.frombuffer(part, np.int32).max()) for part in buffers if len(part))],
            default=-1,
        )

    @property
    def cut_examples(self) -> int:
        """How many prompts were shortened."""
        return sum(sum(integers(block.cut)[: block.rows]) for block in self.blocks)


def block_of(first: list[int], examples: Sequence[TokenizedExample], cut: Sequence[int]) -> Block:
    """A block of at least one example, of the set whose first prompt is `first`."""
    same: list[int] = []
    for example in examples:
        same.append(_same(first, example.prompt_ids, same[-1] if same else 0))
    rests = [example.prompt_ids[n:] for n, example in zip(same, examples, strict=True)]
    answers = [example.answer_ids for example in examples]
    return Block(len(examples), first, array("i", same), array("i", cut), Lists.of(rests), Lists.of(answers))


def _same(first: list[int], ids: list[int], guess: int) -> int:
    """Tokens that two prompts begin with. guess: about how many, from which the search begins."""
    n = guess if first[:guess] == ids[:guess] else 0
    most = min(len(first), len(ids))
    while n < most and first[n] == ids[n]:
        n += 1
    return n


def integers(buffer: Any) -> memoryview:
    """A buffer (array or pyarrow's) as 32-bit integers."""
    return memoryview(buffer).cast("B").cast("i")


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix of all rows; 0 for no rows.

    Every prompt of a task begins with the same instruction, which a causal model then reads once per batch.
    """
    if not rows:
        return 0
    # The least and the greatest row in dictionary order differ at the earliest place where any two do.
    low, high = list(min(rows, key=list)), list(max(rows, key=list))
    pairs = enumerate(zip(low, high, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(low), len(high)))
