"""Turns what a stage produced into its files: the released result files, and the stage's row of R.

facts = facts_of_run(run, plan.tasks)                                     # refuses what changed under the run
scores = write_stage(folder, plan.tasks, stage, answers, result, facts)   # one score per answered task
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nlora.data.prompts import TAIL, head, names, prompt
from nlora.data.task import Task
from nlora.errors import InputErrors, Problem
from nlora.evaluation.evaluator import Answers
from nlora.evaluation.text_metrics import as_they_are, exact_match, free_text_score, told_apart
from nlora.runs.released_files import Prediction, predict_results, train_results, write_results
from nlora.runs.folder import RunFolder, write_stage_record
from nlora.runs.summary import StageRecord
from nlora.evaluation.choices import Metric
from nlora.runs.task_facts import TaskFacts, changes, facts_of
from nlora.training.trainer import TrainResult


def accuracy(task: Task, answers: Answers) -> float:
    """Exact match in percent of the task's test examples, after the released normalization.

    Labels that this would make one are compared as they are.
    """
    apart = told_apart(task.labels or ())
    pairs = zip(answers.texts, (example.label for example in task.test), strict=True)
    hits = sum(exact_match(*(pair if apart else as_they_are(*pair))) for pair in pairs)
    return 100.0 * hits / len(task.test)


def facts_of_run(run: RunFolder, tasks: Sequence[Task]) -> dict[str, TaskFacts]:
    """The tasks of a run as they are now, by name.

    A run that an older nlora began goes on with that version's metric, exact match, so that a column of R is of one.

    Raises InputErrors where a stage that is there was trained or scored on others, or asked with another prompt.
    """
    scored, trained = run.scored_facts(), run.trained_facts()
    now = {task.name: facts_of(task, run.config, _metric_so_far(scored)) for task in tasks}
    problems: list[Problem] = []
    for number, name in enumerate(now, start=1):
        first = next(((_who(stage), facts[name]) for stage, facts in scored if name in facts), None)
        own = (_who(number), trained[number]) if number in trained else None
        problems += changes(name, first, own, now[name])
    if problems:
        raise InputErrors(problems)
    return now


def asked_facts(run: RunFolder, task: Task) -> tuple[TaskFacts | None, TaskFacts]:
    """A task of the run as it was when it was first scored (None: not known), and as it is now."""
    scored = run.scored_facts()
    then = next((facts[task.name] for _, facts in scored if task.name in facts), None)
    return then, facts_of(task, run.config, _metric_so_far(scored))


def _metric_so_far(scored: Sequence[tuple[int, Mapping[str, TaskFacts]]]) -> Metric | None:
    """The metric of every task in a run that an older version began; None: each has its own."""
    return None if all(facts for _, facts in scored) else "exact_match"


def _who(stage: int) -> str:
    return f"stage {stage}" if stage else "the untrained model"


def score(task: Task, answers: Answers, metric: Metric) -> float:
    """An entry of R, in percent: by what the task is scored."""
    if metric == "exact_match":
        return accuracy(task, answers)
    return free_text_score(answers.texts, [example.label for example in task.test])


def score_row(
    tasks: Sequence[Task], answers: Mapping[str, Answers], facts: Mapping[str, TaskFacts]
) -> list[float | None]:
    """A row of R: the score on every task of the run, None where it was not asked. facts: by task name."""
    return [
        score(task, answers[task.name], facts[task.name].metric) if task.name in answers else None
        for task in tasks
    ]


def write_stage(
    folder: Path,
    tasks: Sequence[Task],
    stage: int,
    answers: Mapping[str, Answers],
    result: TrainResult,
    facts: Mapping[str, TaskFacts],
) -> list[float | None]:
    """Writes a stage's result files and its record into its folder; returns its row of R.

    answers, facts: by task name. The decodes of the tasks may differ (free text is always generated); the files
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
    row = score_row(tasks, answers, facts)
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
            tasks={name: facts[name] for name in answers},
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
    """Each answer with its example, as the released files have them, and with the prompt that was asked."""
    exact = not told_apart(task.labels or ())
    instruction = f"{head(task).removeprefix(names(task))}{{0}}{TAIL}"  # as the released files have it
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

    None where the stage's predict_results.json is not there or does not hold it.
    """
    try:
        values = json.loads((stage_folder / "predict_results.json").read_text(encoding="utf-8"))
        score, examples = float(values["predict_exact_match"]), int(values["predict_samples"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (
        f"pooled exact match {score:.1f}  (over {examples} test examples of all tasks, as the release prints)"
    )
