"""What an export is to be, and everything that can be checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nlora.config.paths import path_problem
from nlora.errors import InputErrors, Problem, did_you_mean, is_number, shown_number
from nlora.runs.checkpoint import Checkpoint
from nlora.runs.run_yaml import folder_problem

FORMS = {
    "merged": "one model with the updates in its weights",
    "adapter": "one PEFT LoRA adapter that holds the updates of all tasks",
    "adapters": "each task's own PEFT LoRA adapter",
    "sparse": "the entries of the update above a threshold",
}
MERGES = ("sum", "magmax", "slerp", "ties", "dare_ties", "dare_linear", "magnitude_prune")
PRUNING_MERGES = MERGES[3:]
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_DENSITY = 0.5
DEFAULT_EXAMPLES = 32


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of `nlora export`; None where they were left out."""

    form: str
    rank: int | None = None
    threshold: float | None = None
    merge: str = "sum"
    density: float | None = None
    task: str | None = None
    dtype: str | None = None
    examples: int = DEFAULT_EXAMPLES

    @property
    def share_kept(self) -> float:
        """The density of the pruning merges."""
        return DEFAULT_DENSITY if self.density is None else self.density

    def __str__(self) -> str:
        """The model as the command line asks for it: `--as adapter --rank 8`."""
        given = (
            ("--as", self.form),
            ("--rank", self.rank),
            ("--threshold", self.threshold),
            ("--merge", None if self.merge == "sum" else self.merge),
            ("--density", self.density),
            ("--task", self.task),
            ("--dtype", self.dtype),
        )
        return " ".join(f"{option} {value}" for option, value in given if value is not None)

    @property
    def is_exact(self) -> bool:
        """Whether the export computes what the run's model computes, but for rounding."""
        return (
            self.form != "sparse"
            and self.merge == "sum"
            and self.rank is None
            and self.dtype in (None, "float32")
        )


def check_options(options: ExportOptions) -> None:
    """Raises InputErrors with every option that is wrong by itself or does not go with the form."""
    problems = [
        *_unknown("--as", options.form, tuple(FORMS)),
        *_unknown("--merge", options.merge, MERGES),
        *([] if options.dtype is None else _unknown("--dtype", options.dtype, DTYPES)),
    ]
    if not problems:
        problems = [*_numbers(options), *_without_effect(options)]
    if problems:
        raise InputErrors(problems)


def _unknown(option: str, value: str, known: tuple[str, ...]) -> list[Problem]:
    if value in known:
        return []
    hint = did_you_mean(value, known) or f"; there are {', '.join(known)}"
    return [Problem(option, f"unknown value '{value}'{hint}")]


def _numbers(options: ExportOptions) -> list[Problem]:
    rank, threshold, density, examples = options.rank, options.threshold, options.density, options.examples
    problems = []
    if rank is not None and (type(rank) is not int or rank < 1):
        problems.append(Problem("--rank", f"must be a whole number >= 1, not {rank!r}"))
    if threshold is not None and not (is_number(threshold) and math.isfinite(threshold) and threshold >= 0):
        problems.append(Problem("--threshold", f"must be a number >= 0, not {shown_number(threshold)}"))
    if density is not None and not (is_number(density) and 0 < density <= 1):
        problems.append(Problem("--density", f"must be a share > 0 and <= 1, not {shown_number(density)}"))
    if type(examples) is not int or examples < 1:
        problems.append(Problem("--examples", f"must be a whole number >= 1, not {examples!r}"))
    return problems


def _without_effect(options: ExportOptions) -> list[Problem]:
    """Options that the form or the merge would ignore, and the one that it needs."""
    form, problems = options.form, []
    for option, value, forms in (
        ("--rank", options.rank, ("adapter",)),
        ("--threshold", options.threshold, ("sparse",)),
        ("--dtype", options.dtype, ("merged",)),
    ):
        if value is not None and form not in forms:
            problems.append(Problem(option, f"is for --as {forms[0]}, not for --as {form}; leave it out"))
    if form == "adapters" and options.merge != "sum":
        problems.append(
            Problem("--merge", "--as adapters leaves the adapters apart; leave it out, or use --as adapter")
        )
    if options.density is not None and options.merge not in PRUNING_MERGES:
        problems.append(
            Problem("--density", f"is for --merge {', '.join(PRUNING_MERGES)}, not for {options.merge}")
        )
    if form == "adapter" and options.merge != "sum" and options.rank is None:
        problems.append(
            Problem("--rank", f"the result of --merge {options.merge} has no low rank; give the adapter one")
        )
    return problems


def check_method(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """The index of the task whose model is exported; 0 if all tasks have the same.

    Raises InputErrors if the stage's method cannot be exported in this form, or --task is missing or wrong.
    """
    method, form, label = checkpoint.method, options.form, checkpoint.config.method.label
    if not checkpoint.stage:
        raise InputErrors([Problem("--stage", "0 is the backbone before any training; nothing to export")])
    if method.trains == "prompts":
        what = f"{label} trains soft prompts, which no export holds yet; use nlora predict"
        raise InputErrors([Problem("--as", what)])
    if method.trains == "weights":
        if form != "merged":
            what = f"{label} trains the weights themselves and has no adapters; use --as merged"
            raise InputErrors([Problem("--as", what)])
        if options.merge != "sum":
            what = f"{label} has one model and no updates to merge; leave it out"
            raise InputErrors([Problem("--merge", what)])
    if method.merges:
        if form == "adapters":
            what = f"{label} answers with a merge that no stage's adapter holds; use --as adapter or merged"
            raise InputErrors([Problem("--as", what)])
        if options.merge != "sum":
            raise InputErrors([Problem("--merge", f"{label} merges the updates itself; leave it out")])
    names = [task.name for task in checkpoint.config.tasks]
    if options.task is not None:
        if options.task not in names:
            hint = did_you_mean(options.task, names) or f"; the tasks are {', '.join(names)}"
            raise InputErrors([Problem("--task", f"no task of the run is called '{options.task}'{hint}")])
        if form == "adapters" or not method.needs_task:
            why = (
                "--as adapters exports the adapters of all tasks"
                if form == "adapters"
                else f"{label} has one model for all tasks"
            )
            raise InputErrors([Problem("--task", f"{why}; leave it out")])
        if (index := names.index(options.task)) >= checkpoint.stage:
            what = f"'{options.task}' is not learned yet at stage {checkpoint.stage}; use --stage {index + 1}"
            raise InputErrors([Problem("--task", what)])
        return index
    if method.needs_task and form != "adapters":
        what = f"{label} has a model for each task; say which, as --task {names[0]}"
        raise InputErrors([Problem("--task", what)])
    return 0


def check_folder(out: Path) -> None:
    """Raises InputErrors if an export cannot be written to this folder."""
    problem = path_problem(str(out))
    if not problem and out.is_dir():
        if any(out.iterdir()):
            problem = f"{out} holds something already; choose another folder, or delete it"
        # The finished folder replaces the empty one, which these two do not allow.
        elif out.samefile(Path()):
            problem = f"{out} is the current folder; name a new folder in it"
        elif out.resolve().is_mount():
            problem = f"{out} is a mount point; name a new folder in it"
    # The folder that a link points to may be inside a run, too.
    problem = problem or folder_problem(out) or folder_problem(out.resolve())
    if problem:
        raise InputErrors([Problem("OUT", problem)])
