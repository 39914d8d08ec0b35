"""Encoded examples -> one row of tokens in which nothing is padding, and what all prompts begin with stands once.

    batch = pack([TokenizedExample(prompt_ids, answer_ids), ...])

    tokens:     instruction and options | rest 1 | answer 1 | rest 2 | answer 2 | ...
                        P                     L_1                  L_2

Each rest continues the common beginning, as if the others were not there (`nlora.models.packed_attention`). For
causal models. An answer's last token does not run: nothing is predicted from it.

    input_ids       (1, S)    the beginning, then each example's rest and answer; S = P + Σ L_b
    position_ids    (1, S)    of each token in its own example
    rows_at         (B, L)    where the tokens of each rest are; behind its last one, the last one's place again
    back_at         (S - P,)  where in rows_at.flatten() each token of the rests is
    predict_at      (N,)      where the logits are that predict an answer token; of a prompt without an answer, its
                              last token
    labels          (1, N+1)  -100, then the answers' tokens (without answers, nothing but the -100)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlora.data.collate import IGNORED
from nlora.data.columns import TokenizedExamples, shared_prefix
from nlora.data.task import TokenizedExample


def pack(examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """A batch of B examples, either all with an answer or all without."""
    shared = common_tokens(examples) if len(examples) > 1 else 0
    return pack_rests(examples, shared, with_beginning=True)


def pack_rests(
    examples: Sequence[TokenizedExample], shared: int, *, with_beginning: bool
) -> dict[str, Tensor]:
    """A batch of examples of which the first `shared` tokens are the same.

    with_beginning: False leaves these out (P = 0 above); positions count them all the same.
    """
    rests = [[*e.prompt_ids[shared:], *e.answer_ids[:-1]] for e in examples]
    longest = max(map(len, rests))
    first = shared if with_beginning else 0
    ids, positions = list(examples[0].prompt_ids[:first]), list(range(first))
    rows_at: list[list[int]] = []
    back_at: list[int] = []
    predict_at: list[int] = []
    # transformers' Trainer counts the labels behind the first: it takes them to be shifted by one.
    labels: list[int] = [IGNORED]
    for row, (rest, example) in enumerate(zip(rests, examples, strict=True)):
        begin, end = len(ids), len(ids) + len(rest)
        ids += rest
        positions += range(shared, shared + len(rest))
        rows_at.append([*range(begin, end), *[end - 1] * (longest - len(rest))])
        back_at += range(row * longest, row * longest + len(rest))
        predict_at += range(end - max(len(example.answer_ids), 1), end)
        labels += example.answer_ids
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "rows_at": torch.tensor(rows_at),
        "back_at": torch.tensor(back_at),
        "predict_at": torch.tensor(predict_at),
        "labels": torch.tensor([labels]),
    }


def common_tokens(examples: Sequence[TokenizedExample]) -> int:
    """Number of tokens that all prompts begin with, but at least one less than any has: each predicts from its last."""
    if isinstance(examples, TokenizedExamples):
        return min(examples.shared_tokens, min(examples.prompt_lengths) - 1)
    prompts = [example.prompt_ids for example in examples]
    return min(shared_prefix(prompts), min(map(len, prompts)) - 1)
