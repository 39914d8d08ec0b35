"""The arguments of transformers' Trainer, from the keys of `train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments

from nlora.models import processes

if TYPE_CHECKING:
    from nlora.config.train_options import TrainOptions

_SCHEDULES = {
    ("constant", False): "constant",
    ("constant", True): "constant_with_warmup",
    **{(name, warms_up): name for name in ("linear", "cosine") for warms_up in (False, True)},
}
"""transformers' names, by `train.schedule` and whether there is a warm-up."""


def training_arguments(
    options: TrainOptions, examples: int, seed: int, folder: Path, together: bool, **further: Any
) -> TrainingArguments:
    """What the Trainer is given.

    examples: of an epoch. folder: where it writes. together: whether examples share a micro-batch. If
    each has its own, the optimizer step is the same.
    """
    warmup = options.warmup(examples)
    micro = options.micro_batch(processes.size()) if together else 1
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=math.ceil(options.batch_size / (micro * processes.size())),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        lr_scheduler_type=_SCHEDULES[options.schedule, warmup > 0],
        warmup_steps=warmup,
        seed=seed,
        save_strategy="no",
        logging_steps=options.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        **further,
    )
    # One process trains on one device. If it sees several GPUs, the Trainer would wrap the model in DataParallel, which
    # multiplies the batch size and splits packed batches.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    # `accelerate launch` always sets a mixed precision, if only from its file of defaults. Here `dtype` decides.
    arguments.mixed_precision = "no"
    return arguments
