"""Loads the tasks of a run's configuration, and reports all mistakes in them at once.

Each entry of `tasks` is a data set of `data` (a folder in the released layout, or the built-in tasks), or consists of
files. `evaluate.split: validation` and both `max_samples` are applied here, with seeds that depend only on the run's
seed and the task's name, so that a task has the same examples at any position in the sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nlora.config.characters import looks, told_apart
from nlora.config.paths import found_in, is_folder, looked_in
from nlora.config.schema import BUILTIN, Config
from nlora.config.task_source import TaskSource
from nlora.data import builtin, cl_benchmark
from nlora.data.digest import digest
from nlora.data.fields import Fields
from nlora.data.files import read_examples
from nlora.data.scorers import with_metric
from nlora.data.splits import draw_seed, hold_out, sample, split_off
from nlora.data.task import Example, Task
from nlora.errors import InputErrors, Key, Problem, did_you_mean


def load_tasks(
    config: Config,
    *,
    base_folder: Path | None = None,
    test_only: bool = False,
) -> list[Task]:
    """The tasks of a run, in the order in which they are learned.

    base_folder: the folder of the configuration file. Relative paths are looked up in the current folder, then there.
    test_only: do not read training files, unless the test examples come from them.

    Raises InputErrors with the problems of all tasks, each with its key (`tasks.2.train`, counted from 0) or its file
    and line; FetchError if the built-in tasks cannot be downloaded; MissingExtraError if a source needs a package
    that is not installed.
    """
    folders = [Path(), *([base_folder] if base_folder is not None else [])]
    problems: list[Problem] = []
    benchmark = _benchmark_folder(config, folders, problems)
    absent = _absent(config.tasks, benchmark)
    splits = ("test",) if test_only and config.evaluate.split == "test" else ("train", "test")
    tasks = []
    for i, source in enumerate(config.tasks):
        key: Key = ("tasks", i)
        problems += _check_labels(source.labels, (*key, "labels"))
        try:
            if source.train is not None or source.test is not None:
                task = _from_files(source, splits, folders, key)
            elif source.adapter is not None and config.data is None:
                task = Task(source.name, source.type or source.name, "", source.labels, (), ())
            elif config.data == BUILTIN:
                task = _from_builtin(source, key)
            elif benchmark is not None:
                task = _from_benchmark(source, benchmark, key, keep_unlabeled=config.protocol == "released")
            else:
                if config.data is None:
                    what = f"'{source.name}' has no 'train' and 'test' files, and 'data' names no benchmark"
                    problems.append(Problem.at(key, f"{what}; set one of the two"))
                continue  # a missing folder is reported once, not for every task
            if source.adapter is not None:
                task = replace(task, train=())
            elif not test_only and config.evaluate.split == "test" and _same_examples(task):
                problems.append(_scored_on_train(source, key))
            tasks.append(_limit(with_metric(task, source, folders, key), config))
        except InputErrors as error:
            way_out = _without(config.tasks, absent) if i in absent else ""
            problems += [replace(p, what=p.what + way_out) for p in error.problems]
    if problems:
        raise InputErrors(problems)
    return tasks


def _absent(sources: Sequence[TaskSource], benchmark: Path | None) -> frozenset[int]:
    """The tasks that should be data sets of the benchmark's folder, but are not there."""
    if benchmark is None:
        return frozenset()
    return frozenset(
        i
        for i, source in enumerate(sources)
        if source.train is None
        and source.adapter is None
        and not cl_benchmark.is_there(benchmark, source.name, source.type)
    )


def _without(sources: Sequence[TaskSource], absent: frozenset[int]) -> str:
    """How to run the tasks that remain without the absent data sets; empty if there are none."""
    left = [source for i, source in enumerate(sources) if i not in absent]
    if not left:
        return ""
    if any(source.model_fields_set - {"name"} for source in left):  # an override would drop them
        return f" (or leave it out; {', '.join(source.name for source in left)} would remain)"
    return f" (or leave it out: 'tasks=[{', '.join(source.name for source in left)}]')"


def _check_labels(labels: Sequence[str] | None, key: Key) -> list[Problem]:
    """The problems of a label set. Scoring ignores case, so labels must differ in more than case."""
    if labels is None:
        return []
    if len(labels) < 2:
        return [Problem.at(key, f"{len(labels)} labels; a choice needs two, and free text has no 'labels'")]
    problems = []
    for word in labels:
        if word != word.strip() or not word:
            what = "begins or ends with a space" if word.strip() else "is empty"
            problems.append(Problem.at(key, f"label '{word}' {what}"))
    seen: dict[str, int] = {}
    seen_alike: dict[str, int] = {}
    for i, word in enumerate(labels):
        alike = seen_alike.setdefault(looks(word).casefold(), i)
        if seen.setdefault(word.strip().casefold(), i) != i:
            problems.append(Problem.at(key, f"duplicate label '{word}' (scoring ignores case)"))
        elif alike != i:
            what = f"label '{word}' only looks like '{labels[alike]}': {told_apart(word, labels[alike])}"
            problems.append(Problem.at(key, f"{what}; keep one of them"))
    return problems


def _benchmark_folder(config: Config, folders: Sequence[Path], problems: list[Problem]) -> Path | None:
    """The folder that `data` names; None if it names none, or, with a problem added, if there is none."""
    if config.data is None or config.data == BUILTIN or all(s.train or s.adapter for s in config.tasks):
        return None
    found = found_in(folders, config.data, is_folder)
    if found is None:
        looked = looked_in(folders, config.data)
        hint = did_you_mean(BUILTIN if config.data == "embedded" else config.data, [BUILTIN])
        way_out = f"; use a folder in the released layout, or '{BUILTIN}'; {cl_benchmark.ORIGIN}"
        problems.append(Problem.at(("data",), f"no such folder: {config.data}{looked}{hint or way_out}"))
    return found


def _same_examples(task: Task) -> bool:
    """Whether the test examples are the training examples, in any order."""
    train, test = ([(e.sentence, e.label) for e in split] for split in (task.train, task.test))
    return len(train) == len(test) and (train == test or sorted(train) == sorted(test))


def _scored_on_train(source: TaskSource, key: Key) -> Problem:
    what = f"the test examples of task '{source.name}' are its training examples, so its score would mean nothing"
    return Problem.at((*key, "test"), f"{what}; use others, or hold some out with test_share")


def _from_files(source: TaskSource, splits: Sequence[str], folders: Sequence[Path], key: Key) -> Task:
    examples: dict[str, tuple[Example, ...]] = {"train": (), "test": ()}
    problems: list[Problem] = []
    for split in splits if source.test_share is None else ("train",):
        if (
            getattr(source, split) is None
        ):  # an adapter's task has no training examples, perhaps no test examples
            continue
        examples[split], found = read_examples(
            getattr(source, split),
            labels=source.labels,
            folders=folders,
            split=split,
            quoting=source.quoting,
            fields=Fields.of(source),
            key=(*key, split),
        )
        problems += found
    problems += _chat_problems(source, examples, key)
    if problems:
        raise InputErrors(problems)
    task = Task(
        name=source.name,
        type=source.type or source.name,
        instruction=(source.instruction or "").strip(),
        labels=source.labels,
        train=examples["train"],
        test=examples["test"],
    )
    return task if source.test_share is None else split_off(task, source.test_share, key)


def _chat_problems(source: TaskSource, examples: Mapping[str, Sequence[Example]], key: Key) -> list[Problem]:
    """What is wrong with a task of conversations as a whole."""
    found = {split: some[0].chat for split, some in examples.items() if some}
    kinds = {example.chat for some in examples.values() for example in some}
    if len(kinds) > 1:
        kind = "a conversation in some rows and a text in others"
        if len(set(found.values())) > 1:
            words = {True: "conversations", False: "texts"}
            kind = " and ".join(f"{words[chat]} in '{split}'" for split, chat in found.items())
        return [Problem.at(key, f"task '{source.name}' has {kind}; give it one of the two")]
    if kinds == {True} and source.instruction:
        what = f"the rows of task '{source.name}' are conversations, which get no instruction"
        return [Problem.at((*key, "instruction"), f"{what}; leave it out, or write it into a system turn")]
    return []


def _from_benchmark(source: TaskSource, folder: Path, key: Key, *, keep_unlabeled: bool) -> Task:
    task = cl_benchmark.read(
        folder,
        source.name,
        type=source.type,
        instruction=None if source.instruction is None else source.instruction.strip(),
        labels=source.labels,
        keep_unlabeled=keep_unlabeled,
        key=key,
    )
    if problems := _check_labels(task.labels, key):
        raise InputErrors(problems)
    return task


def _from_builtin(source: TaskSource, key: Key) -> Task:
    if source.labels is not None:
        what = "the built-in tasks have fixed labels; leave it out"
        raise InputErrors([Problem.at((*key, "labels"), what)])
    task = builtin.read(source.name, key)
    return replace(
        task,
        type=source.type or task.type,
        instruction=task.instruction if source.instruction is None else source.instruction.strip(),
    )


def _limit(task: Task, config: Config) -> Task:
    """The task with the validation split and the samples of the configuration."""
    whole = task
    held_out = config.evaluate.split == "validation"
    if held_out and not task.train:  # an adapter from elsewhere, with nothing to hold out, is not scored
        task = replace(task, test=())
    elif held_out:
        task = hold_out(
            task, config.evaluate.validation_share, draw_seed(config.seed, task.name, "validation")
        )
    options, test = config.train_options(task.name), config.evaluate.max_samples
    train, stops = options.max_samples, options.early_stopping is not None and bool(task.train)
    if train is not None:
        task = replace(task, train=sample(task.train, train, draw_seed(config.seed, task.name, "train")))
    if stops:
        share, seed = config.evaluate.validation_share, draw_seed(config.seed, task.name, "early_stopping")
        split = hold_out(task, share, seed, "leave train.early_stopping out")
        task = replace(task, train=split.train, validation=split.test)
    if test is not None:
        task = replace(task, test=sample(task.test, test, draw_seed(config.seed, task.name, "test")))
    source = whole.train if held_out else whole.test
    return replace(
        task,
        drawn_from=(
            digest(whole.train) if held_out or train is not None or stops else None,
            digest(source) if held_out or test is not None else None,
        ),
    )
