"""Checks every run of a sweep before the first one starts, so that a typo in the seventh variant is found right away.

>>> from nlora.sweeps.expand import read_sweep
>>> _ = Path("sweep.yaml").write_text("base: demo\\nvariants: [nlora, olora]\\nseeds: [1]\\n")
>>> for folder, config in check_sweep(read_sweep("sweep.yaml")).items():
...     print(folder, config.method.name, state_of(folder))
runs/sweep/nlora-seed1 nlora new
runs/sweep/olora-seed1 olora new

Configurations, methods and folders are checked, which takes milliseconds per run. Each run checks its data and model
itself when it starts.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from nlora.config.load import load_config
from nlora.config.schema import Config
from nlora.config.yaml_positions import Document, to_yaml
from nlora.errors import InputErrors, Key, Problem, RunError
from nlora.methods.registry import methods_of
from nlora.runs.atomic import disk_errors, write_text
from nlora.runs.layout import RUN_FILE
from nlora.runs.lock import is_held
from nlora.runs.run_yaml import folder_problem, or_delete, what_differs
from nlora.runs.summary import read_summary
from nlora.sweeps.expand import Base, Sweep, SweepRun

RunState = Literal["new", "unfinished", "complete", "elsewhere"]


def check_sweep(sweep: Sweep) -> dict[Path, Config]:
    """The configuration of every run, by its folder.

    Raises InputErrors with all mistakes of all its runs, each once, with the key of the sweep's file it comes from.
    """
    problems: list[Problem] = []
    if sweep.runs and (wrong := folder_problem(sweep.runs[0].folder)):  # the same for all of them
        problems.append(sweep.places.problem(("output_dir",), wrong))
    configs: dict[Path, Config] = {}
    for run in sweep.runs:
        try:
            loaded = load_config(_base(sweep, run), run.settings)
        except InputErrors as error:
            problems += (_in_sweep(problem, sweep, run.base) for problem in error.problems)
            continue
        config = configs[run.folder] = loaded.config
        base_folder = loaded.base_folder if run.base.source else sweep.path.parent
        try:
            methods_of(config, base_folder)
        except InputErrors as error:  # in a method from a file, which load_config does not run
            problems += map(loaded.places.located, error.problems)
        problems += _folder_problems(run.folder, config)
    if problems:
        raise InputErrors(dict.fromkeys(problems))
    return configs


def _base(sweep: Sweep, run: SweepRun) -> str | Document:
    """The recipe or the file, or the keys in the sweep's file, with their lines."""
    at: Key = ("base",)
    return run.base.source or Document(run.base.values, sweep.places.inside(at, prefix=at))


def _in_sweep(problem: Problem, sweep: Sweep, base: Base) -> Problem:
    """A mistake without a place in the base, such as a missing file, where the sweep's file names the base."""
    if problem.source != base.source or problem.line is not None or problem.key:
        return problem
    return sweep.places.problem(base.at, str(problem))


def base_source(sweep: Sweep, run: SweepRun, folder: Path) -> str:
    """What `nlora run` starts from: the recipe, the file, or the file that `write_base` writes to `folder`."""
    return run.base.source if run.base.source is not None else str(folder / _base_file(sweep, run.base)[0])


def write_base(sweep: Sweep, folder: Path) -> None:
    """Write a base given in the sweep's file as a file of its own, for the commands of its runs."""
    for run in sweep.runs[:1]:  # a base in the sweep's file is the only one
        if run.base.source is None:
            name, text = _base_file(sweep, run.base)
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if not (folder / name).is_file():
                write_text(folder / name, text)


def _base_file(sweep: Sweep, base: Base) -> tuple[str, str]:
    """Name and content, in the form of a run.yaml, so that relative paths refer to the folder of the sweep's file.

    The name is made from the content, so that a changed sweep does not overwrite what an earlier one still reads.
    """
    here = str(sweep.path.parent.absolute())
    text = to_yaml({"config": base.values, "versions": {}, "base_folder": here})
    return f"base-{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml", text


def state_of(folder: Path, tasks: int = 0, *, zero_shot: bool = False) -> RunState:
    """The progress of the run in a folder. elsewhere: another process is working on it.

    tasks: how many the run has; a finished run to which tasks were added since is unfinished again. zero_shot: whether
        scores before any training are wanted; so is a finished run that has none.
    """
    if not (folder / RUN_FILE).is_file():
        return "new"
    if is_held(folder):
        return "elsewhere"
    try:
        summary = read_summary(folder)
    except RunError:
        return "unfinished"
    lacks_scores = zero_shot and summary.zero_shot is None
    is_whole = summary.status == "complete" and len(summary.tasks) >= tasks and not lacks_scores
    return "complete" if is_whole else "unfinished"


def _folder_problems(folder: Path, config: Config) -> list[Problem]:
    """Why an existing folder cannot be this run's."""
    if not (folder / RUN_FILE).is_file():
        return []
    try:
        found = what_differs(folder, config)
    except RunError as error:
        return [Problem("", str(error))]
    if not found:
        return []
    what = f"was started with another configuration ({'; '.join(found)}); give another output_dir"
    return [Problem(str(folder), what + or_delete(folder))]
