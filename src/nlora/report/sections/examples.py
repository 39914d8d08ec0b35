"""The sections about forgotten examples, and about how to repeat a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from nlora.evaluation.choices import metric_name
from nlora.evaluation.paired_test import holm, sign_test
from nlora.report.forgotten_examples import TaskAnswers, find_forgotten, prompts_of
from nlora.report.page_blocks import (
    Block,
    Example,
    Examples,
    Fold,
    Prompt,
    Prompts,
    Section,
    Table,
    Text,
    words,
)
from nlora.report.run_files import RunFiles
from nlora.report.wording import joined, listed, repeat_command
from nlora.runs.layout import RUN_FILE

MOST_EXAMPLES = 600
"""On one page, over all runs and tasks; each takes about 700 bytes."""
_MOST_COMMANDS = 3
"""That are shown at once."""


def forgotten(runs: Sequence[RunFiles]) -> Section:
    """A searchable list of the examples answered correctly right after learning a task and incorrectly at the end."""
    about = (
        "Test examples answered correctly when their task had just been learned, and incorrectly at the end. Correct "
        "means equal to the expected answer except for case and punctuation, "
    )
    metrics = dict.fromkeys(metric for run in runs for metric in run.summary.metrics.values())
    others = [metric_name(metric) for metric in metrics if metric != "exact_match"]
    about += f"also in tasks scored by {listed(others)}." if others else "as in the accuracy matrix."
    if not all(run.is_complete for run in runs):
        about += " For an unfinished run, the end is its last finished stage."
    pairs = sum(max(len(run.stages) - 1, 0) for run in runs)
    most = MOST_EXAMPLES // max(pairs, 1)
    found = {run.label: find_forgotten(run, most) for run in runs}
    answers = [(run.label, task) for run in runs for task in found[run.label]]
    blocks: list[Block] = []
    if not answers:
        why = "Nothing to compare yet: this needs two finished stages with their predictions."
        blocks.append(Text(why, tone="note"))
    else:
        blocks.append(_counts(answers, many=len(runs) > 1))
        blocks.append(_list(runs, answers))
    prompts = _prompts(runs)
    blocks += [Prompts(prompts)] if prompts else []
    return Section("forgotten", "Forgotten examples", about, blocks, "Examples")


def _counts(answers: Sequence[tuple[str, TaskAnswers]], *, many: bool) -> Table:
    # Several tasks of a run are several tests.
    p_values: list[float] = []
    for label in dict.fromkeys(label for label, _ in answers):
        p_values += holm([sign_test(a.forgotten, a.gained) for other, a in answers if other == label])
    rows = tuple(
        words(
            joined([label, a.task]) if many else a.task,
            a.total,
            a.right_then,
            a.right_now,
            a.forgotten,
            a.gained,
            "< 0.001" if p < 0.001 else f"{p:.3f}",
        )
        for (label, a), p in zip(answers, p_values, strict=True)
    )
    columns = (
        "task",
        "test examples",
        "correct when learned",
        "correct at the end",
        "forgotten",
        "correct only at the end",
        "p",
    )
    note = (
        "p: exact McNemar test of forgotten against correct only at the end, corrected for the number of the run's "
        "tasks (Holm)."
    )
    return Table("Correct answers when just learned and at the end", columns, rows, note=note)


def _list(runs: Sequence[RunFiles], answers: Sequence[tuple[str, TaskAnswers]]) -> Examples:
    # One of each task in turn, so that the first ones already cover all tasks.
    rounds = zip_longest(*(a.examples for _, a in answers))
    examples: list[Example] = [example for turn in rounds for example in turn if example is not None]
    tasks = tuple(dict.fromkeys(a.task for _, a in answers if a.examples))
    labels = tuple(dict.fromkeys(label for label, a in answers if a.examples))
    total = sum(a.forgotten for _, a in answers)
    return Examples(tuple(examples), total, tasks, labels if len(runs) > 1 else ())


def _prompts(runs: Sequence[RunFiles]) -> tuple[Prompt, ...]:
    """The first example of each task, and of each run if the prompts of a task differ."""
    found = [(run.label, prompt) for run in runs for prompt in prompts_of(run).values()]
    texts: dict[str, set[str]] = {}
    for _, prompt in found:
        texts.setdefault(prompt.task, set()).add(prompt.template)
    named: dict[str, Prompt] = {}
    for label, prompt in found:
        name = prompt.task if len(texts[prompt.task]) == 1 else joined([prompt.task, label])
        named.setdefault(name, replace(prompt, task=name))
    return tuple(named.values())


def repeat(runs: Sequence[RunFiles]) -> Section:
    """Commands and versions."""
    about = (
        "run.yaml holds the configuration with all defaults filled in. The same seed gives the same run on the same "
        "versions, kind of machine and number of threads."
    )
    commands = tuple(_repeated(run, many=len(runs) > 1) for run in runs)
    title = f"The commands of the {len(runs)} runs"
    blocks: list[Block] = [Fold(title, commands)] if len(runs) > _MOST_COMMANDS else [*commands]
    blocks.append(_versions(runs))
    return Section("repeat", "Repeat the run", about, blocks, "Repeat")


def _repeated(run: RunFiles, *, many: bool) -> Text:
    who = f"{run.label}: " if many else ""
    if not (run.folder / RUN_FILE).is_file():
        return Text(f"{who}{RUN_FILE} is not in the folder, so the run cannot be repeated.", tone="note")
    when = f" The run was created on {_day(run.created)}." if run.created else ""
    return Text(f"{who}This command repeats the run in another folder.{when}", code=repeat_command(run))


def _day(created: str) -> str:
    """Date and time to the minute, in UTC."""
    return f"{created[:16].replace('T', ' at ')} UTC" if created.endswith("+00:00") else created


def _versions(runs: Sequence[RunFiles]) -> Table:
    """One column if all runs have the same versions."""
    names = dict.fromkeys(name for run in runs for name in run.versions)
    shown = runs if any(run.versions != runs[0].versions for run in runs) else runs[:1]
    labels = tuple(run.label for run in shown) if len(shown) > 1 else ("version",)
    rows = tuple(words(name, *(run.versions.get(name, "–") for run in shown)) for name in names)
    return Table("Versions", ("package", *labels), rows, words=frozenset(range(len(labels) + 1)))
