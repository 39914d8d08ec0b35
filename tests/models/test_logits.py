"""The cheap pass gives the plain pass's numbers: logits at the answers, loss, and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nlora.data.collate import IGNORED, Collator
from nlora.data.packing import pack
from nlora.data.task import TokenizedExample
from nlora.errors import ModelError
from nlora.models.backbone import load_backbone
from nlora.models.inspection import first_position
from nlora.models.logits import answer_logits
from nlora.models.packed_attention import packed_attention, packing_is_exact

CAUSAL = ["llama", "qwen2", "gemma", "gpt2", "opt"]
PREFIX = tuple(range(200, 270))
EXAMPLES = [
    TokenizedExample((*PREFIX, 40, 41, 42), (50, 1)),
    TokenizedExample((*PREFIX, 43), (51, 52, 53, 1)),
    TokenizedExample((*PREFIX, 44, 45, 46, 47, 48), (54, 1)),
]


def plain_loss(model: Any, examples: list[TokenizedExample]) -> torch.Tensor:
    """Mean cross-entropy of the answer tokens, one example at a time, without padding, cache or slicing."""
    total, count = torch.zeros(()), 0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        logits = model(input_ids=ids, use_cache=False).logits[0]
        answers = len(example.answer_ids)
        total = total + F.cross_entropy(logits[-answers - 1 : -1], ids[0, -answers:], reduction="sum")
        count += answers
    return total / count


def cheap_loss(model: Any, examples: list[TokenizedExample], *, encoder_decoder: bool) -> Any:
    logits, targets = answer_logits(model, Collator(0, encoder_decoder)(examples))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def packed_loss(model: Any, examples: list[TokenizedExample]) -> Any:
    assert packing_is_exact(model)
    with packed_attention(model):
        logits, targets = answer_logits(model, pack(examples))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("family", CAUSAL)
def test_loss_and_gradients_equal_the_plain_pass(
    tiny_model: Callable[[str], Path], family: str, packs: bool
) -> None:
    model = load_backbone(str(tiny_model(family))).model
    model.requires_grad_(True)
    expected_loss = plain_loss(model, EXAMPLES)
    expected = gradients(model, expected_loss)
    loss = packed_loss(model, EXAMPLES) if packs else cheap_loss(model, EXAMPLES, encoder_decoder=False)
    found = gradients(model, loss)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_encoder_decoder_loss_equals_one_example_at_a_time(tiny_model: Callable[[str], Path]) -> None:
    model: Any = load_backbone(str(tiny_model("t5"))).model
    total, count = 0.0, 0
    for example in EXAMPLES:
        labels = torch.tensor([example.answer_ids])
        loss = model(input_ids=torch.tensor([example.prompt_ids]), labels=labels).loss
        total += loss.item() * len(example.answer_ids)
        count += len(example.answer_ids)
    found = cheap_loss(model, EXAMPLES, encoder_decoder=True)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_the_preflight_check_leaves_the_first_tokens_of_the_vocabulary_alone(
    tiny_model: Callable[[str], Path],
) -> None:
    """They may be control tokens that were never trained, for which rounding alone decided the check."""
    model: Any = load_backbone(str(tiny_model("llama"))).model
    seen: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert packing_is_exact(model)
    ids = torch.cat([ids.flatten() for ids in seen])
    assert ids.min() >= 0.1 * model.config.vocab_size - 1
    assert ids.max() < model.config.vocab_size


@pytest.mark.parametrize(
    "family", ["camembert", "roberta", "xlm-roberta-xl", "xmod", "data2vec-text", "bert"]
)
def test_positions_start_at_the_model_s_first_position(
    family: str, tiny_family: Callable[[str], Any]
) -> None:
    """RoBERTa and similar models reserve the first positions for padding; a text starts at pad + 1."""
    model = tiny_family(family)
    assert first_position(model) == (0 if family == "bert" else model.config.pad_token_id + 1)
    with torch.no_grad():
        expected = plain_loss(model, EXAMPLES)
        torch.testing.assert_close(cheap_loss(model, EXAMPLES, encoder_decoder=False), expected)
        torch.testing.assert_close(packed_loss(model, EXAMPLES), expected)


@pytest.mark.parametrize("family", ["t5", "bart", "mbart", "plbart", "switch_transformers"])
def test_a_decoder_starts_with_the_token_of_transformers_own_loss(
    family: str, tiny_family: Callable[[str], Any]
) -> None:
    model = tiny_family(family)
    with torch.no_grad():
        logits, targets = answer_logits(model, Collator(0, encoder_decoder=True)(EXAMPLES))
        for row, e in enumerate(EXAMPLES):
            answer = torch.tensor([e.answer_ids])
            own = model(input_ids=torch.tensor([e.prompt_ids]), labels=answer, use_cache=False)
            found = logits[row : row + 1, : len(e.answer_ids)]
            torch.testing.assert_close(found, own.logits, rtol=1e-3, atol=1e-4)
            assert targets[row, : len(e.answer_ids)].tolist() == list(e.answer_ids)


def test_a_decoder_without_a_known_start_token_is_refused(tiny_family: Callable[[str], Any]) -> None:
    model = tiny_family("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(
        ModelError, match=r"T5ForConditionalGeneration: nothing says .*set decoder_start_token_id"
    ):
        answer_logits(model, Collator(0, encoder_decoder=True)(EXAMPLES))
