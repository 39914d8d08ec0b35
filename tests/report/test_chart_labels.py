"""Every label lies within its figure, for names of all lengths and scripts, and each tick is written as its value."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run

from nlora.report import page, paper_figures
from nlora.report.charts.axes import Axis, index_axis, linear_axis, number
from nlora.report.charts.lines import Series, line_chart
from nlora.report.charts.scene import Dot, Label, Scene, clipped, text_width
from nlora.report.page_blocks import NARROW, WIDE, Figure, Section
from nlora.report.run_files import load_runs

NAMES = {
    "short": ("agnew", "dbped", "yahoo"),
    "of 15 letters": ("product_reviews", "news_headlines1", "movie_sentiment"),
    "of 24 letters": ("customer complaints bank", "product review category1", "news headlines of today1"),
    "capitals": ("AMAZON", "MULTIRC_WOMENS", "WWWWWWWWWWWW"),
    "Chinese": ("情感分析任务第一个数据集合", "新闻标题分类任务数据集合二", "电影评论"),
    "many": tuple(f"mm task with quite a long name of {k:02}" for k in range(15)),
}


def drawn(runs: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """The figures of the page about these runs in both widths, and those for a publication."""
    sections: list[Section] = []
    monkeypatch.setattr(page, "_laid_out", lambda *given: sections.extend(given[4]) or "")
    files = load_runs(runs)
    page.render(files)
    blocks = [block for section in sections for block in section.blocks]
    for block in blocks:  # grows by the blocks inside blocks
        blocks += [*getattr(block, "blocks", ()), *getattr(block, "tabs", ())]
        if isinstance(block, Figure):
            yield from map(block.draw, (WIDE, NARROW))
    for _, scene in paper_figures._figures(files, None):
        yield scene


def by_the_charts(label: Label) -> float:
    return text_width(label.text, label.size, bold=label.bold)


@cache
def _font(weight: str) -> Any:
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return FT2Font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))


def in_the_pdf(label: Label) -> float:
    """The width in pixels by the metrics of the font that PDF files embed."""
    from matplotlib.ft2font import LoadFlags

    font = _font("bold" if label.bold else "normal")
    font.set_size(label.size * 0.93, 72)
    known = "".join(c if font.get_char_index(ord(c)) else "x" for c in label.text)
    font.set_text(known, flags=LoadFlags.NO_HINTING)
    return float(font.get_width_height()[0]) / 64


@pytest.mark.parametrize("names", NAMES.values(), ids=list(NAMES))
def test_every_label_is_within_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    one = make_run(tmp_path / "er", name="er", tasks=names, analyzed=True, steps=400)
    two = make_run(tmp_path / "ec", name="ec", tasks=names, analyzed=True, method="nlora", fewer=1)
    measures = [by_the_charts, *([in_the_pdf] if find_spec("matplotlib") else [])]
    cut = []
    for scene in (*drawn([one], monkeypatch), *drawn([one, two], monkeypatch)):
        for label in (s for s in scene.flat() if isinstance(s, Label) and not s.angle):
            for wide in {measure(label) for measure in measures}:
                left = label.x - {"start": 0.0, "middle": wide / 2, "end": wide}[label.anchor]
                if left < -0.5 or left + wide > scene.width + 0.5:
                    cut.append((scene.title, scene.width, label.text, left, left + wide))
    assert cut == []


def test_the_first_and_the_last_stage_are_named_in_full() -> None:
    for names in (NAMES["of 24 letters"], NAMES["of 24 letters"][:2]):
        axis = index_axis("stage", names)
        series = [Series(name, ((1, 1.0), (2, 2.0)), "accent") for name in ("er", "ec")]
        scene = line_chart("t", "d", series, x=axis, y=linear_axis("y", [1.0, 2.0]), width=WIDE)
        assert set(names) <= {shape.text for shape in scene.flat() if isinstance(shape, Label)}


@pytest.mark.parametrize("text", ["m" * 40, "AMAZON" * 9, "情感分析任务" * 9, "a name of many letters"])
def test_a_name_is_cut_to_pixels_whatever_its_letters(text: str) -> None:
    for room in range(30, 400, 7):
        short = clipped(text, room)
        assert text_width(short) <= room
        assert short == text or text_width(short) > room - 3 * 13  # no more than needed is cut


def ranges() -> Iterator[tuple[float, float]]:
    yield from (
        (12.345, 12.352),
        (50256.8, 50257.1),
        (0.0, 1.2e-4),
        (99.99, 100.0),
        (2e7, 2.3e7),
        (-3e-5, 2e-5),
    )
    draw = random.Random(1)
    for _ in range(500):
        low = draw.choice((1, -1)) * 10 ** draw.uniform(-7, 8)
        yield low, low + abs(low) * 10 ** draw.uniform(-6, 3)


def value_of(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


@pytest.mark.parametrize("ticks", [3, 5, 6])
def test_ticks_are_written_as_their_values(ticks: int) -> None:
    for low, high in ranges():
        axis = linear_axis("y", [low, high], ticks=ticks)
        texts = [text for _, text in axis.ticks]
        assert len(set(texts)) == len(texts), (low, high, texts)
        step = axis.ticks[1][0] - axis.ticks[0][0]
        for value, text in axis.ticks:
            assert value_of(text) == pytest.approx(value, rel=1e-12, abs=1e-6 * step), (low, high, texts)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([12.345, 12.352], ["12.344", "12.346", "12.348", "12.35", "12.352"]),
        ([0.0, 1.2e-4], ["0", "2.5e−5", "5e−5", "7.5e−5", "1e−4", "1.25e−4"]),
        ([0.0, 1.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.0, 11000.0], ["0", "2,500", "5,000", "7,500", "10,000", "12,500"]),
    ],
)
def test_ticks_have_no_more_digits_than_they_need(values: list[float], texts: list[str]) -> None:
    assert [text for _, text in linear_axis("y", values).ticks] == texts


def test_points_close_together_have_different_texts_on_hover() -> None:
    y = linear_axis("perplexity", [50256.8, 50257.1])
    points = ((1, 50256.8), (2, 50256.95), (3, 50257.1))
    scene = line_chart("t", "d", [Series("s", points, "accent")], x=index_axis("x", "abc"), y=y, width=400)
    titles = [shape.title for shape in scene.flat() if isinstance(shape, Dot)]
    assert titles == ["s: 50,256.8 at a", "s: 50,256.95 at b", "s: 50,257.1 at c"]
    assert Axis("t", 1e-6, 1.0, ((1e-6, "1e−6"),), log=True).text(1.234e-5) == "1.234e−5"
    assert linear_axis("score", [0.0, 100.0]).text(61.81818) == "61.82"
    assert number(12345.6) == "12,346"
