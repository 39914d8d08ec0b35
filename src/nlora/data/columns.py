"""Tokenized examples in columns of integers; the beginning that all prompts share is stored once.

>>> examples = [TokenizedExample([1, 8, 9], [2]), TokenizedExample([1, 8, 7, 6], [3, 2])]
>>> rows = TokenizedExamples([Columns.of((example, False) for example in examples)])
>>> rows[1], rows.shared_tokens
(TokenizedExample(prompt_ids=[1, 8, 7, 6], answer_ids=[3, 2], earlier=()), 2)

A prompt is stored as the number of tokens that it shares with the first prompt, and the tokens that follow. So the
instruction and the options are stored with the first prompt only, and the smallest of these numbers is the length of
the common beginning.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from nlora.data.task import TokenizedExample

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Columns:
    """n examples of one task.

    first: ids of the first prompt.
    shared: (n,) how many tokens each prompt shares with the first one. cut: (n,) 1 where the text was shortened.
    rest_ids, answer_ids: what follows the shared tokens, and the answers; those of example i are
        ids[starts[i] : starts[i + 1]]. rest_starts, answer_starts: (n + 1,).
    earlier: (m, 3) the earlier answers of conversations, in their order: example, begin and end in its prompt.
    """

    first: Integers
    shared: Integers
    cut: Integers
    rest_ids: Integers
    rest_starts: Integers
    answer_ids: Integers
    answer_starts: Integers
    earlier: Integers

    @classmethod
    def of(cls, examples: Iterable[tuple[TokenizedExample, bool]]) -> Columns:
        """From examples, each with whether its text was shortened; they are consumed one at a time."""
        first: list[int] | None = None
        shared, cut, rest_ids, answer_ids, earlier = (array("i") for _ in range(5))
        rest_starts, answer_starts = array("q", [0]), array("q", [0])
        n = 0
        for example, is_cut in examples:
            ids = example.prompt_ids
            first = ids if first is None else first
            n = _common(first, ids, n)
            shared.append(n)
            cut.append(is_cut)
            rest_ids.extend(ids[n:])
            rest_starts.append(len(rest_ids))
            answer_ids.extend(example.answer_ids)
            answer_starts.append(len(answer_ids))
            for span in example.earlier:
                earlier.extend((len(shared) - 1, *span))
        spans = np.asarray(earlier).reshape(-1, 3)
        columns = (
            array("i", first or []),
            shared,
            cut,
            rest_ids,
            rest_starts,
            answer_ids,
            answer_starts,
            spans,
        )
        return cls(*map(np.asarray, columns))

    def __len__(self) -> int:
        return len(self.shared)

    def row(self, i: int) -> TokenizedExample:
        """Example i, as new lists."""
        rest = self.rest_ids[self.rest_starts[i] : self.rest_starts[i + 1]]
        answer = self.answer_ids[self.answer_starts[i] : self.answer_starts[i + 1]]
        begin, end = np.searchsorted(self.earlier[:, 0], (i, i + 1))
        earlier = tuple((int(first), int(last)) for _, first, last in self.earlier[begin:end])
        prompt = [*self.first[: self.shared[i]].tolist(), *rest.tolist()]
        return TokenizedExample(prompt, answer.tolist(), earlier)

    def beginning_with(self, ids: Sequence[int]) -> Columns:
        """The same examples with further tokens before each prompt."""
        moved = self.earlier + np.array([0, len(ids), len(ids)])
        first = np.concatenate([np.array(ids, self.first.dtype), self.first])
        return replace(self, first=first, shared=self.shared + len(ids), earlier=moved)

    @property
    def prompt_lengths(self) -> Integers:
        """(n,) tokens of each prompt."""
        return self.shared + np.diff(self.rest_starts)

    @property
    def first_answers(self) -> Integers:
        """(n,) where the first answer of each example begins: after its prompt, or within it."""
        found = np.array(self.prompt_lengths)
        np.minimum.at(found, self.earlier[:, 0], self.earlier[:, 1])
        return found


class TokenizedExamples(Sequence[TokenizedExample]):
    """Examples in columns: 4 bytes a token, where a Python list takes about 40.

    Each access makes fresh lists. Equal to a list of the same examples. Can be pickled, and works as the data set of
    a DataLoader.
    """

    def __init__(self, parts: Iterable[Columns]) -> None:
        """parts: one after another, as of several tasks."""
        self.parts = [part for part in parts if len(part)]
        self._ends = list(accumulate(map(len, self.parts)))

    @classmethod
    def of(cls, examples: Iterable[TokenizedExample]) -> TokenizedExamples:
        """From examples whose texts were not shortened; they are consumed one at a time."""
        return cls([Columns.of((example, False) for example in examples)])

    def beginning_with(self, ids: Sequence[int]) -> TokenizedExamples:
        """The same examples with further tokens before each prompt, which are stored once.

        >>> TokenizedExamples.of([TokenizedExample([5, 6], [2])]).beginning_with([9])[0].prompt_ids
        [9, 5, 6]
        """
        return TokenizedExamples(part.beginning_with(ids) for part in self.parts)

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
        return self.parts[number].row(i - (self._ends[number - 1] if number else 0))

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (part.row(i) for part in self.parts for i in range(len(part)))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [n for part in self.parts for n in part.prompt_lengths.tolist()]

    @property
    def first_answers(self) -> list[int]:
        """Where the first answer of each example begins: after its prompt, or within it."""
        return [n for part in self.parts for n in part.first_answers.tolist()]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example, its answer included."""
        return [n for p in self.parts for n in (p.prompt_lengths + np.diff(p.answer_starts)).tolist()]

    @property
    def answer_lengths(self) -> list[int]:
        """Tokens of each answer, its end token included."""
        return [n for part in self.parts for n in np.diff(part.answer_starts).tolist()]

    @property
    def shared_tokens(self) -> int:
        """Number of tokens that all prompts begin with; 0 without examples."""
        common = shared_prefix([part.first.tolist() for part in self.parts])
        return min([common, *(int(part.shared.min()) for part in self.parts)])

    @property
    def largest_id(self) -> int:
        """The largest id of all prompts and answers; -1 without examples."""
        columns = [ids for part in self.parts for ids in (part.first, part.rest_ids, part.answer_ids)]
        return max((int(ids.max(initial=-1)) for ids in columns), default=-1)

    @property
    def cut_examples(self) -> int:
        """Number of prompts whose text was shortened."""
        return sum(int(part.cut.sum()) for part in self.parts)


def _common(first: list[int], ids: list[int], guess: int) -> int:
    """Number of tokens that two prompts begin with; guess: where the search starts if that many are the same."""
    n = guess if first[:guess] == ids[:guess] else 0
    most = min(len(first), len(ids))
    while n < most and first[n] == ids[n]:
        n += 1
    return n


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix of all rows; 0 for no rows."""
    if not rows:
        return 0
    # The smallest and the largest row in dictionary order differ at the first place where any two do.
    low, high = list(min(rows, key=list)), list(max(rows, key=list))
    pairs = enumerate(zip(low, high, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(low), len(high)))
