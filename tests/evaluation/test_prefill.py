"""After any passes, rollbacks and selections, the logits equal those of each sequence alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nlora.data.task import TokenizedExample
from nlora.evaluation import prefill_packed
from nlora.evaluation.prefill import Prefiller, pass_sizes
from nlora.models.backbone import load_backbone
from nlora.models.packed_attention import packing_is_exact
from tiny import SAME_SUMS

TinyModel = Callable[[str], Path]
PREFIX = list(range(200, 270))
RESTS = [[44, 45, 46, 47, 48, 49, 50], [40, 41, 42], [60, 61, 62], [43]]
PROMPTS = [TokenizedExample(PREFIX + rest, []) for rest in RESTS]
PACKABLE = ["llama", "qwen2", "gemma", "gpt2", "opt"]
FAMILIES = ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"]


@pytest.fixture
def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors contain old memory; here NaN, which no mask hides."""
    new_empty = torch.Tensor.new_empty

    def filled(self: Tensor, *size: Any, **kwargs: Any) -> Tensor:
        made = new_empty(self, *size, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)


def alone(model: Any, prompt: TokenizedExample, tokens: Sequence[int]) -> Tensor:
    """Logits (len(tokens) + 1, V) after the prompt and after each token, without cache and padding."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = [model.config.decoder_start_token_id]
            ids = torch.tensor([prompt.prompt_ids])
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([start + list(tokens)])).logits[0]
        else:
            logits = model(
                input_ids=torch.tensor([prompt.prompt_ids + list(tokens)]), use_cache=False
            ).logits[0]
    found: Tensor = logits[-len(tokens) - 1 :]
    return found


def atol_of(model: Any) -> float:
    return 5e-4 if model.config.model_type == "t5" and not SAME_SUMS else 1e-4


def check(
    model: Any, found: Tensor, rows: list[int], before: list[list[int]], tokens: list[list[int]]
) -> None:
    for place, row in enumerate(rows):
        expected = alone(model, PROMPTS[row], before[place] + tokens[place])[-len(tokens[place]) :]
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=atol_of(model))


@pytest.mark.usefixtures("dirty_memory")
@pytest.mark.parametrize("single_passes", [False, True])
@pytest.mark.parametrize(
    ("family", "packs"), [(f, p) for f in FAMILIES for p in (False, True) if not p or f in PACKABLE]
)
def test_logits_equal_each_sequence_alone(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, family: str, packs: bool, single_passes: bool
) -> None:
    model: Any = load_backbone(str(tiny_model(family))).model
    if single_passes:
        monkeypatch.setattr("nlora.evaluation.prefill._PASS_OVERHEAD_TOKENS", 0)  # a pass for every length
        monkeypatch.setattr("nlora.evaluation.prefill_packed._TOKENS_PER_PASS", 1)  # a pass for every row
    assert packing_is_exact(model) == (family in PACKABLE)
    with torch.inference_mode():
        prefill = Prefiller(model, PROMPTS, pad_id=0, packs=packs).run(PROMPTS)
        for row, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(
                prefill.next_logits[row], alone(model, prompt, [])[-1], rtol=1e-4, atol=1e-4
            )
        assert prefill.rows == [0, 1, 2, 3]
        tokens = [[10 + row, 20 + row, 30 + row] for row in range(4)]
        check(model, prefill.extend(torch.tensor(tokens)), prefill.rows, [[]] * 4, tokens)
        prefill.rollback(2)
        prefill.select_rows([3, 1])
        assert sorted(prefill.rows) == [1, 3]
        before = [tokens[row][:1] for row in prefill.rows]
        more = [[50 + row + i for i in range(20)] for row in prefill.rows]  # more than the cache has room for
        check(model, prefill.extend(torch.tensor(more)), prefill.rows, before, more)
        prefill.select_rows([1])
        [row] = prefill.rows
        before = [tokens[row][:1] + [50 + row + i for i in range(20)]]
        check(model, prefill.extend(torch.tensor([[7]])), prefill.rows, before, [[7]])


def test_the_common_beginning_runs_once(tiny_model: TinyModel) -> None:
    model: Any = load_backbone(str(tiny_model("llama"))).model
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(lambda m, ids, out: shapes.append(ids[0].shape))
    with torch.inference_mode():
        prefiller = Prefiller(model, PROMPTS, pad_id=0, packs=True)
        for some in (PROMPTS[:2], PROMPTS[2:]):
            prefiller.run(some)
    hook.remove()
    rests = [len(rest) for rest in RESTS]
    tokens = [len(PREFIX) + rests[0] + rests[1], rests[2] + rests[3]]
    assert [tuple(shape) for shape in shapes] == [(1, count) for count in tokens]


def test_only_remaining_rows_are_gathered(tiny_model: TinyModel) -> None:
    model: Any = load_backbone(str(tiny_model("llama"))).model
    with torch.inference_mode():
        prefill: Any = Prefiller(model, PROMPTS, pad_id=0, packs=True).run(PROMPTS)
        prefill.select_rows([0, 2, 3])
        prefill.select_rows([1])
        check(model, prefill.extend(torch.tensor([[7]])), [2], [[]], [[7]])
        keys, _ = prefill._gathered(0)
        assert keys.shape[:2] == (1, len(PREFIX) + len(RESTS[2]) + 1)
        assert prefill._cache is None
        check(model, prefill.extend(torch.tensor([[8]])), [2], [[7]], [[8]])
        assert prefill._cache is not None


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 1000))
def test_packed_passes_are_few_and_of_similar_size(lengths: list[int], most: int) -> None:
    sizes = prefill_packed._passes(lengths, most)
    assert sum(sizes) == len(lengths)
    assert min(sizes) > 0
    assert len(sizes) <= -(-sum(lengths) // most)
    ends = list(accumulate(sizes, initial=0))
    tokens = [sum(lengths[a:b]) for a, b in pairwise(ends)]
    assert max(tokens) <= most + 2 * max(lengths)


def test_each_row_keeps_its_last_prompt_token(tiny_model: TinyModel) -> None:
    model: Any = load_backbone(str(tiny_model("llama"))).model
    same = [TokenizedExample(PREFIX, []), TokenizedExample([*PREFIX, 5], [])]
    with torch.inference_mode():
        first = Prefiller(model, same, pad_id=0, packs=True).run(same[::-1]).next_logits
    for found, prompt in zip(first, same[::-1], strict=True):
        torch.testing.assert_close(found, alone(model, prompt, [])[-1], rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.integers(0, 120))
def test_passes_have_the_least_cost_of_all_divisions(lengths: list[int], pass_tokens: int) -> None:
    lengths.sort(reverse=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlora.evaluation.prefill._PASS_OVERHEAD_TOKENS", pass_tokens)
        patch.setattr("nlora.evaluation.prefill._MOST_PASS_TOKENS", 700)
        sizes = pass_sizes(lengths)

    def cost(cuts: list[int]) -> float:
        parts = [(b - a, (b - a) * lengths[a]) for a, b in pairwise(cuts)]
        if any(rows > 1 and tokens > 700 for rows, tokens in parts):
            return float("inf")
        return sum(pass_tokens + tokens for _, tokens in parts)

    n = len(lengths)
    ways = [[0, *[i for i in range(1, n) if bits >> i & 1], n] for bits in range(0, 2**n, 2)]
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    assert ends[-1] == n
    assert cost(ends) == min(map(cost, ways))
