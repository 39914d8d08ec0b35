"""The training chart covers all steps, logged or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_run

from nlora.report.charts.axes import linear_axis
from nlora.report.charts.lines import Series, line_chart
from nlora.report.charts.scene import Dot, Group, Line
from nlora.report.page_blocks import Figure, Section
from nlora.report.run_files import load_runs
from nlora.report.sections.training import training
from nlora.report.variants import variants_of

TASKS = ("a", "b", "c", "d")
STEPS = (15, 10, 12, 10)


def section(*folders: Path) -> Section:
    return training(variants_of(load_runs(folders)))


def figure(found: Section, key: str = "loss") -> Figure:
    return next(block for block in found.blocks if isinstance(block, Figure) and block.key == key)


def curves(found: Figure, stroke: str) -> list[Line]:
    """Without the legend."""
    groups = [shape for shape in found.draw(800.0).shapes if isinstance(shape, Group)]
    return [s for group in groups for s in group.shapes if isinstance(s, Line) and s.stroke == stroke]


def lines(found: Figure, stroke: str) -> list[Line]:
    return [s for s in found.draw(800.0).flat() if isinstance(s, Line) and s.stroke == stroke]


def test_stages_span_all_steps_even_if_few_were_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=TASKS, steps=STEPS, logged=10)
    found = figure(section(run))
    assert found.numbers is not None
    assert [row[1].text for row in found.numbers.rows] == ["15", "10", "12", "10"]
    axis = next(line.points for line in lines(found, "rule") if line.points[0][1] == line.points[1][1])
    begins = [line.points[0] for line in lines(found, "rule") if line.dash]
    (left, _), (right, _) = axis
    places = [47 * (x - left) / (right - left) for x, _ in begins]
    assert places == pytest.approx([0, 15, 25, 37])


def test_each_task_has_its_own_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=TASKS, steps=STEPS, method="nlora", logged=1)
    found = figure(section(run))
    for stroke in ("accent", "series1"):  # the loss and the penalty
        drawn = lines(found, stroke)
        assert [len(line.points) for line in drawn] == list(STEPS)
    other = make_run(tmp_path / "other", name="other", tasks=TASKS, steps=STEPS, logged=5)
    both = figure(section(run, other))
    assert [len(line.points) for line in curves(both, "series0")] == [15, 10, 12, 10]
    assert [len(line.points) for line in curves(both, "series1")] == [3, 2, 2, 2]


def test_a_single_logged_step_is_a_dot(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=TASKS, steps=(1, 1, 3, 1))
    shapes = figure(section(run)).draw(800.0).flat()
    assert [len(s.points) for s in shapes if isinstance(s, Line) and s.stroke == "accent"] == [3]
    assert [s.title.rpartition(" at ")[2] for s in shapes if isinstance(s, Dot)] == ["1", "2", "6"]


def test_a_line_stops_at_its_breaks() -> None:
    x, y = linear_axis("x", [0.0, 10.0]), linear_axis("y", [0.0, 1.0])
    points = tuple((float(k), 0.5) for k in range(1, 11))
    scene = line_chart(
        "t", "d", [Series("s", points, "accent", dots=False, breaks=(0.0, 4.0, 9.0))], x=x, y=y, width=400
    )
    drawn = [s for s in scene.flat() if isinstance(s, Line) and s.stroke == "accent"]
    assert [len(line.points) for line in drawn] == [4, 5]  # 1 to 4, 5 to 9; the tenth is a dot
    assert len([s for s in scene.flat() if isinstance(s, Dot)]) == 1


def test_a_penalty_of_one_run_is_not_said_to_be_that_of_all(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name=name, tasks=TASKS, method=name) for name in ("inclora", "nlora")]
    penalty = figure(section(*runs), "penalty")
    assert "Only nlora has one." in penalty.caption
    assert "all runs" not in penalty.caption + penalty.draw(800.0).description
    assert "The same for all runs." in figure(section(*runs), "learning-rate").caption
