"""From the answers of a stage to its files: the released result files, and the stage's row of R."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nlora.data.prompts import frame, names, prompt
from nlora.data.task import Task
from nlora.errors import InputErrors, Problem
from nlora.evaluation.answer import by_label, graded, percent
from nlora.evaluation.choices import Metric
from nlora.evaluation.evaluator import Answers, mean_answer_tokens
from nlora.models.processes import by_main
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.general_scores import GeneralScores
from nlora.runs.released_files import (
    Prediction,
    label_results,
    predict_results,
    train_results,
    write_results,
)
from nlora.runs.routing import Routing
from nlora.runs.stage_examples import StageExamples
from nlora.runs.summary import StageRecord
from nlora.runs.task_records import TaskRecord, changes, task_record
from nlora.training.result import TrainResult


@by_main
def task_records(run: RunFolder, tasks: Sequence[Task]) -> dict[str, TaskRecord]:
    """The records of a run's tasks as they are now, by name.

    A run that an older nlora started keeps that version's metric, exact match, so that a column of R has one metric.

    Raises InputErrors if a committed stage was trained or scored on other examples, with another prompt, or by another
    metric.
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
    """The metric, unless it is set, of tasks in a run that an older version started; None: as in a new run."""
    return None if all(records for _, records in scored) else "exact_match"


def _stage_in_words(stage: int) -> str:
    return f"stage {stage}" if stage else "the untrained model"


def score(task: Task, answers: Answers, metric: Metric) -> float:
    """An entry of R, in percent, by the given metric."""
    return percent(graded(task, answers.texts), metric)


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
    notes: Sequence[str] = (),
    examples: StageExamples | None = None,
    general: GeneralScores | None = None,
) -> dict[str, float]:
    """Write a stage's result files and its record into its folder; returns its scores by task.

    notes: from `nlora.runs.stage_notes`. examples: what it was trained on. general: what
    its model knew before.
    answers, records: by task name. Tasks may be decoded differently (free text is always generated); the files
    list every kind, joined by '+'.
    """
    predictions = {
        task.name: predictions_of(task, answers[task.name]) for task in tasks if task.name in answers
    }
    if answers:  # an adapter from elsewhere may come without test examples
        _write_released(folder, tasks, answers, predictions, result)
    seconds = sum(a.seconds for a in answers.values())
    replays = examples if examples is not None and examples.replayed and not is_adopted else None
    scores = {
        name: percent([p.answer for p in given], records[name].metric) for name, given in predictions.items()
    }
    write_stage_record(
        folder,
        StageRecord(
            stage=stage,
            task=tasks[stage - 1].name,
            scores=scores,
            train_seconds=result.seconds,
            prepare_seconds=result.prepare_seconds,
            evaluate_seconds=seconds,
            train_samples_per_second=result.samples_per_second,
            peak_memory_bytes=result.peak_memory_bytes,
            trained_parameters=result.trained_parameters,
            best_epoch=result.best_epoch,
            best_score=result.best_score,
            is_adopted=is_adopted,
            replayed=dict(replays.replayed) if replays else {},
            replay_passes=result.epochs * replays.passes if replays else None,
            notes=tuple(notes),
            tasks={name: records[name] for name in answers},
            routing=Routing.of(
                [task.name for task in tasks[:stage]],
                {name: given.guesses for name, given in answers.items() if given.guesses is not None},
            ),
            general=general,
        ),
    )
    return scores


def _write_released(
    folder: Path,
    tasks: Sequence[Task],
    answers: Mapping[str, Answers],
    predictions: Mapping[str, Sequence[Prediction]],
    result: TrainResult,
) -> None:
    given = list(answers.values())
    each = [p for some in predictions.values() for p in some]
    predict = predict_results(
        each,
        decode="+".join(sorted({a.decode for a in given})),
        runtime_seconds=sum(a.seconds for a in given),
        steps=sum(a.batches for a in given),
        epochs=result.epochs,
        global_step=result.steps,
        mean_tokens=mean_answer_tokens(given),
        by_label={
            task.name: _label_results(task, predictions[task.name])
            for task in tasks
            if task.labels and task.name in predictions
        },
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
    prompted = (p for task in tasks for p in with_prompts(task, predictions.get(task.name, ())))
    write_results(folder, train, predict, prompted)


def _label_results(task: Task, predictions: Sequence[Prediction]) -> dict[str, Any]:
    answers = [p.answer for p in predictions]
    return label_results(by_label(task, answers), sum(answer.is_outside for answer in answers))


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
    """Each answer with its example, as in the released files, but without its prompt, which may be long."""
    before, after = frame(task)
    instruction = f"{before.removeprefix(names(task))}{{0}}{after}"  # the released field
    guesses = answers.guesses or [None] * len(task.test)
    return [
        Prediction(
            type=task.type,
            dataset=task.name,
            id=example.id,
            sentence=example.sentence,
            label=example.label,
            instruction=instruction,
            prediction=answer.prediction,
            exact=answer.exact,
            others=answer.others,
            is_outside=answer.is_outside,
            own_score=answer.own_score,
            routed_to=guess,
        )
        for example, answer, guess in zip(task.test, graded(task, answers.texts), guesses, strict=True)
    ]


def with_prompts(task: Task, predictions: Sequence[Prediction]) -> Iterator[Prediction]:
    """The predictions of a task with their prompts, made one at a time."""
    for example, prediction in zip(task.test, predictions, strict=False):
        yield replace(prediction, prompt=prompt(task, example))


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
