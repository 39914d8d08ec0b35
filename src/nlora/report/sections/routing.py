"""The section about the router: which tasks it took for which, at the latest stage."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.report.charts.heatmap import heat_map, scale_position
from nlora.report.charts.palette import heat_role
from nlora.report.charts.scene import Scene
from nlora.report.page_blocks import Cell, Figure, Section, Table, side_by_side
from nlora.report.run_files import RunFiles
from nlora.runs.routing import Routing


def routing(runs: Sequence[RunFiles]) -> list[Section]:
    """A confusion matrix for each run that guessed tasks; no section if there is none."""
    found = [(run, run.summary.routing) for run in runs if run.summary.routing is not None]
    if not found:
        return []
    about = (
        "No one tells the model which task a text is of. A router guesses it from the frozen backbone, and the model "
        "as it was after the guessed task answers. Each row is a task, each column a guess; the numbers are test "
        "examples after the last finished stage. On the diagonal, the guess is right."
    )
    figures = [_matrix(run, each, i, many=len(runs) > 1) for i, (run, each) in enumerate(found, start=1)]
    return [Section("routing", "Guessed tasks", about, side_by_side(tuple(figures)), "Guesses")]


def _matrix(run: RunFiles, found: Routing, number: int, *, many: bool) -> Figure:
    high = float(max(map(max, found.counts)))
    title = f"Guessed tasks of {run.label}" if many else "Test examples by task and guess"
    caption = f"{found.words[0].upper()}{found.words[1:]}."

    def draw(width: float) -> Scene:
        return heat_map(
            title,
            caption,
            rows=found.tasks,
            columns=found.tasks,
            cells=found.counts,
            low=0.0,
            high=high,
            text=lambda value: f"{value:.0f}",
            width=width,
            framed=lambda _row, _column: False,
        )

    rows = tuple(
        (
            Cell(task),
            *(
                Cell(str(count), heat=heat_role(scale_position(count, 0, high)), title=f"{task} as {guess}")
                for guess, count in zip(found.tasks, counts, strict=True)
            ),
        )
        for task, counts in zip(found.tasks, found.counts, strict=True)
    )
    shown = Table(title, ("task", *found.tasks), rows, kind="heat")
    return Figure(f"routing-{number}", title, caption, draw, shown=shown)
