"""Everything that can be wrong with the values of a configuration, found before any data or model is looked at.

>>> from nlora.config.places import SourceMap
>>> for problem in mistakes({"tasks": ["a"], "method": {"wieght": 1}, "stages": {"b": {}}}, SourceMap("my.yaml")):
...     print(problem)
my.yaml: method.wieght: unknown key; did you mean 'weight'?
my.yaml: stages.b: no task is called 'b'; the tasks are a
"""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import BaseModel

from nlora.config.base_folder import GENERAL_PATHS, TASK_PATHS
from nlora.config.messages import problems_in
from nlora.config.outside_code import is_python_file
from nlora.config.overrides import task_names
from nlora.config.paths import path_problem
from nlora.config.places import SourceMap
from nlora.config.schema import Config
from nlora.config.train_options import TrainOptions
from nlora.errors import InputErrors, Key, Problem, did_you_mean, dotted


def mistakes(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """All that is wrong with a configuration; empty if `Config` and the method's options can be made of it."""
    # output_dir has a default, unless the name it is made from is wrong: one mistake, reported once.
    made_up = () if "output_dir" in data else ("output_dir",)
    problems = problems_in(data, Config, places, counts=lambda path: path != made_up)
    return (
        problems
        + _method_problems(data, places)
        + _name_problems(data, places)
        + _path_problems(data, places)
    )


def _method_problems(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Mistakes in the method's own options, and in what `stages` changes."""
    given = data.get("method", {})
    method = given if isinstance(given, dict) else {"name": given}
    name = method.get("name", Config.model_fields["method"].default.name)
    options: type[BaseModel] | None = None
    problems: list[Problem] = []
    if isinstance(name, str) and not is_python_file(name):  # reading a configuration does not run a file
        try:
            options = _options_of(name)
        except InputErrors as error:
            key = ("method", "name") if given is method else ("method",)
            problems = [places.problem(key, problem.what) for problem in error.problems]
    own = {key: value for key, value in method.items() if key != "name"}
    if options is not None:
        problems += problems_in(own, options, places, ("method",))
    stages = data.get("stages")
    for task, stage in stages.items() if isinstance(stages, dict) else ():
        if not isinstance(stage, dict):
            continue
        at = ("stages", task)
        problems += _stage_problems(
            data.get("train"), stage.get("train"), TrainOptions, places, (*at, "train")
        )
        if options is not None:
            problems += _stage_problems(own, stage.get("method"), options, places, (*at, "method"))
    return problems


def _options_of(name: str) -> type[BaseModel]:
    """The model of a method's own options. Raises InputErrors.

    Methods are plug-ins, found by name at run time: the room that knows them is above this one.
    """
    options: type[BaseModel] = importlib.import_module("nlora.methods.registry").find(name).Options
    return options


def _stage_problems(
    shared: Any, own: Any, model: type[BaseModel], places: SourceMap, at: Key
) -> list[Problem]:
    """Mistakes in the options of a single task, which are complete only when merged with those of all tasks."""
    if not isinstance(own, dict):
        return []
    shared = shared if isinstance(shared, dict) else {}
    own = {key: value for key, value in own.items() if key != "name"}  # Config reports a stage's method.name
    shared_is_right = not problems_in(shared, model, places)
    # A mistake in the shared options is reported there; one of no single key only if these are right.
    return problems_in(
        {**shared, **own}, model, places, at, lambda path: path[0] in own if path else shared_is_right
    )


def _name_problems(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Tasks of the same name, and stages of tasks that do not exist."""
    names = task_names(data)
    problems: list[Problem] = []
    first: dict[str, int] = {}  # by name without case: a folder of the run is named after the task
    for i, name in enumerate(names):
        if name is None or (j := first.setdefault(name.casefold(), i)) == i:
            continue
        same = "is also the name" if names[j] == name else "differs only by case from the name"
        key: Key = ("tasks", i, "name") if isinstance(data["tasks"][i], dict) else ("tasks", i)
        other = dotted(places.own(("tasks", j)))
        problems.append(places.problem(key, f"'{name}' {same} of {other}; rename one"))
    stages = data.get("stages")
    known = [name for name in names if name is not None]
    for name in stages if isinstance(stages, dict) and known else ():
        if isinstance(name, str) and name not in known:
            hint = did_you_mean(name, known) or f"; the tasks are {', '.join(known)}"
            problems.append(places.problem(("stages", name), f"no task is called '{name}'{hint}"))
    return problems


def new_name_problems(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Names that `nlora eval --tasks a,b` could not ask for. Runs from before this was checked may have some."""
    what = "has a comma or spaces around it, and tasks are listed by name with commas; rename the task"
    return [
        places.problem(("tasks", i), f"the name '{name}' {what}")
        for i, name in enumerate(task_names(data))
        if i >= places.adapters and name and (name != name.strip() or "," in name)
    ]


def _path_problems(data: dict[str, Any], places: SourceMap) -> list[Problem]:
    """Paths that no file can have, and names that no folder can be named after."""
    tasks, after = data.get("tasks"), data.get("after")
    given: dict[Key, Any] = {(key,): data.get(key) for key in ("model", "data", "output_dir")}
    if "output_dir" not in data and data.get("name"):  # it is made from the name
        given["name",] = data.get("name")
    given |= {("after", i): path for i, path in enumerate(after if isinstance(after, list) else ())}
    evaluate = data.get("evaluate")
    general = evaluate.get("general") if isinstance(evaluate, dict) else None
    if isinstance(general, dict):
        given |= {("evaluate", "general", key): general.get(key) for key in GENERAL_PATHS}
    for i, task in enumerate(tasks if isinstance(tasks, list) else ()):
        if isinstance(task, dict):
            given |= {("tasks", i, key): task.get(key) for key in TASK_PATHS}
    problems = [
        places.problem(key, what)
        for key, path in given.items()
        if isinstance(path, str)
        and (what := path_problem(path) if path else "is empty; give a path, or leave the key out")
    ]
    for i, name in enumerate(task_names(data)):
        from_path = i < places.adapters  # whose mistake is reported already
        if name is not None and not from_path and (what := path_problem(f"{len(name)}-{name}")):
            problems.append(places.problem(("tasks", i), f"the task's folder has its name, which {what}"))
    return problems
