"""A comparison of runs as Markdown, LaTeX or CSV.

Every format has the same rows and notes. CSV always has the same columns; the other formats leave out measures that no
row has.
"""

from __future__ import annotations

import csv
import io
import re
from typing import Literal

from nlora.report.comparison import MEASURES, Comparison, Row
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
from nlora.runs.console import as_text

Format = Literal["table", "markdown", "latex", "csv"]
SUFFIXES: dict[str, Format] = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
"""The format of a file by its suffix."""
_FILE_WIDTH = 160
"""The width of a terminal table in a file."""


def written(comparison: Comparison, format: Format) -> str:  # noqa: A002 - what the option is called
    """The comparison as text that ends with a newline."""
    if format == "table":
        return as_text(ComparisonView(comparison), _FILE_WIDTH) + "\n"
    return {"markdown": _markdown, "latex": _latex, "csv": _csv}[format](comparison)


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
        ["run", "seeds", *(escaped(column.heading) for column in columns)],
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
        text = re.sub(r"(?<![\w.])[-+](?=\d)", r"$\g<0>$", text)
        return rf"\textbf{{{text}}}" if row in best and column.key == AVERAGE else text

    def line(row: Row) -> str:
        label = _escaped_latex(label_of(row))
        begin = "{}" if label.startswith(("[", "*")) else ""  # else an option of the end of the row before
        return " & ".join([begin + label, seeds_of(row), *(cell(row, column) for column in columns)])

    headings = ["run", "seeds", *(_escaped_latex(column.heading) for column in columns)]
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
    minus = ["base", *(f"difference_{part}" for part in ("mean", "low", "high", "n"))]
    lines.writerow(
        ["run", "method", "model", "tasks", "seeds", "n", "status", "label", *numbers, *minus, "note"]
    )
    for row in (*comparison.rows, *comparison.published):
        values: list[float | int | None] = []
        for key in MEASURES:
            spread = row.values.get(key)
            values += [None] * 3 if spread is None else [spread.mean, spread.deviation, spread.count]
        seeds, n = " ".join(map(str, row.seeds)), len(row.seeds) or None
        note = row.note if row.status == "published" else " ".join(comparison.notes)
        name = row.label if row.status == "published" else row.name
        about = [name, row.method, row.model, " ".join(row.tasks), seeds, n, row.status, row.label]
        lines.writerow([*about, *values, *_minus_base(row, comparison.base), note])
    return text.getvalue()


def _minus_base(row: Row, base: str | None) -> list[str | float | int | None]:
    found = row.minus_base
    if found is None:
        return [None] * 5
    low, high = found.interval or (None, None)
    return [base, found.mean, low, high, len(found.seeds)]
