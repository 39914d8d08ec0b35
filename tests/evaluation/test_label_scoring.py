"""Label scores equal the log-probabilities of whole labels, computed for one label and prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlora.data.collate import Collator
from nlora.data.task import TokenizedExample
from nlora.evaluation.label_scoring import LabelTree, label_scores, likeliest_labels
from nlora.evaluation.prefill import Prefiller
from nlora.models.backbone import load_backbone
from nlora.models.packed_attention import packing_is_exact

PREFIX = tuple(range(200, 270))
PROMPTS = [
    TokenizedExample([*PREFIX, 44, 45, 46, 47], []),
    TokenizedExample([*PREFIX, 40, 41, 42], []),
    TokenizedExample([*PREFIX, 43], []),
]
LABEL_SETS = [
    [(50,), (51,), (52,)],
    [(50, 60, 61), (50, 62), (51,), (52, 63, 64, 65)],
    [(50,), (50, 60), (51, 61)],  # one begins another: the end token decides
]
FAMILIES = ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"]


def one_by_one(model: Any, prompt: TokenizedExample, label: tuple[int, ...], encoder_decoder: bool) -> float:
    prompt_ids, label_ids = torch.tensor([prompt.prompt_ids]), torch.tensor([label])
    with torch.no_grad():
        if encoder_decoder:
            logits = model(input_ids=prompt_ids, labels=label_ids).logits[0]
        else:
            whole = torch.cat([prompt_ids, label_ids], dim=1)
            logits = model(input_ids=whole, use_cache=False).logits[0, -len(label) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(label)), label_ids[0]].sum())


@pytest.mark.parametrize("labels", LABEL_SETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_one_label_at_a_time(
    tiny_model: Callable[[str], Path], family: str, labels: list[tuple[int, ...]]
) -> None:
    model = load_backbone(str(tiny_model(family))).model
    tree = LabelTree.build(labels, end_id=1)
    expected = torch.tensor(
        [[one_by_one(model, p, label, family == "t5") for label in tree.labels] for p in PROMPTS]
    )
    packs = packing_is_exact(model)
    batch = Collator(0, family == "t5")(PROMPTS)
    torch.testing.assert_close(label_scores(model, batch, tree), expected, rtol=1e-4, atol=1e-4)
    prefill = Prefiller(model, PROMPTS, pad_id=0, packs=packs).run(PROMPTS)
    assert likeliest_labels(prefill, tree).tolist() == expected.argmax(1).tolist()


class Distributions:
    """A Prefill whose next token depends on the row and its tokens, through random logits."""

    def __init__(self, rows: int, vocabulary: int, seed: int) -> None:
        self._vocabulary, self._seed = vocabulary, seed
        self.rows = list(range(rows))
        self.next_logits = torch.stack([self._logits(row, ()) for row in self.rows])
        self.passes: list[list[int]] = []

    def _logits(self, row: int, path: tuple[int, ...]) -> Tensor:
        draw = torch.Generator().manual_seed(hash((self._seed, row, path)) % 2**31)
        return 3 * torch.randn(self._vocabulary, generator=draw)

    def score(self, row: int, label: tuple[int, ...]) -> float:
        steps = [self._logits(row, label[:d]).log_softmax(-1)[t] for d, t in enumerate(label)]
        return float(torch.stack(steps).sum())

    def extend(self, tokens: Tensor) -> Tensor:
        self.passes.append(list(self.rows))
        paths = zip(self.rows, map(tuple, tokens.tolist()), strict=True)
        return torch.stack(
            [torch.stack([self._logits(row, p[: d + 1]) for d in range(len(p))]) for row, p in paths]
        )

    def rollback(self, count: int) -> None:
        pass

    def select_rows(self, rows: Any) -> None:
        self.rows = [self.rows[place] for place in reversed(rows)]


@given(
    st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True),
    st.integers(1, 5),
    st.integers(0, 1000),
)  # fmt: skip
def test_the_likeliest_label_has_the_largest_score(
    labels: list[tuple[int, ...]], rows: int, seed: int
) -> None:
    tree = LabelTree.build(labels, end_id=1)
    prefill = Distributions(rows, 6, seed)
    scores = torch.tensor([[prefill.score(row, label) for label in tree.labels] for row in range(rows)])
    assert likeliest_labels(prefill, tree).tolist() == scores.argmax(1).tolist()


def test_only_rows_that_may_prefer_a_longer_label_run_it() -> None:
    tree = LabelTree.build([(2,), (3, 4), (5, 4)], end_id=1)
    prefill = Distributions(40, 6, 0)
    expected = [
        row for row in range(40) if prefill.next_logits[row, [3, 5]].max() > prefill.next_logits[row, 2]
    ]
    likeliest_labels(prefill, tree)
    assert sorted(prefill.passes[0]) == expected
    assert 0 < len(expected) < 40
    # A row runs its other path only if the first one's score is below the other's bound.
    assert all(set(later) <= set(earlier) for earlier, later in pairwise(prefill.passes))
    assert len(prefill.passes) == 2


def test_a_path_lowers_the_bounds_of_all_labels_with_the_same_prefix() -> None:
    """81 labels share a prefix and have 27 parents; a row runs at most one path per parent, and usually few."""
    tree = LabelTree.build([(2, 3, *rest) for rest in product((2, 3, 4), repeat=4)], end_id=1)
    prefill = Distributions(20, 6, 0)
    scores = torch.tensor([[prefill.score(row, label) for label in tree.labels] for row in range(20)])
    assert likeliest_labels(prefill, tree).tolist() == scores.argmax(1).tolist()
    runs = [sum(row in rows for rows in prefill.passes) for row in range(20)]
    assert max(runs) <= 27
    assert sum(runs) / 20 < 9  # a search that starts with the likeliest label needs few


def test_the_end_token_is_added_only_where_a_label_begins_another() -> None:
    assert LabelTree.build([(5,), (6, 7)], end_id=1).labels == ((5,), (6, 7))
    assert LabelTree.build([(5,), (5, 7)], end_id=1).labels == ((5, 1), (5, 7, 1))


def test_labels_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        LabelTree.build([(5, 6), (7,), (5, 6)], end_id=1)
    with pytest.raises(ValueError, match="without tokens"):
        LabelTree.build([(5,), ()], end_id=1)
