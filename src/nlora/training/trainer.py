"""Trains one task with transformers' Trainer.

Two things differ from a plain Trainer: the loss (`nlora.training.penalized_trainer`), and that batches are packed if
that is exact (`nlora.models.packed_attention`). Optimizer, schedule, accumulation, logging and distribution are the
Trainer's.
"""

from __future__ import annotations

import gc
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
from nlora.models.fast_paths import FastPaths, default_paths
from nlora.models.packed_attention import packed_attention
from nlora.training.cpu_modules import cpu_modules
from nlora.training.peak_memory import peak_memory_bytes, reset_peak_memory
from nlora.training.penalized_trainer import ExtraLoss, PenalizedTrainer, Penalty

if TYPE_CHECKING:
    from nlora.config.schema import TrainOptions
    from nlora.data.task import TokenizedExample
    from nlora.models.backbone import Backbone
    from nlora.models.trainable import Trainable


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The cost and the outcome of training one task.

    loss: the training loss, penalty included (as the released code logs it), averaged over the optimizer steps.
    penalty: the same average of the penalty alone; 0.0 for a method without one.
    padding_share: share of the computed positions that were padding.
    peak_memory_bytes: of the GPU; on a CPU, the largest resident size of this process so far.
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
        return self.examples * self.epochs / self.seconds if self.seconds else 0.0

    @property
    def steps_per_second(self) -> float:
        """Optimizer steps per second."""
        return self.steps / self.seconds


class _StepCallback(TrainerCallback):
    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step)
        if state.global_step >= state.max_steps:  # always log the last step
            control.should_log = True


class _Counting:
    """A collator that counts padding, on the CPU, where reading a tensor's values does not wait for a GPU."""

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


def train(
    backbone: Backbone,
    trainable: Trainable,
    examples: Sequence[TokenizedExample],
    options: TrainOptions,
    *,
    penalty: Penalty,
    extra_loss: ExtraLoss | None = None,
    seed: int,
    folder: Path,
    paths: FastPaths | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train in place what is attached to the backbone.

    penalty: called once per optimizer step. extra_loss: see `Method.extra_loss`.
    folder: where trainer_state.json is written.
    paths: how batches go through the model, as found by `nlora.runs.preflight`; None: as the model's properties allow.
    on_step: called with the number of optimizer steps done. callbacks: further ones for the Trainer.
    Raises RunError if the loss or a trained weight is not finite.
    """
    paths = paths or default_paths(backbone.model)
    arguments = _training_arguments(options, seed, folder, together=paths.training != "single")
    packs = paths.training == "packed"
    if options.gradient_checkpointing:
        trainable.enable_checkpointing()
    pad_id = backbone.tokenizer.pad_token_id
    collate = _Counting(pack if packs else Collator(pad_id, backbone.encoder_decoder))
    trainer = PenalizedTrainer(
        model=trainable.model,
        args=arguments,
        train_dataset=examples,
        data_collator=collate,
        callbacks=[_StepCallback(on_step), *callbacks],
        penalty=penalty,
        extra_loss=extra_loss,
        without=trainable.without,
        order=_order(examples, options, seed),
    )
    trainer.remove_callback(PrinterCallback)
    reset_peak_memory()
    begin = time.perf_counter()
    modules = cpu_modules(trainable.model) if paths.cpu_modules else nullcontext()
    attention = packed_attention(backbone.model) if packs else nullcontext()
    with modules, attention:
        gc.freeze()  # accelerate collects garbage at start and end, which takes a quarter of a second for nothing
        try:
            output = trainer.train()
        finally:
            gc.unfreeze()
    seconds = time.perf_counter() - begin
    trained = [p for p in trainable.model.parameters() if p.requires_grad]
    if not all(torch.isfinite(p).all() for p in trained):
        raise RunError("training left weights that are not finite; try a smaller train.learning_rate")
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    trainable.model.eval()
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
    """together: whether examples share a micro-batch. If each has its own, the optimizer step is the same."""
    # Not WORLD_SIZE: some schedulers set that variable even for a single process.
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
    # One process trains on one device. If it sees several GPUs, the Trainer would wrap the model in DataParallel, which
    # multiplies the batch size and splits packed batches.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
