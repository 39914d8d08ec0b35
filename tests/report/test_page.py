"""The page's structure for one run, several, and unfinished ones; it loads nothing, and data stay text."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from made_runs import make_run
from page_reader import page_of, read_page, table_of

from nlora.errors import RunError
from nlora.report.run_files import load_runs
from nlora.report.write import write_report


@pytest.mark.parametrize("name", ["half", "empty", "single", "bare"])
def test_an_unfinished_run_has_every_section(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = page_of(tmp_path, folders[name])
    if name in {"half", "empty"}:
        assert f"{int(name == 'half')} of 3 tasks learned" in root.one("p", role="status").text
    assert len(root.one("nav").all("a")) == 10


def test_several_runs_are_compared_on_one_page(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"], folders["order"], folders["half"])
    assert [row[0] for row in table_of(root, "The runs side by side")] == ["made", "order", "half"]
    assert "the same tasks in different orders" in root.one("section", id="results").text
    assert len(root.one("section", id="matrix").all("table")) == 3
    assert [row[0] for row in table_of(root, "Where the runs differ")] == ["made", "order", "half"]
    different = page_of(tmp_path, folders["one"], folders["other"])
    assert "These runs learned different tasks" in different.one("section", id="results").text
    assert not different.all("td", class_="strong")


def test_runs_of_one_name_get_distinct_labels(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (1, 2)]
    assert [run.label for run in load_runs(runs)] == ["made, seed 1", "made, seed 2"]
    twins = [make_run(tmp_path / name) for name in ("a", "b")]
    assert [run.label for run in load_runs(twins)] == ["a", "b"]
    with pytest.raises(RunError, match="is given twice"):
        load_runs([twins[0], twins[0]])


@pytest.mark.parametrize("name", ["one", "long", "half"])
def test_the_structure_is_accessible(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = page_of(tmp_path, folders[name])
    ids = [e.attributes["id"] for e in root.elements() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    links = [a.attributes["href"] for a in root.all("a")]
    assert all(link[1:] in ids for link in links)
    assert root.one("html").attributes["lang"] == "en"
    assert len(root.all("main")) == len(root.all("h1")) == 1
    levels = [int(e.tag[1]) for e in root.elements() if re.fullmatch(r"h[1-6]", e.tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for table in root.all("table"):
        assert table.one("caption").text
        assert all(th.attributes.get("scope") in {"col", "row"} for th in table.all("th"))
    for svg in root.all("svg"):
        assert svg.attributes["role"] == "img"
        assert len(svg.attributes["aria-label"]) > 20
    assert all(button.text for button in root.all("button"))
    for key in ("aria-controls", "aria-labelledby"):
        assert all(e.attributes[key] in ids for e in root.elements() if key in e.attributes)


def test_the_page_loads_nothing_and_stays_small(folders: dict[str, Path], tmp_path: Path) -> None:
    path = write_report([folders["long"], folders["one"]], tmp_path / "page.html")
    assert path.stat().st_size < 2_000_000
    text = path.read_text()
    outward = {"src", "href", "action", "srcset", "poster", "data", "background", "xlink:href"}
    places = [
        e.attributes[name] for e in read_page(path).elements() for name in outward & e.attributes.keys()
    ]
    assert all(place.startswith(("#", "data:,")) for place in places)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    outside = {"http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\s\"'<>\\]+", text)) <= outside


def test_pages_of_many_runs_leave_out_the_lists_of_pairs(tmp_path: Path) -> None:
    many = [make_run(tmp_path / f"r{k}", name=f"r{k}", tasks=("a", "b"), analyzed=True) for k in range(9)]
    root = page_of(tmp_path, *many)
    assert not any("All measures" in caption.text for caption in root.all("caption"))
    assert "run's analysis.json has it" in root.one("section", id="collisions").text
    assert any("All measures" in caption.text for caption in page_of(tmp_path, *many[:8]).all("caption"))


def test_markup_in_data_stays_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    run = make_run(
        tmp_path / "run", name=f"{evil}name", tasks=(evil, "b", "c"), label="</script><b>label",
        wrong='"><i>wrong', sentence="</script><script>alert(1)</script><!-- {}", analyzed=True,
    )  # fmt: skip
    root = page_of(tmp_path, run)
    assert not root.all("img") + root.all("b") + root.all("i")
    assert len(root.all("script")) == 3
    example = root.all("li", class_="example")[0]
    assert example.attributes["data-task"] == evil
    assert example.one("p", class_="text").text.startswith("</script><script>alert(1)</script><!-- ")
    assert [dd.text for dd in example.all("dd")] == ["</script><b>label"] * 2 + ['"><i>wrong']
    style = json.loads("".join(root.one("script", id="figure-style").pieces))["style"]
    assert "<" not in style


def test_what_differs_between_runs_is_shown_whatever_the_key(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", name="one")
    two = make_run(
        tmp_path / "two", name="two", quantize="4bit", train={"schedule": "linear"}, router={"examples": 50},
        evaluate={"batch_size": 2},
    )  # fmt: skip
    (table,) = (t for t in page_of(tmp_path, one, two).all("table") if "runs differ" in t.one("caption").text)
    columns = [cell.text for cell in table.one("thead").all("th")]
    assert columns == ["run", "training", "train.schedule", "router.examples"]
    rows = table_of(page_of(tmp_path, one, two), "Where the runs differ")
    assert "4bit backbone, computing in float32" in rows[1][1]
    assert [row[2:] for row in rows] == [["constant", "100"], ["linear", "50"]]
