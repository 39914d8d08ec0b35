"""nlora from Python: configurations, runs and what they hold, with what the command line uses.

    run = nlora.run({"name": "support", "tasks": [...]}, on_event=print)
    run.accuracy_matrix, run.predict(["It is down again"], task="tickets")

Nothing is printed here. What a user can mend raises an NloraError; InputErrors has all mistakes at once. torch is
imported when a model is asked for. Every name is public as `nlora.<name>`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.api.opened_run import Run
from nlora.config.load import LoadedConfig, Source, read_config
from nlora.runs.events import Event

if TYPE_CHECKING:
    from nlora.models.lora_factors import AdapterState
    from nlora.report.comparison import Comparison

Folder = str | os.PathLike[str]


def run(config: Source | LoadedConfig, *, on_event: Callable[[Event], None] | None = None) -> Run:
    """Learn a sequence of tasks, or go on where it stopped; a complete run is returned at once.

    config: of `load_config`, or what it takes: a path, a recipe's name, a mapping or a Config.
    on_event: told of every step, answer and finished stage; what it raises ends the run, which keeps its stages.

    Raises InputErrors with all mistakes in configuration, data and model before anything is written; RunError where the
    folder is another run's or in use.

    >>> run = nlora.run("support.yaml")
    >>> run.summary.status
    'complete'
    """
    from rich.console import Console

    from nlora.cli.run import run_sequence
    from nlora.runs.events import EventProgress

    loaded = config if isinstance(config, LoadedConfig) else read_config(config)
    run_sequence(loaded, Console(quiet=True), EventProgress(on_event))
    return Run(loaded.config.output_dir)


def open_run(folder: Folder) -> Run:
    """A run that is there, finished or not; another process may be at work on it.

    Raises RunError where the folder is no run.

    >>> nlora.open_run("runs/support").summary.tasks
    ('tickets', 'urgency')
    """
    return Run(folder)


def compare(runs: Iterable[Run | Folder]) -> Comparison:
    """Runs side by side, those that differ only by their seed in one row; printed, the table of `nlora compare`.

    runs: runs, their folders, or folders that hold runs. Raises InputErrors with every folder that is no run.

    >>> comparison = nlora.compare(["runs/support"])
    >>> comparison.rows[0].values["average_accuracy"].count
    1
    """
    from nlora.report.comparison import compare as compare_runs
    from nlora.report.comparison import read_runs

    return compare_runs(read_runs(_path(run) for run in _several(runs)))


def interference(
    adapters: Run | Folder | Sequence[Folder] | Mapping[str, Folder | AdapterState],
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Where the updates of different tasks meet: the values that `nlora analyze --json` prints. Writes nothing.

    adapters: a run (or its folder), two PEFT LoRA folders or hub ids or more, or a mapping of names to such, or to the
        factors that `nlora.models.lora_factors.load_factors` reads.
    threshold: absolute; None: a tenth of the root mean square of all entries.

    >>> values = nlora.interference("runs/support")
    >>> list(values["pairs"])
    ['tickets|urgency']
    """
    from nlora.analysis.adapter_sources import compare_adapters
    from nlora.analysis.of_run import analyze_run

    if isinstance(adapters, Mapping):
        named = {name: _text(adapter) for name, adapter in adapters.items()}
        return compare_adapters(named, threshold).to_json()
    if isinstance(adapters, Run | str | os.PathLike):
        return analyze_run(_path(adapters), threshold).to_json()
    return compare_adapters([os.fspath(adapter) for adapter in adapters], threshold).to_json()


def _path(run: Run | Folder) -> Path:
    return run.folder if isinstance(run, Run) else Path(run)


def _several(runs: Iterable[Run | Folder]) -> Iterable[Run | Folder]:
    """A single run may be given without a list: a text would be taken for a list of letters."""
    return [runs] if isinstance(runs, Run | str | os.PathLike) else runs


def _text(adapter: Any) -> Any:
    return os.fspath(adapter) if isinstance(adapter, os.PathLike) else adapter
