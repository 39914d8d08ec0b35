"""Selects the tasks to evaluate a run on: its own, other data sets of its folder, built-in ones, or files.

A task of the run is selected by its name, and has the test examples that the run scored it on. A YAML file lists tasks
like `tasks` of a configuration, but its entries need no `train`, as nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlora.config.characters import utf8
from nlora.config.messages import problems_in
from nlora.config.paths import found_in, is_folder
from nlora.config.places import Place
from nlora.config.schema import BUILTIN, Config
from nlora.config.task_source import TaskSource
from nlora.config.yaml_positions import read_yaml
from nlora.data import builtin, cl_benchmark
from nlora.data.load import load_tasks
from nlora.data.task import Task
from nlora.errors import InputErrors, Key, Problem, did_you_mean


@dataclass(frozen=True, slots=True)
class SelectedTask:
    """A task without its training examples. index: its position in the run; None: not a task of the run."""

    task: Task
    index: int | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A task as the user named it. place: where. fields: those that the file sets."""

    name: str
    place: Place
    base_folder: Path
    fields: dict[str, Any]


def select_tasks(
    config: Config,
    base_folder: Path,
    *,
    names: Sequence[str] = (),
    file: Path | None = None,
    default: Sequence[str] = (),
    option: str = "--tasks",
) -> list[SelectedTask]:
    """Loads the tasks, in the order in which the user named them.

    base_folder: where relative paths of the configuration are looked up, apart from the current folder.
    names: of the run's tasks, of data sets of `config.data` (also TYPE/name), or of built-in tasks.
    file: a YAML list like `tasks` of a configuration. default: names, if neither is given.
    option: the command line option of the names, for messages.

    Raises InputErrors with all mistakes.
    """
    if not_text := [
        Problem(option, f"the name of a task is text, not {n!r}") for n in names if not isinstance(n, str)
    ]:
        raise InputErrors(not_text)
    entries = [_Entry(name, Place(option), base_folder, {}) for name in names]
    if file is not None:
        entries += _read_entries(file)
    if not entries:
        entries = [_Entry(name, Place(""), base_folder, {}) for name in default]
    problems: list[Problem] = []
    seen: set[str] = set()
    found = []
    for entry in entries:
        try:
            task = _load(config, base_folder, entry)
        except InputErrors as error:
            problems += error.problems
            continue
        if task.name in seen:
            problems.append(entry.place.problem(f"duplicate task '{task.name}'"))
        seen.add(task.name)
        own = [t.name for t in config.tasks]
        found.append(
            SelectedTask(replace(task, train=()), own.index(task.name) if task.name in own else None)
        )
    if problems:
        raise InputErrors(dict.fromkeys(problems))
    return found


def _load(config: Config, base_folder: Path, entry: _Entry) -> Task:
    """One task. Its mistakes name the task, instead of a key in a configuration that the user did not write."""
    fields, data = dict(entry.fields), config.data
    own_files = not fields.keys().isdisjoint({"test", "test_share"})
    if own_files:
        if "train" not in fields and config.evaluate.split == "validation":
            what = f"task '{entry.name}' has no 'train' file to hold out validation examples from; leave --split out"
            raise InputErrors([entry.place.problem(what)])
        source = TaskSource(**{"train": fields.get("test"), **fields, "name": entry.name})
    else:
        found, data = _source(config, base_folder, entry)
        source = found.model_copy(update=fields)
    one = config.model_copy(update={"tasks": (source,), "data": data})
    try:
        folder = entry.base_folder if own_files else base_folder
        (task,) = load_tasks(one, base_folder=folder, test_only=True)
    except InputErrors as error:
        raise InputErrors(
            replace(p, source=f"task {entry.name}", key=p.key[2:]) if p.key[:1] == ("tasks",) else p
            for p in error.problems
        ) from error
    return task


def _source(config: Config, base_folder: Path, entry: _Entry) -> tuple[TaskSource, str | None]:
    """The task of that name (the run's own, a data set, or a built-in task), and the `data` that has it."""
    name = entry.name
    own = {task.name: task for task in config.tasks}
    if name in own:
        return own[name], config.data
    there = _data_sets(config.data, base_folder)
    if name in there or name in {full.split("/")[1] for full in there}:
        kind, _, dataset = name.rpartition("/")
        return TaskSource(name=dataset, type=kind or None), config.data
    if name in builtin.names():
        return TaskSource(name=name), BUILTIN
    known = [*own, *(full.split("/")[1] for full in there), *builtin.names()]
    hint = did_you_mean(name, known) or f"; there are {', '.join(dict.fromkeys(known))}"
    raise InputErrors([entry.place.problem(f"unknown task '{name}'{hint}")])


def _data_sets(data: str | None, base_folder: Path) -> list[str]:
    """`TYPE/name` of every data set in the folder `data`. Raises InputErrors if there is no such folder."""
    if data is None or data == BUILTIN:
        return []
    found = found_in((Path(), base_folder), data, is_folder)
    if found is None:
        raise InputErrors([Problem("data", f"no such folder: {data}; give its current path with --data")])
    return list(cl_benchmark.datasets(found))


def _read_entries(file: Path) -> list[_Entry]:
    """The tasks of a file, with their keys checked; each mistake has its line."""
    try:
        text = utf8(file.read_bytes())
    except FileNotFoundError as error:
        raise InputErrors([Problem("--tasks-file", f"no such file: {file}")]) from error
    except (OSError, ValueError) as error:
        raise InputErrors([Problem("--tasks-file", f"{file} cannot be read ({error})")]) from error
    document = read_yaml(text, str(file))
    data: Any = document.data
    prefix: Key = ()
    if isinstance(data, dict) and isinstance(data.get("tasks"), list):  # a whole configuration
        data, prefix = data["tasks"], ("tasks",)
    if document.problems or not isinstance(data, list) or not data:
        what = "must be a list of tasks, like `tasks` of a configuration"
        raise InputErrors(document.problems or [Problem(str(file), what)])
    problems: list[Problem] = []
    entries = []
    for i, item in enumerate(data):
        fields = {"name": item} if isinstance(item, str) else item
        key = (*prefix, i)
        filled = fields
        if isinstance(fields, dict) and "test" in fields:
            # A test file is enough here. In the check, it takes the place of `train`, and of the run's own adapter.
            fields = {k: value for k, value in fields.items() if k != "adapter"}
            filled = {"train": fields["test"], **fields}
        if found := problems_in(filled, TaskSource, document.places, key):
            problems += found
            continue
        checked = TaskSource.model_validate(filled)
        own = {k: getattr(checked, k) for k in fields if k != "name"}
        entries.append(_Entry(checked.name, document.places.where(key), file.parent, own))
    if problems:
        raise InputErrors(dict.fromkeys(problems))
    return entries
