"""A comparison of runs as Markdown, LaTeX or CSV, and the command `nlora compare`.

Every format has the same rows and notes. CSV always has the same columns; the other formats leave out measures that no
row has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from nlora.config.messages import did_you_mean
from nlora.errors import InputErrors, Problem
from nlora.report.comparison import MEASURES, Comparison, Row, compare, read_runs
from nlora.report.comparison_table import (
    AVERAGE,
    Column,
    ComparisonView,
    best_rows,
    cell_of,
    label_of,
    notes_of,
    seeds_of,
    shown_columns,
)
from nlora.runs.atomic import write_text

Format = Literal["table", "markdown", "latex", "csv"]
SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
"""The format of a file by its suffix."""
_FILE_WIDTH = 160
"""The width of a terminal table in a file."""


def written(comparison: Comparison, format: Format) -> str:  # noqa: A002 - what the option is called
    """The comparison as text that ends with a newline."""
    if format == "table":
        console = Console(file=io.StringIO(), width=_FILE_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(ComparisonView(comparison))
        return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    return {"markdown": _markdown, "latex": _latex, "csv": _csv}[format](comparison)


def compare_command(
    runs: Sequence[str], chosen: str | None, out: str | None, everything: bool, console: Console
) -> Comparison:
    """`nlora compare RUN...`: read, group, print or write.

    chosen: the format; None: by the suffix of `out`, else a terminal table.
    """
    format_ = _format(chosen, out)
    comparison = compare(read_runs(runs), published="all" if everything else "methods")
    if out is not None:
        target = Path(out)
        if target.is_dir() or not target.parent.is_dir():
            what = (
                "is a folder; name a file" if target.is_dir() else f"no folder {target.parent}; make it first"
            )
            raise InputErrors([Problem(f"--out {out}", what)])
        write_text(target, written(comparison, format_))
        console.print(out, markup=False, highlight=False, soft_wrap=True)
    elif format_ == "table":
        console.print(ComparisonView(comparison))
    else:
        console.out(written(comparison, format_), highlight=False, end="")
    return comparison


def _format(chosen: str | None, out: str | None) -> Format:
    if chosen is None:
        return SUFFIXES.get(Path(out).suffix, "table") if out is not None else "table"
    known: tuple[Format, ...] = get_args(Format)
    for format_ in known:
        if format_ == chosen:
            return format_
    hint = did_you_mean(chosen, known)
    raise InputErrors(
        [Problem(f"--format {chosen}", f"there is no such format; choose {', '.join(known)}{hint}")]
    )


def _markdown(comparison: Comparison) -> str:
    columns, best = shown_columns(comparison), best_rows(comparison)

    def escaped(text: str) -> str:
        for character in "\\|*<":
            text = text.replace(character, f"\\{character}")
        return text

    def cell(row: Row, column: Column) -> str:
        text = cell_of(row, column)
        return f"**{text}**" if row in best and column.key == AVERAGE else text

    lines = [
        ["run", "seeds", *(column.heading for column in columns)],
        ["---", *["---:"] * (len(columns) + 1)],
        *(
            [escaped(label_of(row)), seeds_of(row), *(cell(row, column) for column in columns)]
            for row in (*comparison.rows, *comparison.published)
        ),
    ]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return table + "\n" + "".join(f"- {escaped(note)}\n" for note in notes_of(comparison, columns))


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "<>|"},
}  # fmt: skip


def _escaped_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex(comparison: Comparison) -> str:
    """A table environment; its preamble needs booktabs."""
    columns, best = shown_columns(comparison), best_rows(comparison)

    def cell(row: Row, column: Column) -> str:
        text = _escaped_latex(cell_of(row, column))
        if text[:1] in ("-", "+"):
            text = f"${text[0]}${text[1:]}"
        return rf"\textbf{{{text}}}" if row in best and column.key == AVERAGE else text

    def line(row: Row) -> str:
        return " & ".join(
            [_escaped_latex(label_of(row)), seeds_of(row), *(cell(row, column) for column in columns)]
        )

    headings = ["run", "seeds", *(column.heading for column in columns)]
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (len(columns) + 1)}}}",
        r"\toprule",
        rf"{' & '.join(headings)} \\",
        r"\midrule",
        *(rf"{line(row)} \\" for row in comparison.rows),
        *([r"\midrule"] if comparison.published else []),
        *(rf"{line(row)} \\" for row in comparison.published),
        r"\bottomrule",
        r"\end{tabular}",
        r"\par\smallskip",
        r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
        *(rf"{_escaped_latex(note)}\par" for note in notes_of(comparison, columns)),
        r"\end{minipage}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _csv(comparison: Comparison) -> str:
    """One line per row, with a column for the notes. Numbers are unrounded, in percent, seconds and bytes."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    numbers = [f"{key}_{part}" for key in MEASURES for part in ("mean", "std", "n")]
    lines.writerow(["run", "method", "model", "tasks", "seeds", "n", "status", *numbers, "note"])
    for row in (*comparison.rows, *comparison.published):
        values: list[float | int | None] = []
        for key in MEASURES:
            spread = row.values.get(key)
            values += [None] * 3 if spread is None else [spread.mean, spread.deviation, spread.count]
        seeds, n = " ".join(map(str, row.seeds)), len(row.seeds) or None
        note = row.note if row.status == "published" else " ".join(comparison.notes)
        name = row.label if row.status == "published" else row.name
        about = [name, row.method, row.model, " ".join(row.tasks), seeds, n, row.status]
        lines.writerow([*about, *values, note])
    return text.getvalue()
