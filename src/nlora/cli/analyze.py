"""What `nlora analyze` does: reads adapters or a run's stages, compares them, prints tables or JSON.

    values = analyze_run("runs/demo/nlora")       # the JSON of the comparison, with collision against forgetting
    collision = collision_of(values)              # what summary.json says of it

Adapters are any stock PEFT LoRA folders, or hub ids of which only the two files of an adapter are fetched. A run's
stages are compared under their tasks' names, in the order of learning.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nlora.analysis.forgetting import against_forgetting
from nlora.analysis.interference import compare_states
from nlora.analysis.result import Comparison
from nlora.analysis.tables import comparison_tables, csv_rows
from nlora.config.yaml_positions import read_yaml
from nlora.errors import AdapterError, InputErrors, Problem, RunError
from nlora.methods.registry import build
from nlora.models.lora_factors import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterState,
    LoraFactors,
    load_factors,
    stack,
)
from nlora.report.write import write_analysis
from nlora.runs.atomic import refusal, write_json
from nlora.runs.folder import ADAPTER, OUTPUTS, stage_name
from nlora.runs.run_yaml import RUN_FILE
from nlora.runs.summary import SUMMARY_FILE, Collision, Summary, read_summary

ANALYSIS_FILE = "analysis.json"
"""In a run's folder: what `analyze_run` returns."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def analyze_command(
    sources: Sequence[str],
    console: Console,
    *,
    threshold: float | None = None,
    as_json: bool = False,
    csv_file: Path | None = None,
    html_file: Path | None = None,
) -> dict[str, Any]:
    """`nlora analyze`: two adapters or more, or one run, whose folder gets its analysis.json.

    Raises InputErrors, AdapterError or RunError, in one line each, where there is nothing to compare.
    """
    if threshold is not None and not (threshold >= 0 and math.isfinite(threshold)):
        raise InputErrors([Problem("--threshold", f"must be a number >= 0, not {threshold:g}")])
    written = []
    if len(sources) == 1 and _is_run(Path(sources[0])):
        comparison, values = _run_values(Path(sources[0]), threshold)
        written.append(Path(sources[0]) / ANALYSIS_FILE)
        write_json(written[0], values)
    else:
        comparison, values = _adapter_values(sources, threshold)
    if csv_file is not None:
        _write_csv(csv_file, csv_rows(values, comparison.module_measures()))
        written.append(csv_file)
    if html_file is not None:
        written.append(write_analysis(values, html_file))
    if as_json:
        print(json.dumps(values, allow_nan=False, indent=1))
        return values
    console.print(comparison_tables(values))
    for path in written:
        console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    return values


def analyze_run(folder: str | Path, threshold: float | None = None) -> dict[str, Any]:
    """The comparison of a run's finished stages, as JSON, with `run` and `forgetting` beside it. Writes nothing.

    threshold: absolute; None: the default of `nlora.analysis.threshold`. A single finished stage has no pairs.
    Raises RunError where no stage is finished or the stages hold no adapters, AdapterError where one is damaged.
    """
    return _run_values(Path(folder), threshold)[1]


def compare_adapters(
    sources: Sequence[str] | Mapping[str, str | AdapterState], threshold: float | None = None
) -> dict[str, Any]:
    """The comparison of two adapters or more, as JSON.

    sources: PEFT LoRA folders or hub ids; or these, or factors in memory, by the names that they are to have.
    Raises InputErrors where there are fewer than two or one is a run, AdapterError where one cannot be read.
    """
    if not isinstance(sources, Mapping):
        return _adapter_values(sources, threshold)[1]
    states = {
        name: _loaded(_located(source), source) if isinstance(source, str) else source
        for name, source in sources.items()
    }
    if len(states) < 2:
        raise InputErrors([Problem("adapters", "give two or more; an adapter is compared with others")])
    return compare_states(states, threshold).to_json()


def collision_of(values: Mapping[str, Any]) -> Collision | None:
    """What summary.json says of collisions; None without a pair. values: what `analyze_run` returned."""
    if not values["pairs"]:
        return None
    return Collision(
        threshold=values["threshold"],
        average_rate=values["average_collision_rate"],
        pairs={pair: own["collision_rate"] for pair, own in values["pairs"].items()},
    )


# A run


def _is_run(folder: Path) -> bool:
    return (folder / SUMMARY_FILE).is_file() or (folder / RUN_FILE).is_file()


def _run_values(folder: Path, threshold: float | None) -> tuple[Comparison, dict[str, Any]]:
    summary = read_summary(folder)
    states = _stages(folder, summary)
    notes = []
    if len(states) < len(summary.tasks):
        notes.append(f"{len(states)} of {len(summary.tasks)} stages have an update.")
    is_trained_on = _is_trained_on(folder)
    comparison = compare_states(_changes(states) if is_trained_on else states, threshold)
    values = comparison.to_json()
    if is_trained_on:
        notes.append(
            f"{summary.method} trains one adapter on from task to task: compared is what each stage changed in it, "
            "ΔW_k - ΔW_{k-1}. Such a change has no factor A of its own, so O-LoRA's orthogonality is left out."
        )
        for own in values["pairs"].values():
            own["orthogonality"] = None
    values["notes"] = [*notes, *values["notes"]]
    values["run"] = {key: getattr(summary, key) for key in ("name", "method", "model", "seed", "status")}
    values["forgetting"] = against_forgetting(summary.tasks, summary.R, values["pairs"])
    return comparison, values


def _stages(folder: Path, summary: Summary) -> dict[str, AdapterState]:
    """The updates of the finished stages by task, in order."""
    stages = {task: folder / OUTPUTS / stage_name(k, task) for k, task in enumerate(summary.tasks, start=1)}
    finished = {task: stage for task, stage in stages.items() if stage.is_dir()}
    if not finished:
        raise RunError(
            f"{folder}: none of its {len(stages)} stages is finished; go on with it, then analyze it"
        )
    states = {
        task: load_factors(stage / ADAPTER) for task, stage in finished.items() if (stage / ADAPTER).is_dir()
    }
    if not states:
        raise RunError(
            f"{folder}: its stages hold no adapters ({summary.method}); only LoRA updates can be compared"
        )
    return states


def _is_trained_on(folder: Path) -> bool:
    """Whether the run's method trains one adapter further from task to task."""
    path = folder / RUN_FILE
    document = read_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None
    try:
        options = dict(document.data["config"]["method"]) if document else {}
        return build(options.pop("name"), options).continues_adapter
    except (InputErrors, KeyError, TypeError):  # of a method that this nlora does not know
        return False


def _changes(states: Mapping[str, AdapterState]) -> dict[str, AdapterState]:
    """What each stage changed in an adapter that is trained on: ΔW_k - ΔW_{k-1}."""
    changes: dict[str, AdapterState] = {}
    before: AdapterState = {}
    for task, state in states.items():
        changes[task] = {
            name: stack([f, _negative(before[name])]) if name in before else f for name, f in state.items()
        }
        before = state
    return changes


def _negative(f: LoraFactors) -> LoraFactors:
    return LoraFactors(f.A, f.B, -f.scaling)


# Adapters


def _adapter_values(sources: Sequence[str], threshold: float | None) -> tuple[Comparison, dict[str, Any]]:
    for source in sources:
        if _is_run(Path(source)):
            raise InputErrors(
                [Problem(source, "is a run; give it alone, or give the adapter folders of its stages")]
            )
    folders = [_located(source) for source in sources]
    for i, source in enumerate(sources):
        if folders[i] in folders[:i]:
            raise InputErrors([Problem(source, "is given twice; an adapter is compared with others")])
    states = [_loaded(folder, source) for folder, source in zip(folders, sources, strict=True)]
    if len(states) < 2:
        raise InputErrors(
            [Problem(sources[0], "is one adapter alone; give two or more, or the folder of a run")]
        )
    names = _short_names(sources)
    comparison = compare_states(dict(zip(names, states, strict=True)), threshold)
    values = comparison.to_json()
    bases = dict.fromkeys(_base_model(folder) for folder in folders)
    if len(bases) > 1:
        values["notes"].append(
            f"The adapters name different base models ({', '.join(map(str, bases))}); entries can be compared only "
            "where these are the same weights."
        )
    return comparison, values


def _located(source: str) -> Path:
    """The folder of an adapter: as given, or its two files fetched from the hub."""
    folder = Path(source)
    if folder.exists() or not _HUB_ID.fullmatch(source):
        return folder.resolve() if folder.exists() else folder
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(source, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except (OSError, ValueError) as error:  # whatever the hub's client raises is one of these
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"{source}: neither a folder here nor an adapter that can be fetched from the hub ({reason})"
        ) from error


def _loaded(folder: Path, source: str) -> AdapterState:
    """The factors in a folder; what is wrong with it is said under the name that was given."""
    try:
        return load_factors(folder)
    except AdapterError as error:
        raise AdapterError(str(error).replace(str(folder), source)) from error


def _base_model(folder: Path) -> str | None:
    name = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return None if name is None else str(name)


def _short_names(sources: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the end that all share.

    runs/a/outputs/1-r8/adapter and runs/a/outputs/2-news/adapter are 1-r8 and 2-news.
    """
    parts = [Path(source).parts for source in sources]
    shortest = min(map(len, parts))
    shared = 0
    while shared < shortest - 1 and len({path[-1 - shared] for path in parts}) == 1:
        shared += 1
    own = [path[: len(path) - shared] for path in parts]
    for length in range(1, max(map(len, own)) + 1):
        names = ["/".join(path[-length:]) for path in own]
        if len(set(names)) == len(names):
            return names
    return list(sources)


def _write_csv(file: Path, rows: Sequence[Sequence[Any]]) -> None:
    try:
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
    except OSError as error:
        raise InputErrors([Problem(str(file), f"cannot be written: {refusal(file, error)}")]) from error


def analyze(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER ADAPTER... | RUN",
            help="PEFT LoRA folders or hub ids, two or more; or the output_dir of one run.",
        ),
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Absolute: an entry counts when it is larger. Default: 0.1 of the root mean square of all entries.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option(
            "--csv", help="Write every pair, overall and by module, to this file.", show_default=False
        ),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write the figures and tables as one HTML page.", show_default=False),
    ] = None,
) -> None:
    """Where the updates of different tasks meet: collisions, overlap, orthogonality, spectra."""
    analyze_command(
        sources, Console(), threshold=threshold, as_json=as_json, csv_file=csv_file, html_file=html_file
    )
