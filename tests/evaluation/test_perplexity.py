"""Perplexity against transformers' own loss, and the windows that a text is cut into."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from nlora.evaluation import perplexity
from nlora.evaluation.perplexity import mean_loss, predicted, windows


def text(tokens: int) -> list[int]:
    return torch.randint(2, 400, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("begin", [[], [1]])
def test_it_is_the_loss_of_transformers_over_all_tokens(
    tiny_model: Callable[[str], Path], family: str, begin: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "_ROWS", 7)  # chunks that end within a window
    model = tiny.load(tiny_model(family))
    rows = windows(text(70), begin, positions=32)
    assert [len(row) for row in rows][:2] == [32, 32]
    total = count = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            labels = ids.clone()
            labels[:, : len(begin) + 1] = -100
            scored = int((labels != -100).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * scored
            count += scored
    assert predicted(rows, len(begin)) == count
    assert mean_loss(model, rows, len(begin)) == pytest.approx(total / count, rel=1e-6)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(
    tiny_model: Callable[[str], Path],
) -> None:
    model = tiny.load(tiny_model("llama"))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert math.exp(mean_loss(model, windows(text(40), [], 16), 0)) == pytest.approx(400)


def test_every_token_but_the_first_of_a_window_is_predicted_once() -> None:
    tokens = list(range(100, 2700))
    for begin, positions in (([], None), ([1], None), ([1, 2], 64), ([], 2)):
        rows = windows(tokens, begin, positions)
        most = min(positions or 1024, 1024)
        assert all(row[: len(begin)] == begin and len(row) <= max(most, len(begin) + 2) for row in rows)
        assert [t for row in rows for t in row[len(begin) :]] == tokens[
            : sum(len(r) - len(begin) for r in rows)
        ]
        assert predicted(rows, len(begin)) == sum(len(row) - len(begin) - 1 for row in rows)
    assert windows([5], [1], None) == []
