"""Does a good weight of update_l1 carry over between model sizes: as a sum over entries, a mean, or neither?

    python benchmarks/reduction.py                    # about five minutes on one core

For random models of growing width, the same task is learned with growing weights λ of Σ|ΔW|. Printed is the λ at
which the penalty halves what training achieves (the fall of the cross-entropy), by interpolation between the tried
weights. If a sum carried over, this λ would stay the same from size to size; if a mean over entries did, λ times the
number of entries N would; if it goes with √N, λ·√N would. Random models are not trained ones: this shows how the
penalty's pull grows with the size against the gradient's, not which weight is good.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.collate import IGNORED, Collator
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import Backbone
from nlora.models.logits import answer_logits
from nlora.models.lora_adapter import LoraAdapter
from nlora.training.trainer import train

KEYWORDS, ANSWERS, END = (10, 11, 12, 13), (20, 21, 22, 23), 1
WEIGHTS = [10**exponent for exponent in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0)]


def examples(count: int, seed: int) -> list[TokenizedExample]:
    """Random tokens with one of four keywords among them; the answer is the keyword's own token."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        prompt = [draw.randrange(30, 200) for _ in range(12)]
        prompt[draw.randrange(8)] = KEYWORDS[i % 4]
        made.append(TokenizedExample([*prompt, 5], [ANSWERS[i % 4], END]))
    return made


def random_model(width: int, seed: int) -> Backbone:
    """A LLaMA of two layers with heads of 16, drawn as transformers draws it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 16,
        initializer_range=width**-0.5,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=END)
    return Backbone(model, tokenizer, encoder_decoder=False, name=f"random-{width}")


def cross_entropy(backbone: Backbone, adapter: LoraAdapter, data: list[TokenizedExample]) -> float:
    """Mean over the answer tokens."""
    with torch.no_grad():
        logits, targets = answer_logits(adapter.model, Collator(0, False)(data))
    return float(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    )


def after_training(width: int, weight: float, seed: int) -> tuple[float, float, int]:
    """Cross-entropy before and after training, and the number of entries of the updates."""
    backbone = random_model(width, seed)
    model: Any = backbone.model
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    adapter = LoraAdapter.attach(model, LoraOptions(r=8, dropout=0.0, targets=targets), seed=seed)
    method = build("nlora", {"penalty": "update_l1", "reduction": "sum", "weight": weight})
    data = examples(64, seed)
    before = cross_entropy(backbone, adapter, data)
    options = TrainOptions(epochs=15, batch_size=16, learning_rate=1e-3)
    with tempfile.TemporaryDirectory() as folder:
        train(
            backbone,
            adapter,
            data,
            options,
            penalty=lambda: method.penalty(adapter),
            seed=seed,
            folder=Path(folder),
        )
    return before, cross_entropy(backbone, adapter, data), sum(f.entries for f in adapter.factors().values())


def halving_weight(width: int, seed: int) -> tuple[float, int]:
    """The weight at which half of the fall of the cross-entropy is left, and the number of entries."""
    before, free, entries = after_training(width, 0.0, seed)
    shares = []
    for weight in WEIGHTS:
        _, after, _ = after_training(width, weight, seed)
        shares.append((before - after) / (before - free))
    for i in range(1, len(WEIGHTS)):
        if shares[i] < 0.5 <= shares[i - 1]:
            part = (shares[i - 1] - 0.5) / (shares[i - 1] - shares[i])
            exponent = math.log10(WEIGHTS[i - 1]) + part * math.log10(WEIGHTS[i] / WEIGHTS[i - 1])
            return 10**exponent, entries
    return float("nan"), entries


def main() -> None:
    """One row per width; the columns tell which form stays the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("| width | entries N | λ halving the learning | λ·√N | λ·N |")
    print("| --- | --- | --- | --- | --- |")
    for width in options.widths:
        found = [halving_weight(width, seed) for seed in options.seeds]
        weight = math.exp(sum(math.log(w) for w, _ in found) / len(found))
        entries = found[0][1]
        columns = f"{weight:.2e} | {weight * math.sqrt(entries):.3f} | {weight * entries:.1f}"
        print(f"| {width} | {entries} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
