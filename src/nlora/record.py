"""Turns what a stage produced into its files: the released result files, and the stage's row of R.

scores = write_stage(folder, plan.tasks, stage, answers, result)      # one score per answered task
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nlora.data.base import Task
from nlora.data.prompts import TAIL, head
from nlora.evaluation import Answers
from nlora.metrics.text import exact_match
from nlora.results import Prediction, predict_results, train_results, write_results
from nlora.run_dir import write_stage_record
from nlora.summary import StageRecord
from nlora.training import TrainResult


def accuracy(task: Task, answers: Answers) -> float:
    """Exact match after the released normalisation, in percent of the task's test examples: an entry of R."""
    hits = sum(exact_match(a, e.label) for a, e in zip(answers.texts, task.test, strict=True))
    return 100.0 * hits / len(task.test)


def score_row(tasks: Sequence[Task], answers: Mapping[str, Answers]) -> list[float | None]:
    """A row of R: the accuracy on every task of the run, None where it was not asked."""
    return [accuracy(task, answers[task.name]) if task.name in answers else None for task in tasks]


def write_stage(
    folder: Path, tasks: Sequence[Task], stage: int, answers: Mapping[str, Answers], result: TrainResult
) -> list[float | None]:
    """Writes a stage's result files and its record into its folder; returns its row of R.

    answers: by task name. The decodes of the tasks may differ (free text is always generated); the files
    say which, joined by '+'.
    """
    predictions = [
        p for task in tasks if task.name in answers for p in predictions_of(task, answers[task.name])
    ]
    given = list(answers.values())
    seconds = sum(a.seconds for a in given)
    lengths = [(a.answer_tokens, len(a.texts)) for a in given if a.answer_tokens is not None]
    generated = sum(count for _, count in lengths)
    predict = predict_results(
        predictions,
        decode="+".join(sorted({a.decode for a in given})),
        runtime_seconds=seconds,
        steps=sum(a.batches for a in given),
        epochs=result.epochs,
        global_step=result.steps,
        mean_tokens=sum(mean * count for mean, count in lengths) / generated if generated else None,
    )
    train = train_results(
        epochs=result.epochs,
        loss=result.loss,
        runtime_seconds=result.seconds,
        samples=result.examples,
        steps=result.steps,
        padding_share=result.padding_share,
    )
    write_results(folder, train, predict, predictions)
    row = score_row(tasks, answers)
    write_stage_record(
        folder,
        StageRecord(
            stage=stage,
            task=tasks[stage - 1].name,
            row=tuple(row),
            train_seconds=result.seconds,
            evaluate_seconds=seconds,
            train_samples_per_second=result.samples_per_second,
            peak_memory_bytes=result.peak_memory_bytes,
            trained_parameters=result.trained_parameters,
        ),
    )
    return row


def write_passed_over(folder: Path, tasks: Sequence[Task], stage: int) -> None:
    """Writes the record of a stage at which the method trained nothing: its row of R is empty."""
    record = StageRecord(
        stage=stage,
        task=tasks[stage - 1].name,
        row=(None,) * len(tasks),
        train_seconds=0.0,
        evaluate_seconds=0.0,
        train_samples_per_second=0.0,
        is_passed_over=True,
    )
    write_stage_record(folder, record)


def predictions_of(task: Task, answers: Answers) -> list[Prediction]:
    """Each answer with its example and its prompt, as the released files have them."""
    names = f"Task:{task.type}\nDataset:{task.name}\n"
    instruction = f"{head(task).removeprefix(names)}{{0}}{TAIL}"  # as the released files have it
    return [
        Prediction(
            type=task.type,
            dataset=task.name,
            id=example.id,
            sentence=example.sentence,
            label=example.label,
            instruction=instruction,
            prediction=text,
        )
        for example, text in zip(task.test, answers.texts, strict=True)
    ]
