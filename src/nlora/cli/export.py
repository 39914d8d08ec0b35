"""`nlora export`: a run's model in a form that transformers, PEFT, vLLM or llama.cpp load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nlora.cli.options import RunFolder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nlora.runs.export.result import Export


def export(
    run: RunFolder,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="The folder to write, new or empty.", show_default=False)
    ],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORM",
            help="merged: a whole model. adapter: one PEFT LoRA for all tasks. adapters: each task's own. "
            "sparse: the update's large entries.",
            show_default=False,
        ),
    ],
    stage: Annotated[
        int | None,
        typer.Option("--stage", metavar="K", help="The model after this stage.", show_default="the last one"),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank", metavar="N", help="adapter: recompress to this rank.", show_default="the exact sum"
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="T",
            help="sparse: drop the entries below it.",
            show_default="0.1 of the entries' root mean square",
        ),
    ] = None,
    merge: Annotated[
        str,
        typer.Option(
            "--merge",
            metavar="HOW",
            help="How the tasks' updates become one: sum (what the run computes), magmax, slerp, ties, dare_ties, "
            "dare_linear, magnitude_prune.",
        ),
    ] = "sum",
    density: Annotated[
        float | None,
        typer.Option(
            "--density",
            metavar="D",
            help="Share of each update that ties, dare_* and magnitude_prune keep.",
            show_default="0.5",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="The task whose model is wanted, if each has its own (pertask).",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="merged: float32, bfloat16 or float16.",
            show_default="float32, which keeps the whole update",
        ),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            "--examples", metavar="N", help="Test examples of each task that the export must answer."
        ),
    ] = 32,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="REPO",
            help="Upload the folder to this repository of the Hugging Face Hub.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a run's model as a folder that others load, and check that it answers as the run did."""
    from pathlib import Path

    from nlora.api.downloads import announce_downloads
    from nlora.cli.bars import Bars
    from nlora.models.processes import refuse
    from nlora.runs.checkpoint import read_stage
    from nlora.runs.console import TextConsole
    from nlora.runs.events import Progress
    from nlora.runs.export.export import export as export_run
    from nlora.runs.export.options import ExportOptions

    refuse("nlora export")
    options = ExportOptions(form, rank, threshold, merge, density, task, dtype, examples)
    config = read_stage(Path(run), stage).config
    with Bars(TextConsole(stderr=True), stages=len(config.tasks)) as bars:
        announce_downloads(config, Progress(bars))
        found = export_run(run, out, options, stage=stage, push=push, on_event=bars)
    TextConsole().print(export_table(found))


def export_table(found: Export) -> RenderableType:
    """What was written, and the scores of the run and of the export."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    config = found.checkpoint.config
    lines: list[RenderableType] = [
        Text(
            f"{config.name}: {config.method_label} on {config.model}, {found.checkpoint.name}", style="bold"
        ),
        Text(f"{found.options.form}  {found.folder}  {in_words(found.size)}"),
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("task", overflow="fold")
    for heading in ("examples", "run", "export", "answers that differ"):
        table.add_column(heading, justify="right")
    for name, score in found.scores.items():
        table.add_row(
            Text(name),
            str(found.examples[name]),
            f"{found.run[name]:.1f}",
            f"{score:.1f}",
            str(found.different[name]),
        )
    lines.append(table)
    if found.thresholds:
        lines += _thresholds(found)
    lines += [Text(note) for note in found.notes]
    if found.url is not None:
        lines.append(Text(f"uploaded to {found.url}"))
    return Group(*lines)


def _thresholds(found: Export) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("threshold", "x RMS", "entries kept", "size"):
        table.add_column(heading, justify="right")
    for name in found.scores:
        table.add_column(Text(name), justify="right")
    for row in found.thresholds:
        table.add_row(
            f"{row.threshold:.3g}{'*' if row.is_stored else ' '}",
            f"{row.factor:.3g}",
            f"{100 * row.share_kept:.2f} %",
            in_words(row.sparse_bytes),
            *(f"{row.scores[name]:.1f}" for name in found.scores),
        )
    assert found.sizes is not None
    factors = found.sizes.factors_bytes
    as_factors = "" if factors is None else f"{in_words(factors)} as low-rank factors, "
    return [
        table,
        Text(
            f"* exported; the whole update: {as_factors}{in_words(found.sizes.dense_bytes)} as dense matrices"
        ),
    ]


def in_words(size: float) -> str:
    """`12.3 MB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
