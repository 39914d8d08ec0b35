"""The loss of a conversation is that of its answers, each after all that comes before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nlora.data.collate import IGNORED, Collator, labels_of
from nlora.data.columns import Columns, TokenizedExamples
from nlora.data.packing import common_tokens, pack
from nlora.data.task import TokenizedExample
from nlora.models.logits import answer_logits
from nlora.models.packed_attention import packed_attention
from nlora.training.weighted_batches import WEIGHTS, weighted
from tiny import load

CHATS = [
    TokenizedExample([5, 6, 7, 20, 21, 8, 9, 30, 10, 11], [40, 41, 2], earlier=((3, 5), (7, 8))),
    TokenizedExample([5, 6, 7, 20, 21, 8, 12], [42, 2], earlier=((3, 5),)),
    TokenizedExample([5, 6, 13], [43, 44, 2]),
]


def turns(chat: TokenizedExample) -> list[TokenizedExample]:
    """Each answer of a conversation as an example of its own."""
    return [
        *(
            TokenizedExample(chat.prompt_ids[:begin], chat.prompt_ids[begin:end])
            for begin, end in chat.earlier
        ),
        TokenizedExample(chat.prompt_ids, chat.answer_ids),
    ]


def summed_loss(model: Any, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad(), packed_attention(model) if "groups" in batch else nullcontext():
        logits, targets = answer_logits(model, batch)
    weights = batch.get(WEIGHTS)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return float((losses if weights is None else losses * weights[:, -targets.shape[1] :].flatten()).sum())


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> Any:
    return load(tiny_model("llama"), torch.float64)


@pytest.mark.parametrize("collate", [pack, Collator(0, encoder_decoder=False)], ids=["packed", "padded"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_loss_is_that_of_each_answer_alone(model: Any, collate: Any, count: int) -> None:
    alone = [[summed_loss(model, collate([turn])) for turn in turns(chat)] for chat in CHATS[:count]]
    assert summed_loss(model, collate(CHATS[:count])) == pytest.approx(sum(map(sum, alone)), rel=1e-9)
    weights = [2.0, 3.0, 0.5][:count]
    batch = weighted(collate)(list(zip(CHATS, weights, strict=False)))
    expected = sum(w * sum(losses) for w, losses in zip(weights, alone, strict=True))
    assert summed_loss(model, batch) == pytest.approx(expected, rel=1e-6)


def test_no_token_that_predicts_an_answer_is_shared(model: Any) -> None:
    twice = [CHATS[0], CHATS[0]]
    assert common_tokens(twice) == 2
    assert summed_loss(model, pack(twice)) == pytest.approx(2 * summed_loss(model, pack(CHATS[:1])), rel=1e-9)


def test_columns_keep_the_places_of_earlier_answers() -> None:
    rows = TokenizedExamples([Columns.of((chat, False) for chat in CHATS), Columns.of([(CHATS[1], True)])])
    assert rows == [*CHATS, CHATS[1]]
    assert rows.first_answers == [3, 3, 3, 3]
    assert common_tokens(rows) == common_tokens(list(rows)) == 2
    assert labels_of(rows[0]) == [20, 21, IGNORED, IGNORED, 30, IGNORED, IGNORED, 40, 41, 2]
