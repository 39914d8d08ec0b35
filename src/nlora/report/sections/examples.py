"""The sections about single examples, and about how to repeat a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from nlora.report.forgotten_examples import TaskAnswers, asked, find_forgotten
from nlora.report.page_blocks import Block, Example, Examples, Prompts, Section, Table, Text, words
from nlora.report.run_files import RunFiles
from nlora.report.wording import command
from nlora.runs.run_yaml import RUN_FILE

MOST_EXAMPLES = 600
"""On a page, over all runs and tasks; about 700 bytes each."""


def forgotten(runs: Sequence[RunFiles]) -> Section:
    """What was answered right after learning a task and wrong at the end, to be searched."""
    about = (
        "Test examples that were answered right when their task had just been learned, and wrongly at the end. Right "
        "means the same after lower-casing and without punctuation, "
    )
    by_rouge = any(metric == "rougeL" for run in runs for metric in run.summary.metrics.values())
    about += "also of tasks whose score is ROUGE-L." if by_rouge else "as in the accuracy matrix."
    if not all(run.is_complete for run in runs):
        about += " The end of an unfinished run is its last finished stage."
    pairs = sum(max(len(run.stages) - 1, 0) for run in runs)
    most = MOST_EXAMPLES // max(pairs, 1)
    found = {run.label: find_forgotten(run, most) for run in runs}
    answers = [(run.label, task) for run in runs for task in found[run.label]]
    blocks: list[Block] = []
    if not answers:
        why = "Nothing to compare: it takes two finished stages with their predictions."
        blocks.append(Text(why, tone="note"))
    else:
        blocks.append(_counts(answers, many=len(runs) > 1))
        blocks.append(_list(runs, answers))
    prompts = _prompts(runs)
    blocks += [Prompts(prompts)] if prompts else []
    return Section("forgotten", "What was forgotten", about, blocks, "Examples")


def _counts(answers: Sequence[tuple[str, TaskAnswers]], *, many: bool) -> Table:
    rows = tuple(
        words(
            f"{label}, {a.task}" if many else a.task,
            a.total,
            a.right_then,
            a.right_now,
            a.forgotten,
            a.gained,
        )
        for label, a in answers
    )
    columns = (
        "task",
        "test examples",
        "right then",
        "right at the end",
        "forgotten",
        "only right at the end",
    )
    return Table("Answers when just learned and at the end", columns, rows)


def _list(runs: Sequence[RunFiles], answers: Sequence[tuple[str, TaskAnswers]]) -> Examples:
    # One of each task in turn, so that the first ones already show what all tasks lost.
    rounds = zip_longest(*(a.examples for _, a in answers))
    examples: list[Example] = [example for turn in rounds for example in turn if example is not None]
    tasks = tuple(dict.fromkeys(a.task for _, a in answers if a.examples))
    labels = tuple(dict.fromkeys(label for label, a in answers if a.examples))
    total = sum(a.forgotten for _, a in answers)
    return Examples(tuple(examples), total, tasks, labels if len(runs) > 1 else ())


def _prompts(runs: Sequence[RunFiles]) -> tuple[tuple[str, str], ...]:
    """Each task with its prompt; with the run, where runs asked it differently."""
    found = [(run.label, task, text) for run in runs for task, text in asked(run).items()]
    texts: dict[str, set[str]] = {}
    for _, task, text in found:
        texts.setdefault(task, set()).add(text)
    named = ((task if len(texts[task]) == 1 else f"{task}, {label}", text) for label, task, text in found)
    return tuple(dict(named).items())


def repeat(runs: Sequence[RunFiles]) -> Section:
    """Commands and versions."""
    about = (
        "run.yaml holds the configuration with all defaults filled in. A seed repeats a run on the same versions, kind "
        "of machine and number of threads."
    )
    blocks: list[Block] = []
    for run in runs:
        who = f"{run.label}: " if len(runs) > 1 else ""
        when = f" Created {_day(run.created)}." if run.created else ""
        text = f"{who}This repeats the run in another folder.{when}"
        if (run.folder / RUN_FILE).is_file():
            blocks.append(Text(text, code=command(run)))
        else:
            blocks.append(
                Text(f"{who}{RUN_FILE} is not in the folder, so the run cannot be repeated.", tone="note")
            )
    blocks.append(_versions(runs))
    return Section("repeat", "Repeat it", about, blocks, "Repeat")


def _day(created: str) -> str:
    """Date and time to the minute, as UTC has it."""
    return f"{created[:16].replace('T', ' at ')} UTC" if created.endswith("+00:00") else created


def _versions(runs: Sequence[RunFiles]) -> Table:
    names = dict.fromkeys(name for run in runs for name in run.versions)
    labels = tuple(run.label for run in runs) if len(runs) > 1 else ("version",)
    rows = tuple(words(name, *(run.versions.get(name, "–") for run in runs)) for name in names)
    return Table("Versions", ("package", *labels), rows, words=frozenset(range(len(labels) + 1)))
