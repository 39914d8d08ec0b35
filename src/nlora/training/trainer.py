"""Trains one adapter on one task, with transformers' Trainer.

    result = train(backbone, adapter, encoded, options, penalty=lambda: method.penalty(adapter), seed=1, folder=f)

What differs from a plain Trainer: its loss (`nlora.training.penalized_trainer`), and batches that are packed where
that is exact (`nlora.models.packed_attention`). Everything else (optimizer, schedule, accumulation, logging,
distribution) is the Trainer's.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from nlora.data.collate import Collator
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import pack
from nlora.data.sampler import LengthGroupedSampler
from nlora.errors import RunError
from nlora.models.packed_attention import packed_attention
from nlora.models.paths import Paths, usual_paths
from nlora.training.cpu_modules import lean
from nlora.training.peak_memory import forget_peak, peak_memory_bytes
from nlora.training.penalized_trainer import ExtraLoss, PenalizedTrainer, Penalty

if TYPE_CHECKING:
    from nlora.config.schema import TrainOptions
    from nlora.data.tokenize import TokenizedExample
    from nlora.models.backbone import Backbone
    from nlora.models.trainable import Trainable


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training one task took and came to.

    loss: mean over the optimizer steps of the training loss, penalty included (as the released code logs it).
    penalty: the same mean of the penalty alone; 0.0 for a method without one.
    padding_share: of all positions that the model computed, those that only filled rows up.
    peak_memory_bytes: of the device on a GPU; else the process's largest resident size so far.
    """

    steps: int
    examples: int
    epochs: float
    seconds: float
    loss: float
    penalty: float
    padding_share: float
    peak_memory_bytes: int
    trained_parameters: int

    @property
    def samples_per_second(self) -> float:
        """Training examples per second, every epoch counted."""
        return self.examples * self.epochs / self.seconds

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps per second."""
        return self.steps / self.seconds


class _StepCallback(TrainerCallback):
    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step)
        if state.global_step >= state.max_steps:  # so that a training's end is in its log
            control.should_log = True


class _Counting:
    """A collator that counts what it hands out: on the CPU, where asking a tensor waits for nothing."""

    def __init__(self, collate: Callable[[Sequence[TokenizedExample]], dict[str, Tensor]]) -> None:
        self._collate = collate
        self._positions = self._tokens = 0

    def __call__(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        batch = self._collate(examples)
        positions = batch["input_ids"].numel()
        self._positions += positions
        self._tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else positions
        return batch

    @property
    def padding_share(self) -> float:
        return 1 - self._tokens / self._positions if self._positions else 0.0


def optimizer_steps(examples: int, options: TrainOptions) -> int:
    """Optimizer steps of one task: batches per epoch (the last one may be smaller) times epochs, rounded up."""
    return math.ceil(options.epochs * math.ceil(examples / options.batch_size))


def train(
    backbone: Backbone,
    learner: Trainable,
    examples: Sequence[TokenizedExample],
    options: TrainOptions,
    *,
    penalty: Penalty,
    extra_loss: ExtraLoss | None = None,
    seed: int,
    folder: Path,
    paths: Paths | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Trains the adapter in place, over a backbone that stays as it is; or the whole backbone.

    examples: each with its answer. extra_loss: see `Method.extra_loss`.
    paths: how batches go through the model, as `nlora.runs.preflight.preflight` found; None: as its own facts allow.
    folder: gets trainer_state.json.
    on_step: called with the number of optimizer steps done. callbacks: of the Trainer, as those of `report_to`.
    Raises RunError when the loss is no number.
    """
    paths = paths or usual_paths(backbone.model)
    arguments = _training_arguments(options, seed, folder, together=paths.train != "single")
    packs = paths.train == "packed"
    if options.gradient_checkpointing:
        learner.enable_checkpointing()
    pad_id = backbone.tokenizer.pad_token_id
    collate = _Counting(pack if packs else Collator(pad_id, backbone.encoder_decoder))
    trainer = PenalizedTrainer(
        model=learner.model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        callbacks=[_StepCallback(on_step), *callbacks],
        penalty=penalty,
        extra_loss=extra_loss,
        without=learner.without,
        order=_order(examples, options, seed),
    )
    trainer.remove_callback(PrinterCallback)
    forget_peak()
    begin = time.perf_counter()
    undo_lean = lean(learner.model) if paths.leans else lambda: None
    gc.freeze()  # accelerate collects garbage at start and end: a quarter of a second among objects that stay
    try:
        with packed_attention(backbone.model) if packs else nullcontext():
            output = trainer.train()
    finally:
        gc.unfreeze()
        undo_lean()
    seconds = time.perf_counter() - begin
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    if not all(torch.isfinite(p).all() for p in trained):
        raise RunError("training left weights that are no numbers; try a smaller train.learning_rate")
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    learner.model.eval()
    return TrainResult(
        steps=output.global_step,
        examples=len(examples),
        epochs=float(trainer.state.epoch or options.epochs),
        seconds=seconds,
        loss=float(output.training_loss),
        penalty=trainer.mean_penalty,
        padding_share=collate.padding_share,
        peak_memory_bytes=peak_memory_bytes(),
        trained_parameters=sum(p.numel() for p in trained),
    )


def _order(
    examples: Sequence[TokenizedExample], options: TrainOptions, seed: int
) -> LengthGroupedSampler | None:
    if options.batches == "random":
        return None
    if isinstance(examples, TokenizedExamples):
        lengths = examples.lengths
    else:
        lengths = [len(e.prompt_ids) + len(e.answer_ids) for e in examples]
    return LengthGroupedSampler(lengths, batch_size=options.batch_size, seed=seed)


def _training_arguments(
    options: TrainOptions, seed: int, folder: Path, *, together: bool
) -> TrainingArguments:
    """together: whether examples share a micro-batch; else each has its own, which makes the same step."""
    # Not WORLD_SIZE: some schedulers set that variable for a process that is alone.
    processes = PartialState().num_processes
    per_process, left_over = divmod(options.batch_size, processes)
    micro = (options.micro_batch_size or per_process) if together else 1
    if left_over or micro == 0 or per_process % micro:
        raise RunError(
            f"train.batch_size {options.batch_size} cannot be split evenly over {processes} processes"
            f" in micro-batches of {micro or 1}"
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=per_process // micro,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        lr_scheduler_type="constant_with_warmup" if options.warmup_steps else "constant",
        warmup_steps=options.warmup_steps,
        seed=seed,
        save_strategy="no",
        logging_steps=options.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    # One process trains on one device. With several GPUs in sight, the Trainer would wrap the model in DataParallel,
    # whose batches are so many times as large, and which cuts packed ones apart.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
