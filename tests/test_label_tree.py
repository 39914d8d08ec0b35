"""The tree's scores are the log-probabilities of whole labels, one label and one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nlora.backbone import load_backbone
from nlora.data.collate import Collator
from nlora.data.encode import Encoded
from nlora.label_tree import LabelTree, label_scores, likeliest_labels
from nlora.logits import prefix_is_exact

PREFIX = tuple(range(200, 270))
PROMPTS = [
    Encoded((*PREFIX, 40, 41, 42), ()),
    Encoded((*PREFIX, 43), ()),
    Encoded((*PREFIX, 44, 45, 46, 47), ()),
]
LABEL_SETS = [
    [(50,), (51,), (52,)],
    [(50, 60, 61), (50, 62), (51,), (52, 63, 64, 65)],
    [(50,), (50, 60), (51, 61)],  # one begins another: the end token decides
]


def one_by_one(model: Any, prompt: Encoded, label: tuple[int, ...], encoder_decoder: bool) -> float:
    prompt_ids, label_ids = torch.tensor([prompt.prompt_ids]), torch.tensor([label])
    with torch.no_grad():
        if encoder_decoder:
            logits = model(input_ids=prompt_ids, labels=label_ids).logits[0]
        else:
            whole = torch.cat([prompt_ids, label_ids], dim=1)
            logits = model(input_ids=whole, use_cache=False).logits[0, -len(label) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(label)), label_ids[0]].sum())


@pytest.mark.parametrize("labels", LABEL_SETS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"])
def test_scores_equal_one_label_at_a_time(
    tiny_model: Callable[[str], Path], family: str, labels: list[tuple[int, ...]]
) -> None:
    model = load_backbone(str(tiny_model(family))).model
    tree = LabelTree.build(labels, end_id=1)
    expected = torch.tensor(
        [[one_by_one(model, p, label, family == "t5") for label in tree.labels] for p in PROMPTS]
    )
    batch = Collator(0, family == "t5", prefix_is_exact(model))(PROMPTS)
    torch.testing.assert_close(label_scores(model, batch, tree), expected, rtol=1e-4, atol=1e-4)
    assert likeliest_labels(model, batch, tree).tolist() == expected.argmax(1).tolist()


def test_the_end_token_is_added_only_where_a_label_begins_another() -> None:
    assert LabelTree.build([(5,), (6, 7)], end_id=1).labels == ((5,), (6, 7))
    assert LabelTree.build([(5,), (5, 7)], end_id=1).labels == ((5, 1), (5, 7, 1))


def test_labels_of_the_same_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="same tokens"):
        LabelTree.build([(5, 6), (7,), (5, 6)], end_id=1)
    with pytest.raises(ValueError, match="without tokens"):
        LabelTree.build([(5,), ()], end_id=1)


@given(st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple), min_size=1, unique=True))
def test_the_feeds_reach_every_inner_node_and_none_twice(labels: list[tuple[int, ...]]) -> None:
    tree = LabelTree.build(labels, end_id=1)
    inner = {label[:depth] for label in tree.labels for depth in range(1, len(label))}
    reached = {feed[:depth] for feed in tree.feeds for depth in range(1, len(feed) + 1)}
    assert reached == inner
    assert not any(a != b and b[: len(a)] == a for a in tree.feeds for b in tree.feeds)
