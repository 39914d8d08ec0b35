"""What `replay` keeps of each task, as far as it is known before a run, and what rules it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from nlora.config.schema import Config
from nlora.data.columns import TokenizedExamples
from nlora.data.replay import stratified, stratified_within
from nlora.data.task import Task
from nlora.data.tokenize import ExampleTokenizer
from nlora.errors import InputErrors, Problem
from nlora.methods.base import Method
from nlora.runs.stage_examples import Kept


def replay_problems(config: Config, methods: Sequence[Method], tasks: Sequence[Task]) -> list[Problem]:
    """Why these methods and tasks cannot have the configuration's `replay`; empty if they can."""
    if not config.replay.is_on:
        return []
    if any(type(method).examples is not Method.examples for method in methods):
        what = f"{config.method.label} chooses the examples of a stage itself; leave replay out, or take another method"
        return [Problem.at(("replay",), what)]
    largest = max(tasks, key=lambda task: len(task.train))
    if 0 < len(largest.train) < config.replay.memory:
        what = (
            f"{config.replay.memory} is more than the {len(largest.train)} training examples of task {largest.name}, "
            "and no task has more; set it to that or less"
        )
        return [Problem.at(("replay", "memory"), what)]
    return []


def replay_notes(config: Config, tasks: Sequence[Task]) -> list[str]:
    """The settings in words, and which tasks have nothing or less to keep; empty without replay."""
    if not config.replay.is_on:
        return []
    notes = [f"later tasks train on {config.replay.in_words}, too"]
    notes += [
        f"{task.name} has {len(task.train)} training examples, so all of them are kept"
        for task in tasks
        if 0 < len(task.train) < config.replay.memory
    ]
    if bare := [task.name for task in tasks[:-1] if not task.train]:
        notes.append(
            f"nothing is kept of {', '.join(bare)}: an adapter from elsewhere comes without examples"
        )
    return notes


def planned_examples(config: Config, tasks: Sequence[Task], encoder: ExampleTokenizer) -> Kept:
    """What is kept of each task but the last; for the hardest, a sample of the same size.

    Raises InputErrors for a budget of tokens that no example of a task fits into.
    """
    options = config.replay
    if not options.is_on:
        return {}
    trained = [task for task in tasks[:-1] if task.train]
    if options.tokens is None:
        return {task.name: stratified(task, options.memory, config.seed) for task in trained}
    kept, problems = {}, []
    for task in trained:
        tokens = tokens_of_each(task, encoder.encode(task, task.train, all_turns=True), encoder)
        kept[task.name] = stratified_within(task, tokens, options.tokens, config.seed)
        if min(tokens) > options.tokens:
            what = f"{options.tokens} are too few for any example of task {task.name}; the shortest has {min(tokens)}"
            problems.append(Problem.at(("replay", "tokens"), what))
    if problems:
        raise InputErrors(problems)
    return kept


def tokens_of_each(task: Task, rows: TokenizedExamples, encoder: ExampleTokenizer) -> list[int]:
    """The tokens of each training example, answers included. rows: all of them, tokenized."""
    lengths = rows.lengths
    return [sum(lengths[begin:end]) for begin, end in rows_of_each(task, rows, encoder)]


def rows_of_each(task: Task, rows: TokenizedExamples, encoder: ExampleTokenizer) -> Iterator[tuple[int, int]]:
    """(begin, end) of each training example's sequences: of one, but for conversations that have become several."""
    counts = [1] * len(task.train)
    if len(rows) != len(counts):
        counts = [len(encoder.encode(task, [example], all_turns=True)) for example in task.train]
    return pairwise(accumulate(counts, initial=0))
