"""`nlora run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nlora.cli.launch import Processes, end_with_launcher, launch
from nlora.cli.options import Overrides, Source, load_first
from nlora.models.processes import is_main, joined, main_first
from nlora.runs.importing import importing

if TYPE_CHECKING:
    from nlora.config.load import LoadedConfig
    from nlora.config.schema import Config
    from nlora.runs.summary import Summary

_TRAINED = {"adapter": "adapters", "model": "models", "weights.safetensors": "weights"}
"""What a stage may have trained, by its name in the stage's folder."""


def run(
    source: Source,
    overrides: Overrides = None,
    processes: Processes = 1,
    repair: Annotated[
        bool, typer.Option("--repair", help="Train or score again the stages whose files are damaged.")
    ] = False,
) -> None:
    """Learn a sequence of tasks; the same command resumes a run that was stopped."""
    from nlora.cli.bars import WorkConsole

    texts = overrides or []
    if processes > 1:
        launch(processes, ["run", source, *texts, *(["--repair"] if repair else [])])
    end_with_launcher()
    with joined():
        loaded = main_first(lambda: load_first(source, texts))
        learn_and_show(loaded, WorkConsole(quiet=not is_main()), repair=repair)


def learn_and_show(loaded: LoadedConfig, console: Console, *, repair: bool = False) -> Summary:
    """Learn, and print the table and the paths of what was written."""
    with importing():
        from nlora.api.learn import learn
        from nlora.cli.bars import Bars
        from nlora.report.terminal import accuracy_table, paths
        from nlora.runs.events import Progress
        from nlora.runs.stage_results import pooled_line

    with Bars(console, stages=len(loaded.config.tasks)) as bars:
        summary = learn(loaded, Progress(bars), repair=repair)
    console.print()
    console.print(accuracy_table(summary))
    written = _written(loaded.config)
    pooled = pooled_line(written["predictions"].parent) if loaded.config.protocol == "released" else None
    if pooled:
        console.print(pooled, highlight=False)
    console.print(paths(written))
    return summary


def _written(config: Config) -> dict[str, Path]:
    from nlora.runs.layout import LOG_FILE, OUTPUTS, REPORT_FILE, stage_name
    from nlora.runs.summary import SUMMARY_FILE

    folder = Path(config.output_dir)
    outputs = folder / OUTPUTS
    last = outputs / stage_name(len(config.tasks), config.tasks[-1].name)
    report = folder / REPORT_FILE  # not there if it could not be written, which has been said
    return {
        **({"report": report} if report.is_file() else {}),
        "summary": folder / SUMMARY_FILE,
        **{what: outputs / "*" / name for name, what in _TRAINED.items() if any(outputs.glob(f"*/{name}"))},
        "predictions": last / "predict_eval_predictions.jsonl",
        "log": folder / LOG_FILE,
    }
