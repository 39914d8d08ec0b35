"""Who trains beside whom in train.py: nlora, in plain forms too, and transformers' Trainer with PEFT's LoRA.

turn = contestant("trainer", backbone, batch_size=8)
print(turn(examples, seed).seconds)
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

import measure
from nlora.config.schema import LoraOptions
from nlora.config.train_options import TrainOptions
from nlora.data.collate import IGNORED
from nlora.data.task import TokenizedExample
from nlora.methods.registry import build
from nlora.models.backbone import Backbone
from nlora.models.lora_adapter import LoraAdapter
from nlora.models.target_modules import target_names
from nlora.training.trainer import train

LORA = LoraOptions(r=8, alpha=32, dropout=0.1)
LEARNING_RATE = 1e-3
CONTESTANTS = ("nlora", "plain-penalty", "trainer", "grouped")
TORCH_MASKS = "torch-masks"
_PENALTY_TRIES = 7


@dataclass(frozen=True, slots=True)
class Turn:
    """One contestant's training on a round's examples.

    positions: of tokens or padding that the model computed. penalty_seconds: the penalty of one step with
    its gradients, 0 without one.
    """

    seconds: float
    positions: int
    penalty_seconds: float = 0.0


Contestant = Callable[[Sequence[TokenizedExample], int], Turn]


def nlora(
    backbone: Backbone, batch_size: int, *, plain: bool = False, torch_masks: bool = False
) -> Contestant:
    """nlora as a run's first stage, with its own penalty and masks, or plain ones."""

    def turn(examples: Sequence[TokenizedExample], seed: int) -> Turn:
        model: Any = backbone.model
        adapter = LoraAdapter.attach(model, LORA, seed=seed)
        method: Any = build("nlora", {"penalty": "update_l1"})

        def penalty() -> Tensor | None:
            return plain_penalty(adapter, method.weight) if plain else method.penalty(adapter)

        options = TrainOptions(batch_size=batch_size, learning_rate=LEARNING_RATE)
        try:
            masks = mock.patch("nlora.training.trainer.masks_of", return_value=None)
            with (
                masks if torch_masks else nullcontext(),
                tempfile.TemporaryDirectory() as folder,
                measure.Positions(model) as positions,
            ):
                result = train(
                    backbone, adapter, examples, options, penalty=penalty, seed=seed, folder=Path(folder)
                )
            return Turn(result.seconds, positions.count, _seconds_of(penalty))
        finally:
            adapter.detach()

    return turn


def plain_penalty(adapter: LoraAdapter, weight: float) -> Tensor:
    """λ·Σ|s·B@A| as one writes it down; autograd keeps every update."""
    terms = [(f.scaling * (f.B @ f.A)).abs().sum() for f in adapter.factors().values()]
    return weight * torch.stack(terms).sum()


def plain_lora(backbone: Backbone, batch_size: int, grouped: bool) -> Contestant:
    """transformers' Trainer with PEFT's LoRA, as their documentation shows it."""
    tokenizer: Any = backbone.tokenizer

    def turn(examples: Sequence[TokenizedExample], seed: int) -> Turn:
        backbone_model: Any = backbone.model
        lora = LoraConfig(
            task_type="SEQ_2_SEQ_LM" if backbone.encoder_decoder else "CAUSAL_LM",
            r=LORA.r,
            lora_alpha=int(LORA.alpha),
            lora_dropout=LORA.dropout,
            target_modules=target_names(backbone.model, LORA),
        )
        model: Any = get_peft_model(backbone_model, lora)
        collator = DataCollatorForSeq2Seq(tokenizer, model=model if backbone.encoder_decoder else None)
        rows: Any = [_row(example, backbone.encoder_decoder) for example in examples]
        with tempfile.TemporaryDirectory() as folder, measure.Positions(backbone.model) as positions:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=batch_size,
                learning_rate=LEARNING_RATE,
                train_sampling_strategy="group_by_length" if grouped else "random",
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=torch.cuda.is_available(),
                seed=seed,
            )
            kind = GroupedTrainer if grouped else Trainer
            trainer = kind(model=model, args=arguments, train_dataset=rows, data_collator=collator)
            trainer.remove_callback(PrinterCallback)
            begin = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - begin
        model.unload()
        return Turn(seconds, positions.count)

    return turn


class GroupedTrainer(Trainer):
    """Groups by length as transformers does in a long run: it sorts 50 batches at a time.

    With few examples it sorts a quarter of them at a time, so in a short measurement it would hardly group.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset
        lengths = [len(row["input_ids"]) for row in rows]
        return get_length_grouped_indices(lengths, self.args.train_batch_size, mega_batch_mult=50)


def _row(example: TokenizedExample, encoder_decoder: bool) -> dict[str, list[int]]:
    prompt, answer = list(example.prompt_ids), list(example.answer_ids)
    if encoder_decoder:
        return {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": answer}
    ids = prompt + answer
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [IGNORED] * len(prompt) + answer}


def _seconds_of(penalty: Callable[[], Tensor | None]) -> float:
    """Median time of the penalty of one step, its gradients included."""
    times = []
    for _ in range(_PENALTY_TRIES):
        begin = time.perf_counter()
        value: Any = penalty()
        value.backward()
        float(value.detach())  # waits for a GPU
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def contestant(name: str, backbone: Backbone, batch_size: int) -> Contestant:
    """One of CONTESTANTS, or TORCH_MASKS, over this backbone, which it leaves as it was."""
    if name in {"nlora", "plain-penalty", TORCH_MASKS}:
        return nlora(backbone, batch_size, plain=name == "plain-penalty", torch_masks=name == TORCH_MASKS)
    return plain_lora(backbone, batch_size, grouped=name == "grouped")
