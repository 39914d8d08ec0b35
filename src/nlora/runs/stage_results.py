"""From the answers of a stage to its files: the released result files, and the stage's row of R."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nlora.data.prompts import TAIL, head, names, prompt
from nlora.data.task import Task
from nlora.errors import InputErrors, Problem
from nlora.evaluation.choices import Metric
from nlora.evaluation.evaluator import Answers
from nlora.evaluation.text_metrics import as_they_are, exact_match, free_text_score, told_apart
from nlora.models.processes import by_main
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.released_files import Prediction, predict_results, train_results, write_results
from nlora.runs.summary import StageRecord
from nlora.runs.task_records import TaskRecord, changes, task_record
from nlora.training.trainer import TrainResult


def accuracy(task: Task, answers: Answers) -> float:
    """Exact match on the task's test examples, in percent, after the released normalization.

    Labels that normalization would make equal are compared unnormalized.
    """
    apart = told_apart(task.labels or ())
    pairs = zip(answers.texts, (example.label for example in task.test), strict=True)
    hits = sum(exact_match(*(pair if apart else as_they_are(*pair))) for pair in pairs)
    return 100.0 * hits / len(task.test)


@by_main
def task_records(run: RunFolder, tasks: Sequence[Task]) -> dict[str, TaskRecord]:
    """The records of a run's tasks as they are now, by name.

    A run that an older nlora started keeps that version's metric, exact match, so that a column of R has one metric.

    Raises InputErrors if a committed stage was trained or scored on other examples, or with another prompt.
    """
    scored, trained = run.scored_records(), run.trained_records()
    now = {task.name: task_record(task, run.config, _metric_so_far(scored)) for task in tasks}
    problems: list[Problem] = []
    for number, name in enumerate(now, start=1):
        first = next(
            ((_stage_in_words(stage), records[name]) for stage, records in scored if name in records), None
        )
        own = (_stage_in_words(number), trained[number]) if number in trained else None
        problems += changes(name, first, own, now[name])
    if problems:
        raise InputErrors(problems)
    return now


def task_records_then_and_now(run: RunFolder, task: Task) -> tuple[TaskRecord | None, TaskRecord]:
    """The record of a task from when the run first scored it (None if unknown), and its record now."""
    scored = run.scored_records()
    then = next((records[task.name] for _, records in scored if task.name in records), None)
    return then, task_record(task, run.config, _metric_so_far(scored))


def _metric_so_far(scored: Sequence[tuple[int, Mapping[str, TaskRecord]]]) -> Metric | None:
    """The metric of all tasks in a run that an older version started; None if each task has its own."""
    return None if all(records for _, records in scored) else "exact_match"


def _stage_in_words(stage: int) -> str:
    return f"stage {stage}" if stage else "the untrained model"


def score(task: Task, answers: Answers, metric: Metric) -> float:
    """An entry of R, in percent, by the given metric."""
    if metric == "exact_match":
        return accuracy(task, answers)
    return free_text_score(answers.texts, [example.label for example in task.test])


def scores_of(
    tasks: Sequence[Task], answers: Mapping[str, Answers], records: Mapping[str, TaskRecord]
) -> dict[str, float]:
    """A row of R: the score on every answered task, by name. records: by task name."""
    return {
        task.name: score(task, answers[task.name], records[task.name].metric)
        for task in tasks
        if task.name in answers
    }


@by_main
def write_stage(
    folder: Path,
    tasks: Sequence[Task],
    stage: int,
    answers: Mapping[str, Answers],
    result: TrainResult,
    records: Mapping[str, TaskRecord],
    *,
    is_adopted: bool = False,
) -> dict[str, float]:
    """Write a stage's result files and its record into its folder; returns its scores by task.

    answers, records: by task name. Tasks may be decoded differently (free text is always generated); the files
    list every kind, joined by '+'.
    """
    if answers:  # an adapter from elsewhere may come without test examples
        _write_released(folder, tasks, answers, result)
    seconds = sum(a.seconds for a in answers.values())
    scores = scores_of(tasks, answers, records)
    write_stage_record(
        folder,
        StageRecord(
            stage=stage,
            task=tasks[stage - 1].name,
            scores=scores,
            train_seconds=result.seconds,
            evaluate_seconds=seconds,
            train_samples_per_second=result.samples_per_second,
            peak_memory_bytes=result.peak_memory_bytes,
            trained_parameters=result.trained_parameters,
            best_epoch=result.best_epoch,
            best_score=result.best_score,
            is_adopted=is_adopted,
            tasks={name: records[name] for name in answers},
        ),
    )
    return scores


def _write_released(
    folder: Path, tasks: Sequence[Task], answers: Mapping[str, Answers], result: TrainResult
) -> None:
    predictions = [
        p for task in tasks if task.name in answers for p in predictions_of(task, answers[task.name])
    ]
    given = list(answers.values())
    lengths = [(a.answer_tokens, len(a.texts)) for a in given if a.answer_tokens is not None]
    generated = sum(count for _, count in lengths)
    predict = predict_results(
        predictions,
        decode="+".join(sorted({a.decode for a in given})),
        runtime_seconds=sum(a.seconds for a in given),
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
    if result.best_epoch is not None:
        train |= {"train_best_epoch": result.best_epoch, "train_best_score": result.best_score}
    write_results(folder, train, predict, predictions)


@by_main
def write_skipped(folder: Path, tasks: Sequence[Task], stage: int) -> None:
    """Write the record of a stage at which the method trained nothing. Its row of R is empty."""
    record = StageRecord(
        stage=stage,
        task=tasks[stage - 1].name,
        scores={},
        train_seconds=0.0,
        evaluate_seconds=0.0,
        train_samples_per_second=0.0,
        is_skipped=True,
    )
    write_stage_record(folder, record)


def predictions_of(task: Task, answers: Answers) -> list[Prediction]:
    """Each answer with its example, as in the released files, plus the whole prompt."""
    exact = not told_apart(task.labels or ())
    instruction = f"{head(task).removeprefix(names(task))}{{0}}{TAIL}"  # the released field
    return [
        Prediction(
            type=task.type,
            dataset=task.name,
            id=example.id,
            sentence=example.sentence,
            label=example.label,
            instruction=instruction,
            prediction=text,
            prompt=prompt(task, example),
            exact=exact,
        )
        for example, text in zip(task.test, answers.texts, strict=True)
    ]


def pooled_line(stage_folder: Path) -> str | None:
    """The released score of a committed stage in words: exact match pooled over the test examples of all tasks.

    None if the stage's predict_results.json is missing or does not contain it.
    """
    try:
        values = json.loads((stage_folder / "predict_results.json").read_text(encoding="utf-8"))
        score, examples = float(values["predict_exact_match"]), int(values["predict_samples"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"pooled exact match {score:.1f}  (over {examples} test examples of all tasks, as the released code prints)"
