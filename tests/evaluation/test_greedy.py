"""Greedy answers equal those of transformers, token by token, even if rows end at different times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from nlora.data.task import TokenizedExample
from nlora.evaluation.greedy import greedy, is_plain
from nlora.evaluation.prefill import Prefiller
from nlora.models.backbone import load_backbone
from nlora.models.packed_attention import packing_is_exact

TinyModel = Callable[[str], Path]
FAMILIES = ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"]
MOST_TOKENS = 24
PREFIX = list(range(200, 230))
PROMPTS = [
    TokenizedExample(PREFIX + [40 + (i * j) % 90 for j in range(1, 30 - 2 * i)], []) for i in range(1, 13)
]


def by_transformers(model: Any, end_id: int, prompts: list[TokenizedExample]) -> list[list[int]]:
    """`generate` on one padded batch, each answer up to its end token."""
    width = max(len(p.prompt_ids) for p in prompts)
    left = not model.config.is_encoder_decoder
    rows, masks = [], []
    for prompt in prompts:
        fill, ones = [0] * (width - len(prompt.prompt_ids)), [1] * len(prompt.prompt_ids)
        rows.append([*fill, *prompt.prompt_ids] if left else [*prompt.prompt_ids, *fill])
        masks.append([*fill, *ones] if left else [*ones, *fill])
    plan = GenerationConfig(
        max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1, eos_token_id=end_id, pad_token_id=0
    )
    output = model.generate(
        input_ids=torch.tensor(rows), attention_mask=torch.tensor(masks), generation_config=plan
    )
    answers = output[:, width if left else 1 :].tolist()
    return [ids[: ids.index(end_id) + 1] if end_id in ids else ids for ids in answers]


def telling_end(model: Any) -> int:
    """A token that random models generate at different times in different rows: the end token of the test."""
    answers = by_transformers(model, 399, PROMPTS)
    firsts = {token: {a.index(token) for a in answers if token in a} for a in answers for token in a}
    rows = Counter(token for a in answers for token in set(a))
    return max(sorted(firsts), key=lambda token: (min(len(firsts[token]), 4), -rows[token]))


@pytest.mark.parametrize("single_passes", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_generate(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, family: str, single_passes: bool
) -> None:
    model: Any = load_backbone(str(tiny_model(family))).model
    end_id = telling_end(model)
    expected = by_transformers(model, end_id, PROMPTS)
    if single_passes:
        monkeypatch.setattr("nlora.evaluation.prefill._PASS_OVERHEAD_TOKENS", 0)
    with torch.inference_mode():
        prefill = Prefiller(model, PROMPTS, pad_id=0, packs=packing_is_exact(model)).run(PROMPTS)
        assert greedy(prefill, end_ids=(end_id,), most_tokens=MOST_TOKENS) == expected
    # The rows must end at different times; otherwise the test shows little.
    assert len({len(answer) for answer in expected}) >= 3


class Counting:
    """A Prefill whose next token is always 5, until row i has `ends[i]` tokens: then it is 1."""

    def __init__(self, ends: list[int]) -> None:
        self._ends, self._said = ends, 1
        self.rows = list(range(len(ends)))
        self.next_logits = self._logits()
        self.sizes: list[int] = []

    def _logits(self) -> torch.Tensor:
        said = [1 if self._ends[row] == self._said else 5 for row in self.rows]
        return torch.nn.functional.one_hot(torch.tensor(said), 6).float()

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.tolist() == [[5]] * len(self.rows)
        self._said += 1
        self.sizes.append(len(self.rows))
        return self._logits()[:, None]

    def rollback(self, count: int) -> None:
        raise AssertionError("nothing is taken back")

    def select_rows(self, rows: Any) -> None:
        self.rows = [self.rows[place] for place in reversed(rows)]


def test_rows_that_have_ended_do_not_run_again() -> None:
    prefill = Counting([1, 4, 2, 9, 2])
    answers = greedy(prefill, end_ids=(1,), most_tokens=6)
    assert answers == [[1], [5, 5, 5, 1], [5, 1], [5] * 6, [5, 1]]
    assert prefill.sizes == [4, 2, 2, 1, 1]


def test_generation_settings_that_change_greedy_answers_are_detected(tiny_model: TinyModel) -> None:
    model: Any = load_backbone(str(tiny_model("llama"))).model
    assert is_plain(model)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, max_length=20)
    assert is_plain(model)
    for rule in ({"repetition_penalty": 1.1}, {"forced_eos_token_id": 1}, {"no_repeat_ngram_size": 3}):
        model.generation_config = GenerationConfig(**rule)
        assert not is_plain(model)
