"""Packed batches: all examples in one row of tokens, without padding, and their common beginning only once.

    tokens:     instruction and options | rest 1 | answer 1 | rest 2 | answer 2 | ...
                        P                     L_1                  L_2

Each rest continues the common beginning as if the others were not there (`nlora.models.packed_attention`). For causal
models. The last token of an answer is not run, because nothing is predicted from it.

    input_ids       (1, S)    the beginning, then each example's rest and answer; S = P + Σ L_b
    position_ids    (1, S)    of each token in its own example
    rows_at         (B, L)    indices of the tokens of each rest; a shorter rest repeats its last index
    back_at         (S - P,)  index of each token of the rests in the flattened rows_at
    predict_at      (N,)      indices of the logits that predict an answer token, or, for a prompt without an answer,
                              of its last token
    labels          (1, N+1)  -100, then the answers' tokens (without answers, only the -100)

>>> pack([TokenizedExample([5, 6], [7, 2]), TokenizedExample([5, 8, 9], [2])])["input_ids"]
tensor([[5, 6, 7, 8, 9]])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlora.data.collate import IGNORED, labels_of
from nlora.data.columns import TokenizedExamples, shared_prefix
from nlora.data.task import TokenizedExample


def pack(examples: Sequence[TokenizedExample], shared: int | None = None) -> dict[str, Tensor]:
    """A batch of B examples, all with an answer or all without.

    shared: how many of the tokens that several examples begin with run once; None: as many as possible.
    """
    if len(examples) == 1:
        shared = 0
    elif shared is None:
        shared = common_tokens(examples)
    return pack_rests(examples, shared, with_beginning=True)


def pack_rests(
    examples: Sequence[TokenizedExample], shared: int, *, with_beginning: bool
) -> dict[str, Tensor]:
    """A batch of examples whose first `shared` tokens are the same.

    with_beginning: False leaves these out (P = 0 above), but positions still count them.
    """
    rests = [[*e.prompt_ids[shared:], *e.answer_ids[:-1]] for e in examples]
    longest = max(map(len, rests))
    first = shared if with_beginning else 0
    ids, positions = list(examples[0].prompt_ids[:first]), list(range(first))
    rows_at: list[list[int]] = []
    back_at: list[int] = []
    predict_at: list[int] = []
    # transformers' Trainer counts the labels after the first, because it expects them to be shifted by one.
    labels: list[int] = [IGNORED]
    for row, (rest, example) in enumerate(zip(rests, examples, strict=True)):
        begin, end = len(ids), len(ids) + len(rest)
        ids += rest
        positions += range(shared, shared + len(rest))
        rows_at.append([*range(begin, end), *[end - 1] * (longest - len(rest))])
        back_at += range(row * longest, row * longest + len(rest))
        answers = labels_of(example)
        predict_at += [i for i, label in enumerate(answers, end - len(answers)) if label != IGNORED] or [
            end - 1
        ]
        labels += [label for label in answers if label != IGNORED]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "rows_at": torch.tensor(rows_at),
        "back_at": torch.tensor(back_at),
        "predict_at": torch.tensor(predict_at),
        "labels": torch.tensor([labels]),
    }


def common_tokens(examples: Sequence[TokenizedExample]) -> int:
    """Number of tokens that all prompts begin with, without any from which a token of an answer is predicted."""
    if isinstance(examples, TokenizedExamples):
        return min(examples.shared_tokens, min(examples.first_answers) - 1)
    first_answers = (e.earlier[0][0] if e.earlier else len(e.prompt_ids) for e in examples)
    return min(shared_prefix([e.prompt_ids for e in examples]), min(first_answers) - 1)
