"""The built-in default for real: it learns, its prefix is shared exactly, and it does so in both decodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers import learn
from nlora.config.schema import LoraOptions
from nlora.data import builtin
from nlora.data.packing import pack
from nlora.data.tokenize import ExampleTokenizer
from nlora.models.backbone import load_backbone
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.packed_attention import packed_attention, packing_is_exact
from nlora.runs.preflight import preflight, probes

pytestmark = pytest.mark.slow


def test_the_builtin_model_learns_a_builtin_task(tmp_path: Path) -> None:
    summary = learn(
        "demo",
        f"output_dir={tmp_path / 'run'}",
        "tasks=[reuters]",
        "stages={}",
        "train.epochs=3",
        "train.max_samples=35",
        "evaluate.max_samples=35",
        "evaluate.zero_shot=true",
    )
    assert summary.zero_shot is not None
    before, after = summary.zero_shot[0], summary.R[0][0]
    assert before is not None
    assert after is not None
    # Seven balanced topics: chance is 14.
    assert before < 40
    assert after > before + 20
    config = json.loads((tmp_path / "run/outputs/1-reuters/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2"


def test_rounding_in_16_bits_rules_nothing_out() -> None:
    """The largest of its differences is as large as those of some mistakes, and would."""
    backbone = load_backbone("smollm2", dtype="bfloat16")
    encoder = ExampleTokenizer(
        backbone.tokenizer, encoder_decoder=False, max_source_tokens=512, max_target_tokens=50
    )
    tasks = [probes(builtin.read(name), encoder) for name in ("reuters", "newsgroups", "tweets")]
    for rank in (8, 16):
        paths = preflight(backbone, tasks, lora=LoraOptions(r=rank, alpha=32, dropout=0.0))
        assert paths.notes == ()
        assert (paths.prefill, paths.training, paths.fast_modules) == ("packed", "packed", True)


def test_loss_and_gradients_of_a_packed_batch_equal_the_plain_step() -> None:
    backbone: Any = load_backbone("smollm2")
    assert packing_is_exact(backbone.model)
    backbone.model.double()  # in float32 rounding alone moves gradients by 1e-5 or 2e-5, by the processor
    encoder = ExampleTokenizer(
        backbone.tokenizer, encoder_decoder=False, max_source_tokens=512, max_target_tokens=50
    )
    task = builtin.read("reuters")
    examples = encoder.encode(task, task.train[:4])
    adapter = LoraAdapter.attach(backbone.model, LoraOptions(dropout=0.0), seed=1)
    adapter.model.double()
    with torch.no_grad():
        for f in adapter.factors().values():
            f.B.normal_(std=1e-2, generator=torch.Generator().manual_seed(0))

    def step(loss: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
        adapter.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item(), {
            n: f.A.grad.clone() for n, f in adapter.factors().items() if f.A.grad is not None
        }

    plain = torch.zeros(())
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.answer_ids]])
        answers = len(example.answer_ids)
        logits = adapter.model(input_ids=ids).logits[0, -answers - 1 : -1]
        plain = plain + F.cross_entropy(logits, ids[0, -answers:], reduction="sum")
    plain_loss, plain_gradients = step(plain / sum(len(e.answer_ids) for e in examples))
    with packed_attention(backbone.model):
        logits, targets = answer_logits(adapter.model, pack(examples))
    loss, gradients = step(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert len(gradients) == 60
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
