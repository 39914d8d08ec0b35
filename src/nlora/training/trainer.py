"""Trains one task with transformers' Trainer.

Optimizer, schedule, clipping, accumulation and logging are the Trainer's. Ours are the loss
(`nlora.training.penalized_trainer`), packed batches where they are exact (`nlora.models.packed_attention`), the order
of the examples and their split over processes, the saved state of a half-trained task
(`nlora.training.resumable_trainer`), and the guard against numbers that are not finite.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback

from nlora.config.penalty_use import IN_LOSS, PenaltyUse
from nlora.data.collate import Collator
from nlora.data.columns import TokenizedExamples
from nlora.data.packing import beginnings_of, pack
from nlora.data.sampler import LengthGroupedSampler, MixedSampler, Order
from nlora.errors import RunError
from nlora.models import processes
from nlora.models.fast_paths import FastPaths, default_paths
from nlora.models.soft_prompts import SoftPrompts
from nlora.training import spread
from nlora.training.after_step import AfterStep, AfterStepCallback
from nlora.training.answer_losses import MakeBatch
from nlora.training.arguments import training_arguments
from nlora.training.best_epoch import BestEpoch
from nlora.training.counted_batches import counted
from nlora.training.fast_training import FastTraining
from nlora.training.finite_guard import NumberedExamples, numbered
from nlora.training.keyed_masks import masks_of
from nlora.training.loss_probe import LossBefore, probe_loss
from nlora.training.peak_memory import reset_peak_memory
from nlora.training.penalized_trainer import ExtraLoss, PenalizedTrainer, Penalty
from nlora.training.penalty_gradient import PenaltyGradient
from nlora.training.result import TrainResult
from nlora.training.resumable_trainer import LiveTensors, ResumePoints, Stateful
from nlora.training.weighted_batches import WeightedExamples, weighted

if TYPE_CHECKING:
    from nlora.config.train_options import TrainOptions
    from nlora.data.label_weights import Weights
    from nlora.data.replay import Mix
    from nlora.data.task import TokenizedExample
    from nlora.models.backbone import Backbone
    from nlora.models.trainable import Trainable


class _StepCallback(TrainerCallback):
    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._on_step(state.global_step)
        if state.global_step >= state.max_steps:  # always log the last step
            control.should_log = True


def train(
    backbone: Backbone,
    trainable: Trainable,
    examples: Sequence[TokenizedExample],
    options: TrainOptions,
    *,
    penalty: Penalty,
    penalty_use: PenaltyUse = IN_LOSS,
    extra_loss: ExtraLoss | None = None,
    after_step: AfterStep | None = None,
    may_end: Callable[[int, int], bool] = lambda step, steps: True,
    seed: int,
    folder: Path,
    weights: Weights | None = None,
    mix: Mix | None = None,
    paths: FastPaths | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    callbacks: Sequence[TrainerCallback] = (),
    score: Callable[[], float] | None = None,
    points: ResumePoints | None = None,
    stateful: Mapping[str, Stateful] | None = None,
) -> TrainResult:
    """Train in place what is attached to the backbone.

    penalty: called once per optimizer step. penalty_use, extra_loss, after_step, may_end: see `Method`.
    folder: where trainer_state.json is written. weights: of the examples in the loss, (n,); None: all the same.
    mix: how the last of the examples, kept ones of earlier tasks, are mixed in; None: each once per epoch.
    paths: how batches go through the model, as found by `nlora.runs.preflight`; None: as the model's properties allow.
    on_step: called with the number of optimizer steps done. callbacks: further ones for the Trainer.
    score: of the model as it is, in percent, for `early_stopping`.
    points: where to save the half-trained state, and where to resume. stateful: what else belongs to that state.
    Raises NotFiniteError before a step whose loss, penalty or gradient is not finite, and RunError if a weight is not.
    """
    paths = paths or default_paths(backbone.model)
    packs, together = paths.training == "packed", paths.training != "single"
    if options.gradient_checkpointing:
        trainable.enable_checkpointing()
    pad_id = backbone.tokenizer.pad_token_id
    beginnings = beginnings_of(examples) if packs else ()
    masks = masks_of(trainable.model, paths, examples, beginnings, seed, backbone.encoder_decoder)
    soft = trainable if isinstance(trainable, SoftPrompts) else None
    make_batch: MakeBatch = Collator(pad_id, backbone.encoder_decoder)
    if packs and soft is not None:
        make_batch = partial(pack, shared=soft.shared, beginnings=soft.begun(beginnings))
    elif packs:
        shared = None if masks is None else masks.beginning
        make_batch = partial(pack, shared=shared, beginnings=beginnings)
    in_epoch = len(examples) if mix is None else mix.in_epoch
    if soft is not None:
        make_batch = soft.batches(make_batch)
    fast = FastTraining(backbone.model, trainable.model, paths, masks)
    best = _best_epoch(trainable, fast, options, score, may_end)
    before = LossBefore()
    parts: dict[str, Stateful] = {
        "trained": LiveTensors(trainable.live_tensors),
        "loss_before": before,
        **(stateful or {}),
        **({"best_epoch": best} if best else {}),
    }
    is_apart = spread.may_leave_out(trainable)
    penalty_gradient = PenaltyGradient(penalty_use, _trained(trainable), is_apart=is_apart)
    trainer = PenalizedTrainer(
        model=trainable.model,
        args=training_arguments(options, in_epoch, seed, folder, together, **spread.arguments(trainable)),
        train_dataset=NumberedExamples(examples if weights is None else WeightedExamples(examples, weights)),
        data_collator=counted(numbered(make_batch if weights is None else weighted(make_batch))),
        callbacks=[
            penalty_gradient,
            *([AfterStepCallback(after_step)] if after_step else []),
            _StepCallback(on_step),
            *callbacks,
            *([best] if best else []),
        ],
        penalty=penalty,
        penalty_gradient=penalty_gradient,
        batch_size=options.batch_size,
        extra_loss=extra_loss,
        choose=None if soft is None else soft.choose,
        without=trainable.without,
        masks=masks,
        order=_order(examples, options, seed, mix),
        points=points,
        parts=parts,
    )
    trainer.remove_callback(PrinterCallback)
    spread.prepare(trainable, seed)
    reset_peak_memory()
    with fast:
        micro = trainer.args.per_device_train_batch_size
        choose = None if soft is None else soft.choose
        probe = partial(probe_loss, trainable.model, examples, make_batch, choose=choose, together=micro)
        before.value = probe()
        loss = _run(trainer)
        if best is not None:
            best.restore()
        seconds = trainer.seconds
        losses = before.value, probe()
    return _result(trainer, trainable, in_epoch, loss, seconds, best, losses)


def _run(trainer: PenalizedTrainer) -> float:
    """Train; returns the mean loss. Raises NotFiniteError."""
    free = gc.get_freeze_count() == 0  # otherwise the host has frozen objects, and they have to stay so
    if free:
        gc.freeze()  # accelerate collects garbage at start and end, which takes a quarter of a second for nothing
    try:
        loss = trainer.learn()
    finally:
        if free:
            gc.unfreeze()
    trainer.check_finite()
    return loss


def _best_epoch(
    trainable: Trainable,
    fast: FastTraining,
    options: TrainOptions,
    score: Callable[[], float] | None,
    may_end: Callable[[int, int], bool],
) -> BestEpoch | None:
    if options.early_stopping is None or score is None:
        return None
    return BestEpoch(trainable, partial(fast.outside, score), options.early_stopping.patience, may_end)


def _result(
    trainer: PenalizedTrainer,
    trainable: Trainable,
    examples: int,
    loss: float,
    seconds: float,
    best: BestEpoch | None,
    losses: tuple[float | None, float],
) -> TrainResult:
    """The result of a finished training, once its weights are known to be finite; writes trainer_state.json."""
    trained = _trained(trainable)
    if not all(torch.isfinite(p).all() for p in trained):
        raise RunError("training left weights that are not finite; try a smaller train.learning_rate")
    state = trainer.state
    processes.from_main(state.save_to_json, str(Path(str(trainer.args.output_dir)) / "trainer_state.json"))
    trainable.model.eval()
    return TrainResult(
        steps=state.global_step,
        examples=examples,
        epochs=float(state.epoch or trainer.args.num_train_epochs),
        seconds=max(processes.gather(seconds)),
        loss=loss,
        penalty=trainer.mean_penalty,
        padding_share=trainer.padding_share,
        peak_memory_bytes=max(processes.gather(trainer.peak_memory_bytes)),
        trained_parameters=sum(p.numel() for p in trained),
        best_epoch=None if best is None else best.epoch,
        best_score=None if best is None else best.best,
        loss_before=losses[0],
        loss_after=losses[1],
    )


def _trained(trainable: Trainable) -> list[torch.nn.Parameter]:
    return [p for p in trainable.model.parameters() if p.requires_grad]


def _order(
    examples: Sequence[TokenizedExample], options: TrainOptions, seed: int, mix: Mix | None
) -> Order | None:
    """Which examples make up a batch; None: the Trainer's random order."""
    if options.batches == "random" and mix is None:
        return None
    if isinstance(examples, TokenizedExamples):
        lengths = examples.lengths
    else:
        lengths = [len(e.prompt_ids) + len(e.answer_ids) for e in examples]
    if mix is None:
        return LengthGroupedSampler(lengths, batch_size=options.batch_size, seed=seed)
    by_length = options.batches == "by_length"
    # Batches of one example are in random order.
    own = LengthGroupedSampler(lengths[: mix.own], batch_size=mix.new if by_length else 1, seed=seed)
    return MixedSampler(own, mix, lengths=lengths if by_length else None, seed=seed)
