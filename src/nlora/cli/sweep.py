"""`nlora sweep`: many runs from one file, whatever becomes of single ones, and one table of them all.

    good = sweep_command("five-tasks.yaml", ["seeds=[1]"], jobs=2, dry_run=False, console=Console())

Everything that can be checked cheaply is checked before the first run starts. A finished run is left alone, an
unfinished one goes on, a failed one does not stop the others; so the same command repeats only what is missing. Two
sweeps of the same folder may run at once: each leaves alone what the other is running.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from nlora.cli.signals import ended_like_ctrl_c
from nlora.errors import InputErrors, Problem, RunError
from nlora.report.comparison import Comparison, compare
from nlora.report.comparison_formats import SUFFIXES, written
from nlora.report.comparison_table import ComparisonView
from nlora.report.formatting import duration
from nlora.runs.atomic import write_text
from nlora.runs.summary import SUMMARY_FILE, Summary, read_summary
from nlora.sweeps.check import RunState, base_source, check_sweep, state_of, write_base
from nlora.sweeps.expand import Sweep, SweepRun, read_sweep
from nlora.sweeps.runners import Job, LocalRunner, Outcome, RayRunner, Runner, environments, visible_gpus

LOGS = "logs"
TABLE = "table"
_STATES: dict[RunState, str] = {
    "complete": "complete",
    "unfinished": "unfinished",
    "new": "new",
    "elsewhere": "running in another process",
}


def sweep_command(
    file: str,
    overrides: Sequence[str],
    *,
    jobs: int | None,
    dry_run: bool,
    console: Console,
    runner: Runner | None = None,
) -> bool:
    """Run what is missing of a sweep, print and write the table; returns whether no run failed.

    jobs: runs side by side on this machine; None: one for each visible GPU, one without any.
    runner: what runs them; None: what the file asks for.

    Raises InputErrors, with the mistakes of all runs, before anything starts.
    """
    sweep = read_sweep(file, overrides)
    check_sweep(sweep)
    if dry_run:
        _print_plan(sweep, console)
        return True
    runner = runner or _runner(sweep, jobs)
    write_base(sweep, sweep.output_dir)
    progress = _Progress(sweep, console)
    try:
        with ended_like_ctrl_c(), closing(runner.outcomes(jobs_of(sweep), progress.begin)) as outcomes:
            for outcome in outcomes:
                progress.ended(outcome)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the same command goes on with what is missing") from error
    finally:  # also after Ctrl-C: what there is
        console.print()
        _show_table(sweep, console)
    progress.print_failures()
    return not progress.failed


def jobs_of(sweep: Sweep) -> list[Job]:
    """The command of each run, with this Python, and its log."""
    logs = sweep.output_dir / LOGS
    return [
        Job(
            run.folder.name,
            (sys.executable, "-m", "nlora", *_arguments(sweep, run)),
            logs / f"{run.folder.name}.log",
        )
        for run in sweep.runs
    ]


def _arguments(sweep: Sweep, run: SweepRun) -> tuple[str, ...]:
    return ("run", base_source(sweep, run, sweep.output_dir), *run.overrides)


def _runner(sweep: Sweep, jobs: int | None) -> Runner:
    if sweep.runner == "ray":
        if jobs is not None:
            what = "is for runner: local; Ray places runs by ray: {cpus, gpus} in the sweep's file"
            raise InputErrors([Problem("--jobs", what)])
        return RayRunner(sweep.ray)
    gpus = visible_gpus()
    places = jobs or len(gpus) or 1
    return LocalRunner(places, environments(places, gpus))


class _Progress:
    """Says which run starts and how each one ended."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._console = console
        self._folders = {run.folder.name: run.folder for run in sweep.runs}
        self._left = len(sweep.runs)
        self._done = 0
        self.failed: list[Outcome] = []
        self._say(f"{sweep.name}: {_counted(sweep)}; logs in {sweep.output_dir / LOGS}")

    def begin(self, job: Job) -> bool:
        """Whether the job is to run: not where it is done, or being done elsewhere."""
        state = state_of(self._folders[job.name])
        if state in ("complete", "elsewhere"):
            self._left -= 1
            self._done += state == "complete"
            self._say(f"{job.name}: {_STATES[state]}, left alone")
            return False
        self._say(f"{job.name}: {'goes on' if state == 'unfinished' else 'started'}")
        return True

    def ended(self, outcome: Outcome) -> None:
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
        if self.failed:
            self._say(f"\n{len(self.failed)} of {len(self._folders)} runs failed:")
        for outcome in self.failed:
            self._say(f"{outcome.job.name}: {outcome.error} (in {outcome.job.log})")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _counted(sweep: Sweep) -> str:
    """`22 runs, 5 complete, 17 new`."""
    count = Counter(state_of(run.folder) for run in sweep.runs)
    runs = f"{len(sweep.runs)} run{'s' if len(sweep.runs) != 1 else ''}"
    return ", ".join([runs, *(f"{count[state]} {word}" for state, word in _STATES.items() if count[state])])


def _print_plan(sweep: Sweep, console: Console) -> None:
    """Every run with its state and its command, as it can be given by hand."""
    for run in sweep.runs:
        command = shlex.join(["nlora", *_arguments(sweep, run)])
        for line in (f"{run.folder.name} ({_STATES[state_of(run.folder)]})", f"  {command}"):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_counted(sweep), highlight=False)


def _summary(folder: Path) -> Summary | None:
    """A run's summary; None where there is none (yet), or a broken one, of which the run itself speaks."""
    try:
        return read_summary(folder) if (folder / SUMMARY_FILE).is_file() else None
    except RunError:
        return None


def _show_table(sweep: Sweep, console: Console) -> Comparison | None:
    """Print what there is of all runs, and write it beside them in every format."""
    found = [(run.folder, summary) for run in sweep.runs if (summary := _summary(run.folder)) is not None]
    if not found:
        return None
    comparison = compare(found)
    console.print(ComparisonView(comparison))
    for suffix, format_ in SUFFIXES.items():
        path = sweep.output_dir / f"{TABLE}{suffix}"
        write_text(path, written(comparison, format_))
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return comparison
