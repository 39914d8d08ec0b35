"""`nlora run` and `nlora demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from nlora.cli.launch import Processes, end_with_launcher, launch
from nlora.cli.options import Overrides, Source
from nlora.errors import InputErrors, Problem
from nlora.models.processes import is_main, joined, main_first
from nlora.runs.importing import importing

if TYPE_CHECKING:
    from nlora.config.load import LoadedConfig
    from nlora.config.schema import Config
    from nlora.runs.summary import Summary

DEMO = "demo"
DEMO_METHODS = ("nlora", "inclora", "replay")
SAME_FIRST_STAGE = {"replay": "inclora"}
"""At the first task there is nothing to replay, so the demo learns it once for both."""
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
    from nlora.config.load import load_config

    texts = overrides or []
    if processes > 1:
        launch(processes, ["run", source, *texts, *(["--repair"] if repair else [])])
    end_with_launcher()
    with joined():
        loaded = main_first(lambda: load_config(source, texts))
        _learn(loaded, Console(quiet=not is_main()), repair=repair)


def demo(overrides: Overrides = None, processes: Processes = 1) -> None:
    """Compare N-LoRA, no protection and a few kept examples on the built-in model and tasks."""
    from nlora.api.learn import begin_with_stage_of
    from nlora.report.terminal import comparison_table

    texts = overrides or []
    if processes > 1:
        launch(processes, ["demo", *texts])
    end_with_launcher()
    with joined():
        console = Console(quiet=not is_main())
        summaries = []
        for method, loaded in zip(DEMO_METHODS, _demo_runs(texts, console), strict=True):
            same = SAME_FIRST_STAGE.get(method)
            if same and begin_with_stage_of(loaded, Path(loaded.config.output_dir).with_name(same)):
                first = loaded.config.tasks[0].name
                console.print(f"{method} begins with what {same} has learned of {first}: it is the same")
            summaries.append(_learn(loaded, console))
            console.print()
        console.print(comparison_table(summaries))


def _demo_runs(texts: list[str], console: Console) -> list[LoadedConfig]:
    """The demo's runs. Raises InputErrors for mistakes in any of them, before the first one trains."""
    from nlora.api.learn import unfinished_plan
    from nlora.config.load import load_config
    from nlora.runs.events import Progress

    for text in texts:
        if text.partition("=")[0].strip() in ("method", "method.name", "name"):
            *first, last = DEMO_METHODS
            own = f"to run one of your own: nlora run demo {text}"
            what = f"nlora demo runs {', '.join(first)} and {last}; {own}"
            raise InputErrors([Problem(text, what)])
    folder = Path(load_config(DEMO, ["output_dir=runs/demo", *texts]).config.output_dir)
    runs = []
    for method in DEMO_METHODS:
        loaded = load_config(DEMO, [f"method={method}", f"name={method}", *texts])
        runs.append(_moved(loaded, folder / method))
    for loaded in runs[1:]:  # the first one's are reported when it starts
        unfinished_plan(
            loaded, Progress(lambda event: console.print(str(event), markup=False, highlight=False))
        )
    return runs


def _moved(loaded: LoadedConfig, folder: Path) -> LoadedConfig:
    from dataclasses import replace

    return replace(loaded, config=loaded.config.model_copy(update={"output_dir": str(folder)}))


def _learn(loaded: LoadedConfig, console: Console, *, repair: bool = False) -> Summary:
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
    from nlora.report.write import REPORT_FILE
    from nlora.runs.layout import LOG_FILE, OUTPUTS, stage_name
    from nlora.runs.summary import SUMMARY_FILE

    folder = Path(config.output_dir)
    outputs = folder / OUTPUTS
    last = outputs / stage_name(len(config.tasks), config.tasks[-1].name)
    return {
        "report": folder / REPORT_FILE,
        "summary": folder / SUMMARY_FILE,
        **{what: outputs / "*" / name for name, what in _TRAINED.items() if any(outputs.glob(f"*/{name}"))},
        "predictions": last / "predict_eval_predictions.jsonl",
        "log": folder / LOG_FILE,
    }
