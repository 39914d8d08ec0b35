"""The functions of the public API: nlora.run, nlora.open_run, nlora.compare, nlora.gate, nlora.interference.

They print nothing, but for the bar that `run` shows in a notebook, and raise NloraError for everything that a user can
correct. torch is imported only once a model is needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlora.api.arguments import folder_of, quiet_python
from nlora.api.run import Run
from nlora.config.load import LoadedConfig, Source, load_config
from nlora.errors import InputErrors, Problem, is_number
from nlora.runs.events import OnEvent

if TYPE_CHECKING:
    from nlora.analysis.gate import Gate
    from nlora.models.lora_factors import AdapterState
    from nlora.report.comparison import Comparison

Folder = str | os.PathLike[str]


def run(config: Source | LoadedConfig, *, on_event: OnEvent | None = None, repair: bool = False) -> Run:
    """Learn a sequence of tasks, or resume where it stopped. A complete run is returned at once.

    config: returned by `load_config`, or anything it takes: a path, a recipe's name, a mapping or a Config.
    on_event: called for every step, answer and finished stage. An exception it raises ends the run; finished stages
        stay. In a notebook, leaving it out shows a progress bar.
    repair: train or score again the stages whose files are damaged, and only those; the damaged files are moved to
        `damaged/` in the run's folder. Otherwise a damaged file is a RunError.

    Raises InputErrors with all mistakes in configuration, data and model before anything is written; RunError if the
    folder belongs to another run or is in use.

    >>> run = nlora.run("support.yaml")
    >>> run.summary.status
    'complete'
    """
    from nlora.api.notebook import notebook_bar
    from nlora.models.host_modes import own_modes
    from nlora.runs.events import Progress
    from nlora.runs.quiet import quiet

    loaded = config if isinstance(config, LoadedConfig) else load_config(config)
    # The import is silenced, too: transformers' import of tqdm warns in notebooks without ipywidgets.
    with quiet(), own_modes():
        from nlora.api.learn import learn

        learn(loaded, Progress(on_event or notebook_bar()), repair=repair)
    return Run(loaded.config.output_dir)


def open_run(folder: Folder) -> Run:
    """An existing run, finished or not; another process may be working on it.

    Raises RunError if the folder is not a run.

    >>> nlora.open_run("runs/support").summary.tasks
    ('tickets', 'urgency')
    """
    return Run(folder)


def compare(runs: Iterable[Run | Folder], *, base: str | None = None) -> Comparison:
    """Runs side by side; those that differ only in their seed share a row. Prints as the table of `nlora compare`.

    runs: runs, their folders, or folders that contain runs.
    base: the name of the runs to which each row's difference is computed (`row.minus_base`); None: no differences.

    Raises InputErrors naming every folder that is not a run, or if no finished runs have the base's name.

    >>> comparison = nlora.compare(["runs/support"])
    >>> comparison.rows[0].values["average_accuracy"].count
    1
    """
    from nlora.report.comparison import compare as compare_runs
    from nlora.report.comparison import read_runs

    several = [runs] if isinstance(runs, Run | str | os.PathLike) else runs
    if not isinstance(several, Iterable):
        raise InputErrors([Problem("runs", f"must be runs or their folders, not {runs!r:.100}")])
    return compare_runs(read_runs(_path(run, "runs") for run in several), base=base)


def gate(
    run: Run | Folder,
    *,
    stage: int | None = None,
    against: Run | Folder | None = None,
    against_stage: int | None = None,
    max_drop: float = 2.0,
    alpha: float | None = None,
    on_event: OnEvent | None = None,
) -> Gate:
    """Which tasks lost answers since they were learned, or compared with another run; what `nlora gate` prints.

    run: a run, or the folder of a run or of an export; an export answers the test examples anew.
    stage, against_stage: counted from 1; None is the last committed stage. Without `against` and `against_stage`, each
    task is compared with the stage that learned it. max_drop: percentage points that a task may lose. alpha: if given,
    a drop counts only if its p-value, corrected for the number of tasks, is below it. on_event: receives the progress
    of an export's scoring.

    Raises InputErrors if there is nothing to compare or the two were scored on different examples, RunError for an
    export that cannot be loaded, or whose run is unknown or gone.

    >>> verdict = nlora.gate("runs/support", max_drop=100)
    >>> verdict.passed, verdict.tasks[0].since
    (True, 'stage 1')
    """
    from nlora.analysis.gate import gate as compare_answers

    with quiet_python():  # an export is loaded
        return compare_answers(
            _path(run, "run"),
            stage=stage,
            against=None if against is None else _path(against, "against"),
            against_stage=against_stage,
            max_drop=max_drop,
            alpha=alpha,
            on_event=on_event,
        )


def interference(
    adapters: Run | Folder | Sequence[Folder] | Mapping[str, Folder | AdapterState],
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Where the updates of different tasks collide: the values printed by `nlora analyze --json`. Writes nothing.

    adapters: a run (or its folder); two or more PEFT LoRA folders or hub ids; or a mapping of names to these, or to
        the factors read by `nlora.models.lora_factors.load_factors`.
    threshold: absolute; None is a tenth of the root mean square of all entries.

    >>> values = nlora.interference("runs/support")
    >>> list(values["pairs"])
    ['tickets|urgency']
    """
    from nlora.analysis.adapter_sources import compare_adapters
    from nlora.analysis.of_run import analyze_run

    if threshold is not None and not (is_number(threshold) and threshold >= 0 and math.isfinite(threshold)):
        raise InputErrors([Problem("threshold", f"must be a number >= 0, not {threshold!r}")])
    if isinstance(adapters, Mapping):
        named = {name: _text(adapter) for name, adapter in adapters.items()}
        return compare_adapters(named, threshold).to_json()
    if isinstance(adapters, Run | str | os.PathLike):
        return analyze_run(_path(adapters, "adapters"), threshold).to_json()
    if not isinstance(adapters, Iterable):
        raise InputErrors([Problem("adapters", f"must be a run or adapters, not {adapters!r:.100}")])
    return compare_adapters([str(_text(adapter)) for adapter in adapters], threshold).to_json()


def _path(run: Run | Folder, name: str) -> Path:
    return run.folder if isinstance(run, Run) else folder_of(run, name)


def _text(adapter: Any) -> Any:
    if isinstance(adapter, Run):
        return str(adapter.folder)
    return os.fspath(adapter) if isinstance(adapter, os.PathLike) else adapter
