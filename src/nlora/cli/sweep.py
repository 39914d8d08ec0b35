"""`nlora sweep`: many runs from one file, then one table of them all.

Everything that can be checked cheaply is checked before the first run starts. A failed run does not stop the others, a
finished one is left alone and an unfinished one resumes, so the same command repeats only what is missing. Two sweeps
may use the same folder at once: each leaves alone what the other is running.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from rich.console import Console

from nlora.errors import RunError
from nlora.runs.console import TextConsole

if TYPE_CHECKING:
    from pathlib import Path

    from nlora.runs.summary import Summary
    from nlora.sweeps.check import RunState
    from nlora.sweeps.expand import Sweep, SweepRun
    from nlora.sweeps.processes import Job
    from nlora.sweeps.runners import Event, Outcome, Runner

LOGS = "logs"
TABLE = "table"
_STATES: dict[RunState, str] = {
    "complete": "complete",
    "unfinished": "unfinished",
    "new": "new",
    "elsewhere": "running in another process",
}
"""The states of `nlora.sweeps.check.RunState` in words."""


def sweep(
    file: Annotated[str, typer.Argument(help="The sweep's YAML file (see docs/sweeps.md).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of the sweep's file, such as seeds=[1], or of every run, such as train.epochs=1.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs side by side.", show_default="one per GPU, else 1"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print each run's command, run nothing.")
    ] = False,
) -> None:
    """Run many variants from one file, then print one table; the same command repeats only what is missing."""
    from nlora.cli.bars import WorkConsole
    from nlora.models.processes import refuse
    from nlora.sweeps.check import check_sweep
    from nlora.sweeps.expand import read_sweep

    refuse("nlora sweep")
    checked = read_sweep(file, overrides or [])
    checked = replace(checked, configs=check_sweep(checked))
    if dry_run:
        print_plan(checked, TextConsole())
    elif not run_sweep(checked, runner_of(checked, jobs), WorkConsole()):
        raise typer.Exit(1)


def runner_of(sweep: Sweep, jobs: int | None) -> Runner:
    """What runs the sweep. jobs: runs side by side on this machine; None is one per visible GPU, or 1 without any."""
    from nlora.errors import InputErrors, Problem
    from nlora.sweeps.processes import best_launch
    from nlora.sweeps.runners import LocalRunner, environments, visible_gpus

    processes = sweep.processes
    if sweep.runner == "local":
        gpus = visible_gpus()
        if gpus and len(gpus) < processes:
            what = f"{processes} processes need a GPU each, but only {len(gpus)} can be seen"
            raise InputErrors([sweep.places.problem(("processes",), what)])
        usable = gpus[: len(gpus) // processes * processes]
        places = jobs or len(usable) // processes or 1
        return LocalRunner(places, environments(places, usable, processes), best_launch(processes))
    if jobs is not None:
        what = f"is for runner: local; the keys of {sweep.runner} in the sweep's file say what a run needs"
        raise InputErrors([Problem("--jobs", what)])
    try:
        if sweep.runner == "ray":
            from nlora.sweeps.ray_runner import RayRunner

            return RayRunner(sweep.ray, processes)
        from nlora.sweeps.slurm_runner import SlurmRunner

        return SlurmRunner(sweep.slurm, sweep.output_dir / "slurm", processes=processes)
    except InputErrors as error:
        raise InputErrors(map(sweep.places.located, error.problems)) from error


def run_sweep(sweep: Sweep, runner: Runner, console: Console) -> bool:
    """Run what is missing, print and write the table; returns whether no run failed."""
    from nlora.runs.signals import stopped_like_ctrl_c
    from nlora.sweeps.check import write_base

    write_base(sweep, sweep.output_dir)
    progress = _Progress(sweep, console)
    try:
        with stopped_like_ctrl_c(), closing(runner.events(jobs_of(sweep))) as events:
            for event in events:
                progress.tell(event)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command resumes with what is missing") from error
    finally:  # also after Ctrl-C: the runs that are done
        console.print()
        unwritten = _show_table(sweep, console)
    progress.print_failures()
    if unwritten is not None and not progress.failed:
        raise unwritten
    if unwritten is not None:
        console.print(f"error: {unwritten}", markup=False, highlight=False, soft_wrap=True)
    return not progress.failed


def print_plan(sweep: Sweep, console: Console) -> None:
    """Every run with its state and the command that runs it by hand."""
    import shlex

    from nlora.sweeps.check import base_source, state_of

    for run in sweep.runs:
        command = shlex.join(["nlora", *_arguments(sweep, run)])
        for line in (
            f"{run.folder.name} ({_STATES[state_of(run.folder, **_wanted(sweep, run))]})",
            f"  {command}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if sweep.runs and sweep.runs[0].base.source is None:
        base = base_source(sweep, sweep.runs[0], sweep.output_dir)
        note = f"{base}, with the keys under base, is written when the sweep starts"
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(_counted(sweep), highlight=False)


def jobs_of(sweep: Sweep) -> list[Job]:
    """Each run with its arguments and its log."""
    from nlora.sweeps.processes import Job

    logs = sweep.output_dir / LOGS
    return [
        Job(
            run.folder.name,
            _arguments(sweep, run),
            logs / f"{run.folder.name}.log",
            run.folder,
            **_wanted(sweep, run),
        )
        for run in sweep.runs
    ]


def _arguments(sweep: Sweep, run: SweepRun) -> tuple[str, ...]:
    from nlora.sweeps.check import base_source

    several = ("--processes", str(sweep.processes)) if sweep.processes > 1 else ()
    return ("run", base_source(sweep, run, sweep.output_dir), *run.overrides, *several)


class _Wanted(TypedDict):
    """What a finished run has: how many tasks, and whether scores before any training."""

    tasks: int
    zero_shot: bool


def _wanted(sweep: Sweep, run: SweepRun) -> _Wanted:
    """No tasks if the run's configuration was not checked."""
    config = sweep.configs.get(run.folder)
    if config is None:
        return {"tasks": 0, "zero_shot": False}
    return {"tasks": len(config.tasks), "zero_shot": config.evaluate.zero_shot}


class _Progress:
    """Prints which run starts and how each one ended."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._console = console
        self._folders = {run.folder.name: run.folder for run in sweep.runs}
        self._left = len(sweep.runs)
        self._done = 0
        self.failed: list[Outcome] = []
        self._say(f"{sweep.name}: {_counted(sweep)}; logs in {sweep.output_dir / LOGS}")

    def tell(self, event: Event) -> None:
        """Print what happened to a run."""
        from nlora.sweeps.runners import Found, Outcome

        if isinstance(event, Outcome):
            self._ended(event)
        elif not isinstance(event, Found):
            self._say(f"{event.job.name}: {event.why}; starts again")
        elif event.starts:
            where = f" on {event.node}" if event.node else ""
            self._say(f"{event.job.name}: {'resumed' if event.state == 'unfinished' else 'started'}{where}")
        else:
            self._left -= 1
            self._done += event.state == "complete"
            self._say(f"{event.job.name}: {_STATES[event.state]}, left alone")

    def _ended(self, outcome: Outcome) -> None:
        from nlora.report.formatting import duration

        self._left -= 1
        name = outcome.job.name
        if outcome.status == 0:
            self._done += 1
            summary = _summary(self._folders[name])
            accuracy = None if summary is None else summary.average_accuracy
            scored = "" if accuracy is None else f", average accuracy {accuracy:.1f}"
            what = f"done in {duration(outcome.seconds)}{scored}"
        else:
            self.failed.append(outcome)
            what = f"failed after {duration(outcome.seconds)}: {outcome.error}"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        self._say(f"{name}: {what} ({self._done} done{failed}, {self._left} left)")

    def print_failures(self) -> None:
        """Print the failed runs, each with its error and its log."""
        if self.failed:
            self._say(f"\n{len(self.failed)} of {len(self._folders)} runs failed:")
        for outcome in self.failed:
            self._say(f"{outcome.job.name}: {outcome.error} (in {outcome.job.log})")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _counted(sweep: Sweep) -> str:
    """`22 runs, 5 complete, 17 new`."""
    from nlora.sweeps.check import state_of

    count = Counter(state_of(run.folder, **_wanted(sweep, run)) for run in sweep.runs)
    runs = f"{len(sweep.runs)} run{'s' if len(sweep.runs) != 1 else ''}"
    return ", ".join([runs, *(f"{count[state]} {word}" for state, word in _STATES.items() if count[state])])


def _summary(folder: Path) -> Summary | None:
    """A run's summary; None if there is none (yet), or a broken one, which the run itself reports."""
    from nlora.errors import RunError
    from nlora.runs.summary import SUMMARY_FILE, read_summary

    try:
        return read_summary(folder) if (folder / SUMMARY_FILE).is_file() else None
    except RunError:
        return None


def _show_table(sweep: Sweep, console: Console) -> RunError | None:
    """Print the table of the runs so far, and write it next to them in every format; returns why that failed."""
    from nlora.report.comparison import compare
    from nlora.report.comparison_formats import SUFFIXES, written
    from nlora.report.comparison_table import ComparisonView
    from nlora.runs.atomic import write_text

    found = [(run.folder, summary) for run in sweep.runs if (summary := _summary(run.folder)) is not None]
    if not found:
        return None
    comparison = compare(found)
    console.print(ComparisonView(comparison))
    try:
        for suffix, format_ in SUFFIXES.items():
            path = sweep.output_dir / f"{TABLE}{suffix}"
            write_text(path, written(comparison, format_))
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    except RunError as error:  # after what is said about the runs
        return error
    return None
