"""Axes, colors and shapes: positions computed by hand, contrasts by WCAG, markup as text."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import pytest

from nlora.report.charts import palette
from nlora.report.charts.axes import index_axis, linear_axis, log_axis, number, stage_axis, up_to
from nlora.report.charts.bars import Bar, bar_chart
from nlora.report.charts.heatmap import heat_map
from nlora.report.charts.lines import Mark, Panel, Series, line_chart, small_multiples
from nlora.report.charts.scene import Dot, Label, Line, Rect, Scene, clipped
from nlora.report.charts.svg import to_svg, to_svg_file
from nlora.report.sections.training import thinned
from nlora.report.wording import change, joined, listed, memory, share

SVG = "{http://www.w3.org/2000/svg}"


def test_axes_are_round_and_hold_all_values() -> None:
    axis = linear_axis("score", [57.1, 82.9])
    assert [text for _, text in axis.ticks] == ["50", "60", "70", "80", "90"]
    assert axis.place(50) == 0
    assert axis.place(90) == 1
    assert axis.place(70) == 0.5
    assert linear_axis("n", [3.0, 9.0], zero=True).low == 0
    assert linear_axis("n", [-3.0, 9.0], zero=True).low <= -3
    assert up_to(linear_axis("step", [0.0, 4300.0]), 4300.0).place(4300) == 1


@pytest.mark.parametrize("values", [[], [5.0], [0.0], [-2.0, -2.0], [1e-12, 3e-12], [float("nan"), 1.0]])
def test_axes_of_few_values_are_not_empty(values: list[float]) -> None:
    for axis in (linear_axis("x", values), linear_axis("x", values, zero=True), log_axis("x", values)):
        assert axis.high > axis.low
        assert axis.ticks


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    axis = log_axis("threshold", [3e-5, 0.02])
    assert (axis.low, axis.high) == (pytest.approx(1e-5), pytest.approx(0.1))
    assert axis.place(1e-3) == pytest.approx(0.5)
    assert axis.place(0) == 0


def test_stages_are_named_only_if_the_names_fit() -> None:
    tasks = ["agnews", "dbpedia", "amazon"]
    assert [text for _, text in stage_axis(tasks, 800).ticks] == tasks
    assert [text for _, text in stage_axis(["a very long name of a task"] * 3, 360).ticks] == ["1", "2", "3"]
    assert index_axis("stage", ["only"]).place(1) == 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.02, "0.02"), (3e-5, "3e−5"), (12000, "12,000"), (-2.5, "−2.5"), (0.1 + 0.2, "0.3")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_numbers_on_a_page() -> None:
    assert (memory(3 * 2**30), memory(None)) == ("3.00 GiB", "–")
    assert (change(-4.04), change(0.04), change(-0.0), change(None)) == ("−4.0", "+0.0", "+0.0", "–")
    assert (share(0.123), share(0.0), share(1e-5)) == ("12.3\u00a0%", "0.0\u00a0%", "0.001\u00a0%")
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "תרגום", "חדשות"]) == "a, \u2068תרגום\u2069 and \u2068חדשות\u2069"
    assert joined(["a", "b"]) == "a, b"
    assert clipped("abcdef", 32) == "ab…f"
    assert clipped("a-long-name-14", 60) != clipped("a-long-name-15", 60)


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_text_and_lines_have_contrast_in_both_themes(theme: dict[str, str]) -> None:
    for role in ("ink", "muted", "accent", "warn"):
        assert palette.contrast(theme[role], theme["paper"]) >= 4.5, role
    for role in (role for role in theme if role.startswith("series")):
        assert palette.contrast(theme[role], theme["paper"]) >= 3, role
    for role in (role for role in theme if role.startswith("heat")):
        assert palette.contrast(theme[role], theme[f"on-{role}"]) >= 4.5, role


@pytest.mark.parametrize(("theme", "sign"), [(palette.LIGHT, -1), (palette.DARK, 1)], ids=["light", "dark"])
def test_the_heat_scale_is_monotone_in_luminance(theme: dict[str, str], sign: int) -> None:
    steps = [theme[f"heat{k}"] for k in range(16)]
    bright = [palette.contrast(color, "#000000") for color in steps]
    assert all(sign * (b - a) > 0 for a, b in itertools.pairwise(bright))
    assert palette.heat_role(-1) == palette.heat_role(0) == "heat0"
    assert palette.heat_role(2) == "heat15"


def test_contrast_follows_wcag() -> None:
    assert palette.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert palette.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_a_line_passes_through_its_points() -> None:
    x, y = index_axis("stage", ["a", "b", "c"]), linear_axis("score", [0.0, 100.0])
    scene = line_chart("t", "d", [Series("s", ((1, 100.0), (3, 0.0)), "accent")], x=x, y=y, width=400)
    line = next(s for s in scene.flat() if isinstance(s, Line) and s.stroke == "accent")
    base = next(s for s in scene.flat() if isinstance(s, Line) and s.stroke == "rule").points
    grid = [s.points[0][1] for s in scene.flat() if isinstance(s, Line) and s.stroke == "faint"]
    assert [p[0] for p in line.points] == [base[0][0], base[1][0]]
    assert [p[1] for p in line.points] == [min(grid), max(grid)]


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    x, y = index_axis("stage", ["a", "b"]), linear_axis("score", [0.0, 100.0])
    series = [Series(f"s{i}", ((1, 50.0), (2, 50.0 + i / 100)), "accent") for i in range(8)]
    scene = line_chart("t", "d", series, x=x, y=y, width=800)
    labels = [s for s in scene.flat() if isinstance(s, Label) and s.fill == "accent"]
    heights = sorted(label.y for label in labels)
    assert len(heights) == 8
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(heights))


@pytest.mark.parametrize("width", [360.0, 800.0])
def test_everything_is_within_the_scene(width: float) -> None:
    names = [f"task {i}" for i in range(15)]
    x, y = stage_axis(names, width), linear_axis("score", [0.0, 100.0])
    series = [Series(n, ((1, 10.0), (15, 90.0 - i)), palette.series_role(i)) for i, n in enumerate(names)]
    cells = [[50.0 if j <= i else None for j in range(15)] for i in range(15)]
    scenes = [
        line_chart("t", "d", series, x=x, y=y, width=width, marks=[Mark(1, "1 first"), Mark(14, "14 late")]),
        small_multiples("t", "d", [Panel(s.name, (s,)) for s in series], x=x, y=y, width=width, names=series),
        bar_chart(
            "t", "d", [Bar("a" * 60, (("p", 3.0, "accent"), ("q", 1.0, "series1")))],
            axis=linear_axis("s", [4.0], zero=True), width=width,
        ),
        heat_map("t", "d", rows=names, columns=names, cells=cells, low=0, high=100, text=str, width=width),
    ]  # fmt: skip
    for scene in scenes:
        for shape in scene.flat():
            match shape:
                case Line():
                    inside = all(
                        0 <= px <= scene.width and 0 <= py <= scene.height for px, py in shape.points
                    )
                case Rect():
                    inside = shape.x >= 0 and shape.x + shape.width <= scene.width + 0.01 and shape.width >= 0
                case Dot() | Label():
                    inside = 0 <= shape.x <= scene.width and 0 <= shape.y <= scene.height
            assert inside, shape


def test_bars_are_as_long_as_their_numbers() -> None:
    bars = [Bar("a", (("p", 2.0, "accent"), ("q", 1.0, "series1"))), Bar("b", (("p", 6.0, "accent"),))]
    scene = bar_chart("t", "d", bars, axis=linear_axis("s", [6.0], zero=True), width=500)
    widths = [shape.width for shape in scene.flat() if isinstance(shape, Rect)]
    assert [w / widths[2] for w in widths] == pytest.approx([1 / 3, 1 / 6, 1])


def test_a_long_curve_keeps_its_ends_and_its_spikes() -> None:
    points = [(float(i), 1.0) for i in range(10_000)]
    points[4321] = (4321.0, 99.0)
    points[7000] = (7000.0, -5.0)
    kept = thinned(points, 600)
    assert len(kept) <= 700
    assert {points[0], points[-1], points[4321], points[7000]} <= set(kept)
    assert list(kept) == sorted(kept)
    assert thinned(points[:100], 600) == tuple(points[:100])


def test_svg_files_are_escaped_and_standalone() -> None:
    evil = '<script>alert("&")</script>'
    scene = Scene(50, 20, evil, evil, (Label(1, 10, evil), Dot(5, 5, 2, "accent", evil)))
    root = ET.fromstring(to_svg_file(scene))
    assert not root.findall(f".//{SVG}script")
    assert root.findtext(f"{SVG}title") == evil
    assert [e.text for e in root.findall(f"{SVG}text")] == [evil]
    assert palette.LIGHT["accent"] in (root.findtext(f"{SVG}style") or "")
    assert "<script" not in to_svg(scene)
    assert ET.fromstring(str(to_svg(scene))).attrib["aria-label"] == f"{evil}. {evil}"
