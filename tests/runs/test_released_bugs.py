"""What is plainly wrong in the released LLaMA code, in its own golden numbers, and that ours does it right.

docs/released.md lists these; the T5 code has none of them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golden import CASES, GoldenCase, load_case, load_model
from nlora.config.schema import LoraOptions
from nlora.data.collate import IGNORED, Collator
from nlora.data.prompts import prompt
from nlora.data.task import Example, Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.models.backbone import load_tokenizer
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.merged_updates import MergedUpdates

TASK = Task("amazon", "SC", "Good or bad?", ("negative", "neutral"), (), ())


@pytest.fixture(scope="module")
def llama(shared: Path) -> Any:
    return load_tokenizer(str(shared / "golden/models/tiny-llama"))


@pytest.fixture(scope="module")
def prompts(shared: Path) -> dict[str, Any]:
    file = shared / "golden" / "prompts.json"
    of_llama: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["llama"]
    return of_llama


def encoder_of(tokenizer: Any) -> ExampleTokenizer:
    return ExampleTokenizer(tokenizer, encoder_decoder=False, max_source_tokens=512, max_target_tokens=50)


def attended(ids: list[int], mask: list[int]) -> list[int]:
    return [i for i, on in zip(ids, mask, strict=True) if on]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_prompt_begins_with_one_bos_and_not_two(split: str, prompts: dict[str, Any], llama: Any) -> None:
    released = prompts[split]
    bos = llama.bos_token_id
    for ids, mask in zip(released["input_ids"], released["attention_mask"], strict=True):
        assert attended(ids, mask)[:3].count(bos) == 2
        assert {i for i, on in zip(ids, mask, strict=True) if not on} <= {bos}, "the pad id is the BOS id"
    ours = encoder_of(llama).prompt_ids(TASK, Example("0", "A text.", "neutral"))
    assert ours.count(bos) == 1
    assert ours[0] == bos
    assert llama.pad_token_id != bos


def targets_of(batch: dict[str, Tensor]) -> Tensor:
    """(B, T): each position's token where the released loss counts its prediction, else -100."""
    counted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    counted[:, 1:] = batch["loss_mask"][:, :-1] > 0
    return batch["input_ids"].masked_fill(~counted, IGNORED)


def our_loss(shared: Path, golden: GoldenCase) -> float:
    model = load_model(shared, "llama")
    if golden.earlier is not None:
        MergedUpdates(model, list(golden.earlier)).activate([golden.earlier])
    adapter = LoraAdapter.attach(model, LoraOptions(r=8, alpha=32, dropout=0.0), seed=0)
    adapter.load_state(golden.new)
    adapter.model.eval()
    batch = {key: golden.batch[key] for key in ("input_ids", "attention_mask")}
    logits, targets = answer_logits(adapter.model, {**batch, "labels": targets_of(golden.batch)})
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED).item()


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_a_mean_over_the_tokens_that_it_sums(case: str, shared: Path) -> None:
    """Released: 23 terms divided by 27 (and 17 by 21), so its loss and gradient are too small by that."""
    golden = load_case(shared, "nlora_llama", case)
    divisor, terms = golden.numbers["loss_mask_sum"], golden.numbers["loss_mask_sum_shifted[:-1]"]
    assert (terms, divisor) == ((23, 27) if case.startswith("task1") else (17, 21))
    ours = our_loss(shared, golden)
    assert ours == pytest.approx(golden.ce * divisor / terms, rel=1e-5)
    assert ours > golden.ce


def test_a_long_example_does_not_empty_the_loss_and_turn_weights_into_nan(
    shared: Path, prompts: dict[str, Any], llama: Any
) -> None:
    """Released: a prompt with its answer is cut at 512 tokens, answer first, and the loss is 0/0."""
    released = prompts["train_512_to_562"]
    assert 513 <= released["n_tokens_input"] <= 562
    assert released["loss_mask_sum"] == 0
    assert released["masked_tokens"] == []
    assert math.isnan((torch.zeros(()) / released["loss_mask_sum"]).item())
    text = "a"
    while len(llama(prompt(TASK, Example("0", text, "neutral")))["input_ids"]) < released["n_tokens_input"]:
        text += " very good disc"
    (example,) = encoder_of(llama).encode(TASK, [Example("0", text, "neutral")])
    assert len(example.prompt_ids) == pytest.approx(512, abs=4)
    assert llama.decode(example.prompt_ids).endswith("Answer:")
    assert llama.decode(example.answer_ids, skip_special_tokens=True).strip() == "neutral"
    batch = Collator(pad_id=0, encoder_decoder=False)([example])
    logits, targets = answer_logits(load_model(shared, "llama"), batch)
    assert targets.ne(IGNORED).sum() == len(example.answer_ids)
    assert torch.isfinite(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED))


def test_what_is_cut_off_before_an_answer_is_the_text(prompts: dict[str, Any], llama: Any) -> None:
    """Released: an over-long test prompt loses 'Answer:', after which its prediction is looked for."""
    released = prompts["overlong_test"]
    assert released["n_tokens_input"] > 512
    assert "Answer:" not in released["source_fed_tail"]
    ids = encoder_of(llama).prompt_ids(TASK, Example("0", "good disc " * 300, "neutral"))
    assert llama.decode(ids).endswith("Answer:")
