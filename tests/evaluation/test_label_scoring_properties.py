"""Drawn sets of labels, many of them beginnings of others, against each label scored by itself on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlora.data.collate import Collator
from nlora.data.task import TokenizedExample
from nlora.evaluation.label_scoring import LabelTree, label_probabilities, label_scores, likeliest_labels
from nlora.evaluation.prefill import Prefiller
from nlora.models.packed_attention import packing_is_exact
from tiny import load

END = 1
LABELS = st.lists(
    st.lists(st.integers(2, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=7, unique=True
)
PROMPTS = st.lists(st.lists(st.integers(2, 390), min_size=1, max_size=6), min_size=1, max_size=3)


@given(LABELS)
def test_no_label_of_a_tree_begins_another_and_none_is_changed_otherwise(
    labels: list[tuple[int, ...]],
) -> None:
    tree = LabelTree.build(labels, END)
    begins = any(a != b and b[: len(a)] == a for a in labels for b in labels)
    assert tree.labels == tuple((*label, END) if begins else label for label in labels)
    assert not any(a != b and b[: len(a)] == a for a in tree.labels for b in tree.labels)


@pytest.fixture(scope="module")
def models(tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    return {family: load(tiny_model(family)) for family in ("llama", "gpt2")}


def alone(model: Any, prompt: list[int], label: tuple[int, ...]) -> float:
    """log P(label | prompt) of one label in a pass of its own, in one row without padding or cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *label]]), use_cache=False).logits[0]
    log_p = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(sum(log_p[i, token] for i, token in enumerate(label)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@settings(max_examples=20)
@given(labels=LABELS, prompts=PROMPTS)
def test_a_label_has_the_score_that_it_has_alone(
    models: dict[str, Any], family: str, labels: list[tuple[int, ...]], prompts: list[list[int]]
) -> None:
    model = models[family]
    tree = LabelTree.build(labels, END)
    rows = [TokenizedExample(ids, []) for ids in prompts]
    expected = torch.tensor([[alone(model, ids, label) for label in tree.labels] for ids in prompts])
    torch.testing.assert_close(
        label_scores(model, Collator(0, False)(rows), tree), expected, atol=2e-4, rtol=1e-4
    )
    prefiller = Prefiller(model, rows, pad_id=0, packs=packing_is_exact(model))
    probabilities = label_probabilities(prefiller.run(rows), tree)
    torch.testing.assert_close(probabilities, expected.double().softmax(1), atol=1e-4, rtol=1e-3)
    best: Tensor = likeliest_labels(prefiller.run(rows), tree)
    # Two labels may be as likely as each other, up to rounding.
    assert (expected.gather(1, best[:, None])[:, 0] >= expected.max(1).values - 1e-3).all()
