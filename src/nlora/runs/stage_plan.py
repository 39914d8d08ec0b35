"""What each stage of a run will do: its examples, steps and tokens, and a rough guess of its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlora.config.schema import Config
from nlora.data.columns import TokenizedExamples
from nlora.data.task import Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.methods.base import Method
from nlora.models.processes import size
from nlora.runs import time_estimate
from nlora.runs.stage_examples import StageExamples


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage will do.

    prompt_tokens: mean per example, answer included. seconds: a rough guess.
    cut_examples, cut_test_examples: how many training and test prompts have to be shortened.
    replayed: how many of the training examples are of each earlier task.
    """

    task: str
    train_examples: int
    test_examples: int
    labels: int | None
    steps: int
    prompt_tokens: float
    shared_tokens: int
    cut_examples: int
    cut_test_examples: int
    seconds: float
    replayed: Mapping[str, int]


def stage_plans(
    config: Config,
    tasks: Sequence[Task],
    methods: Sequence[Method],
    encoder: ExampleTokenizer,
    examples: Sequence[StageExamples],
    cut_test: Sequence[int],
    parameters: int,
    layers: int,
    general_tokens: int = 0,
) -> tuple[StagePlan, ...]:
    """One plan per task.

    examples: of each stage. cut_test: how many test prompts of each task are shortened.
    parameters, layers: how many of them each token passes through; see `Speed`.
    general_tokens: of the text that is measured after every stage.
    """
    speed = time_estimate.Speed.here(parameters, layers, config.dtype)
    lengths = [_lengths(stage.tokens, encoder) for stage in examples]
    stages = []
    for index, (task, given) in enumerate(zip(tasks, examples, strict=True)):
        options = config.train_options(task.name)
        tokens, shared = lengths[index]
        steps = options.steps(given.in_epoch)
        rows = max(min(options.micro_batch(size()), given.in_epoch), 1)
        passes = options.epochs * given.in_epoch / rows
        seconds = time_estimate.train_seconds(
            speed,
            tokens=tokens,
            shared=0 if encoder.encoder_decoder else _shared_in_batch(given.tokens, rows),
            rows=rows,
            passes=passes,
        )
        if methods[index].chooses_weight:  # see `nlora.runs.auto_weight`
            share = 1 - config.evaluate.validation_share
            seconds *= 1 + (config.auto_weight.tries + 1) * share
        if config.replay.by_loss:
            seconds += time_estimate.score_seconds(
                speed,
                tokens=tokens,
                shared=shared,
                rows=config.evaluate.batch_size,
                passes=len(given.own) / config.evaluate.batch_size,
            )
        for i in range(len(tasks) if config.evaluate.unseen else index + 1) if given.tokens else ():
            rows = max(min(config.evaluate.batch_size, len(tasks[i].test)), 1)
            seconds += time_estimate.score_seconds(
                speed,
                tokens=lengths[i][0],
                shared=lengths[i][1],
                rows=rows,
                passes=len(tasks[i].test) / rows,
            )
        if general_tokens:  # the first stage comes with the untouched model
            passes = 1 if index else 2
            seconds += time_estimate.score_seconds(
                speed, tokens=general_tokens, shared=0, rows=1, passes=passes
            )
        stages.append(
            StagePlan(
                task=task.name,
                train_examples=len(given.tokens),
                test_examples=len(task.test),
                labels=len(task.labels) if task.labels else None,
                steps=steps,
                prompt_tokens=tokens,
                shared_tokens=shared,
                cut_examples=given.tokens.cut_examples,
                cut_test_examples=cut_test[index],
                seconds=seconds,
                replayed=given.replayed,
            )
        )
    return tuple(stages)


def _lengths(examples: TokenizedExamples, encoder: ExampleTokenizer) -> tuple[float, int]:
    """Mean tokens of an example, answer included, and the tokens that all prompts begin with."""
    if not examples:
        return 0.0, 0
    return sum(examples.lengths) / len(examples), 0 if encoder.encoder_decoder else examples.shared_tokens


def _shared_in_batch(examples: TokenizedExamples, rows: int) -> float:
    """The tokens that a batch saves for each of its examples but one, with what each task begins with (`pack`).

    rows: examples of a batch, in which the tasks have their share.
    """
    if rows == 1 or not examples:
        return 0.0
    common = examples.shared_tokens
    saved = float(common * (rows - 1))
    for part in examples.parts:
        own, of_part = int(part.shared.min()), rows * len(part) / len(examples)
        saved += max(of_part * (own - common) - own, 0.0)
    return saved / (rows - 1)
