"""`nlora check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from nlora.cli.options import Overrides, Source, load_first
from nlora.runs.console import TextConsole

if TYPE_CHECKING:
    from nlora.config.schema import Config
    from nlora.runs.plan import Plan

_SHOWN_CHARACTERS = 2000
"""Of a conversation, from its beginning and its end."""
_CLEARLY_FASTER = 1.5
"""How many times as fast matrix products in another number format must be for a hint."""


def check(
    source: Source,
    overrides: Overrides = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(
            "--device", help="Estimate the memory on this device.", show_default="the one a run would take"
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Estimate the memory of this many processes.")
    ] = 1,
) -> None:
    """Read and check everything, train nothing, print the plan."""
    loaded = load_first(source, overrides or [])  # mistakes are reported before anything heavy is imported
    from nlora.api.downloads import announce_downloads
    from nlora.runs.events import Progress
    from nlora.runs.plan import make_plan

    console = TextConsole()
    progress = Progress(lambda event: console.print(str(event), markup=False, highlight=False))
    announce_downloads(loaded.config, progress)
    plan = make_plan(loaded)
    console.print(_table(plan))
    for line in (*_lines(plan), *_memory(plan, device, processes)):
        console.print(line, markup=False, highlight=False)


def _lines(plan: Plan) -> list[str]:
    from nlora.evaluation.choices import decode_of
    from nlora.report.formatting import duration
    from nlora.runs.plan_notes import plan_notes

    config = plan.config
    parameters = f"{plan.trained_parameters:,} trained parameters per task"
    trained = {
        "weights": f"{len(plan.modules)} modules, the model's own weights are trained",
        "prompts": f"{parameters}, at most {plan.soft_tokens} soft tokens before a text",
        "adapter": f"{len(plan.modules)} modules, {parameters} (r = {config.lora.r})",
    }[plan.methods[0].trains]
    decodes = ", ".join(sorted({decode_of(task, config.evaluate) for task in plan.tasks if task.test}))
    return [
        f"{config.method_label} on {config.model}: {trained}",
        f"scored on {config.evaluate.split} examples, {decodes}",
        f"about {duration(plan.seconds())} on this machine, by the speed of its matrix products (a rough guess)",
        *_general_line(plan),
        _folder_line(plan),
        *_faster_format(config),
        *plan_notes(plan),
        *_conversations(plan),
    ]


def _general_line(plan: Plan) -> list[str]:
    """What is measured of what the model knew before."""
    if plan.general is None:
        return []
    untimed = "; the time of the harness is not in the estimate" if plan.general.options.harness else ""
    return [f"also measures, before the first and after every task: {plan.general.in_words}{untimed}"]


def _conversations(plan: Plan) -> list[str]:
    """The first training example of each task of conversations, as the model gets it."""
    from nlora.report.forgotten_examples import middle_left_out

    lines = []
    for task in plan.tasks:
        if task.chat and task.train:
            first = plan.encoder.encode(task, task.train[:1], all_turns=True)[0]
            text = middle_left_out(plan.encoder.chat.shown(first), _SHOWN_CHARACTERS)
            lines.append(
                f"{task.name}: its first conversation, with what is learned between « and »:\n{text}"
            )
    return lines


def _memory(plan: Plan, device: Literal["cpu", "cuda"] | None, processes: int) -> list[str]:
    from nlora.report.formatting import memory
    from nlora.runs.memory_advice import memory_lines

    lines = memory_lines(plan, memory, device=device, processes=processes)
    if plan.config.fsdp and processes == 1:
        lines.append("fsdp needs several processes, but this estimate is for one; add --processes N")
    return lines


def _folder_line(plan: Plan) -> str:
    """The output folder, and what `nlora run` would say about a run that it already contains.

    Raises InputErrors, as `nlora run` would, if the tasks of that run have changed.
    """
    from nlora.runs.folder import RunFolder
    from nlora.runs.general import refuse_other_numbers
    from nlora.runs.layout import RUN_FILE
    from nlora.runs.run_yaml import what_differs
    from nlora.runs.stage_results import task_records

    config = plan.config
    folder = Path(config.output_dir)
    if not (folder / RUN_FILE).is_file():
        return f"would be written to {folder}"
    if found := what_differs(folder, config):
        return f"{folder} belongs to another configuration ({'; '.join(found)}); give another output_dir"
    run = RunFolder.read(config)
    run.refuse_gap()
    refuse_other_numbers(run, plan.general)
    done = len(run.committed_stages())
    if done < len(config.tasks):
        task_records(run, plan.tasks)
    return f"would resume in {folder}, which has {done} of {len(config.tasks)} stages"


def _faster_format(config: Config) -> list[str]:
    """A hint if this machine is clearly faster in another number format than the chosen one."""
    from nlora.runs import time_estimate

    gain = time_estimate.bfloat16_gain()
    other, price = "bfloat16", ""
    if config.dtype == "bfloat16":
        gain, other, price = 1 / gain, "float32", ", which takes twice the memory"
    if gain < _CLEARLY_FASTER:
        return []
    return [
        f"matrix products in {other} are {gain:.1f} times as fast here as in {config.dtype}: "
        f"try dtype={other}{price}"
    ]


def _table(plan: Plan) -> Table:
    from nlora.report.formatting import duration

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage", justify="right")
    table.add_column("task", overflow="fold")
    for heading in ("labels", "train", "test", "steps", "tokens", "shared", "cut", "time"):
        table.add_column(heading, justify="right")
    for number, stage in enumerate(plan.stages, start=1):
        cut = f"{stage.cut_examples}" + (f"+{stage.cut_test_examples}" if stage.cut_test_examples else "")
        is_bare = number in plan.adopted and not stage.test_examples  # nothing is asked of it
        table.add_row(
            str(number),
            escape(stage.task),
            "–" if is_bare else "free text" if stage.labels is None else str(stage.labels),
            str(stage.train_examples),
            str(stage.test_examples),
            str(stage.steps),
            f"{stage.prompt_tokens:.0f}",
            str(stage.shared_tokens),
            cut,
            duration(stage.seconds),
        )
    table.caption = (
        "tokens: mean per example; shared: tokens that all prompts start with; "
        "cut: shortened prompts, in train + test"
    )
    table.caption_justify = "left"
    return table
