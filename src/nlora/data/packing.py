"""Packed batches: all examples in one row of tokens, without padding, and what they begin with only once.

    tokens:     instruction and options | rest 1 | answer 1 | rest 2 | answer 2 | ...
                        P                     L_1                  L_2

Each rest continues its beginning as if the others were not there (`nlora.models.packed_attention`). For causal models.
The last token of an answer is not run, because nothing is predicted from it.

Examples of several tasks have several beginnings. They form groups, and a batch is one group after another, each of
them a row as above. Examples without a beginning of their own share the tokens that all examples begin with.

    input_ids       (1, S)    the beginning, then each example's rest and answer; S = Σ over the groups of P + Σ L_b
    position_ids    (1, S)    of each token in its own example
    predict_at      (N,)      indices of the logits that predict an answer token, or, for a prompt without an answer,
                              of its last token; in the order of the examples
    labels          (1, N+1)  -100, then the answers' tokens (without answers, only the -100)
    beginnings      (B,)      number of each example's beginning, whether it is shared in this batch or not; -1: none
    groups          a tuple; of each group:
        examples    (B_g,)    which examples of the batch are in it
        rows_at     (B_g, L)  indices of the tokens of each rest in the group; a shorter rest repeats its last index
        keys_at     (B_g, P + L)  of the beginning's tokens and of these, which each rest attends to
        back_at     (ΣL_b,)   index of each token of the rests in the flattened rows_at

>>> pack([TokenizedExample([5, 6], [7, 2]), TokenizedExample([5, 8, 9], [2])])["input_ids"]
tensor([[5, 6, 7, 8, 9]])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nlora.data.collate import IGNORED, labels_of
from nlora.data.columns import TokenizedExamples, shared_prefix
from nlora.data.task import TokenizedExample

Beginnings = Sequence[list[int]]
"""The tokens that the examples of each task begin with, of a training on several."""


def pack(
    examples: Sequence[TokenizedExample], shared: int | None = None, beginnings: Beginnings = ()
) -> dict[str, Any]:
    """A batch of B examples, all with an answer or all without.

    shared: how many of the tokens that several examples begin with run once; None: as many as possible.
    beginnings: longer ones, of which each that saves tokens in this batch runs once for the examples that have it.
    """
    if len(examples) == 1:
        shared = 0
    elif shared is None:
        shared = common_tokens(examples)
    numbers = [_number(example, beginnings) for example in examples]
    together: list[int] = []
    groups = [(shared, together)]
    for number in dict.fromkeys(numbers):
        members = [i for i, of in enumerate(numbers) if of == number]
        length = len(beginnings[number]) if number >= 0 else 0
        if len(members) * (length - shared) > length:
            groups.append((length, members))
        else:
            together += members
    if len(together) == 1:
        groups[0] = (0, together)
    batch = _packed(examples, [(length, sorted(some)) for length, some in groups if some])
    return {**batch, "beginnings": torch.tensor(numbers)}


def pack_rests(examples: Sequence[TokenizedExample], shared: int, *, with_beginning: bool) -> dict[str, Any]:
    """A batch of examples whose first `shared` tokens are the same.

    with_beginning: False leaves these out, but positions and keys_at still count them.
    """
    return _packed(examples, [(shared, range(len(examples)))], with_beginning=with_beginning)


def _packed(
    examples: Sequence[TokenizedExample],
    groups: Iterable[tuple[int, Sequence[int]]],
    *,
    with_beginning: bool = True,
) -> dict[str, Any]:
    """groups: how many tokens each of them shares, and its examples."""
    ids: list[int] = []
    positions: list[int] = []
    predict_at: list[list[int]] = [[] for _ in examples]
    made = []
    for shared, members in groups:
        start, first = len(ids), shared if with_beginning else 0
        ids += examples[members[0]].prompt_ids[:first]
        positions += range(first)
        rests = [[*examples[i].prompt_ids[shared:], *examples[i].answer_ids[:-1]] for i in members]
        longest = max(map(len, rests))
        rows_at: list[list[int]] = []
        back_at: list[int] = []
        for row, (i, rest) in enumerate(zip(members, rests, strict=True)):
            begin = len(ids) - start
            ids += rest
            positions += range(shared, shared + len(rest))
            end = len(ids) - start
            rows_at.append([*range(begin, end), *[end - 1] * (longest - len(rest))])
            back_at += range(row * longest, row * longest + len(rest))
            labels = enumerate(labels_of(examples[i]), len(ids) - len(labels_of(examples[i])))
            predict_at[i] = [at for at, label in labels if label != IGNORED] or [len(ids) - 1]
        rows = torch.tensor(rows_at)
        before = torch.arange(shared).expand(len(members), shared)
        made.append(
            {
                "examples": torch.tensor(members),
                "rows_at": rows,
                "keys_at": torch.cat([before, rows + (shared - first)], dim=1),
                "back_at": torch.tensor(back_at),
            }
        )
    # transformers' Trainer counts the labels after the first, because it expects them to be shifted by one.
    answers = [label for example in examples for label in labels_of(example) if label != IGNORED]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "predict_at": torch.tensor([at for of_example in predict_at for at in of_example]),
        "labels": torch.tensor([[IGNORED, *answers]]),
        "groups": tuple(made),
    }


def common_tokens(examples: Sequence[TokenizedExample]) -> int:
    """Number of tokens that all prompts begin with, without any from which a token of an answer is predicted."""
    if isinstance(examples, TokenizedExamples):
        return min(examples.shared_tokens, min(examples.first_answers) - 1)
    return min(shared_prefix([e.prompt_ids for e in examples]), min(map(_first_answer, examples)) - 1)


def beginnings_of(examples: Sequence[TokenizedExample]) -> Beginnings:
    """What the examples of each part begin with; nothing for one part, whose beginning is `common_tokens` long."""
    parts = examples.parts if isinstance(examples, TokenizedExamples) else ()
    several = [TokenizedExamples([part]) for part in parts if len(parts) > 1 and len(part) > 1]
    found = dict.fromkeys(tuple(part[0].prompt_ids[: common_tokens(part)]) for part in several)
    return [list(ids) for ids in found]


def _number(example: TokenizedExample, beginnings: Beginnings) -> int:
    """That of the longest beginning that an example has before its first answer; -1 if it has none."""
    most = _first_answer(example) - 1
    fitting = (
        (len(ids), number)
        for number, ids in enumerate(beginnings)
        if len(ids) <= most and example.prompt_ids[: len(ids)] == ids
    )
    return max(fitting, default=(0, -1))[1]


def _first_answer(example: TokenizedExample) -> int:
    return example.earlier[0][0] if example.earlier else len(example.prompt_ids)
