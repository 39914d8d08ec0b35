"""A comparison as a terminal table, Markdown, LaTeX and CSV: the same numbers and marks, whole and escaped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compared_runs import compared, run, shown, table_of

from nlora.report.comparison_formats import written


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_is_truncated_at_any_width(tmp_path: Path, width: int) -> None:
    for seed, last in ((1, (40.04, 80)), (22222, (50, 81))):
        run(
            tmp_path / str(seed),
            "a-name-that-goes-on-and-on-[bold]",
            seed=seed,
            last=last,
            rate=seed / 50_000,
        )
    run(tmp_path / "other", "other", learned=1)
    text = shown(compared(tmp_path), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in ("62.8 ±3.9", "-35.0 ±7.0", "35.0 ±7.0", "22.2 ±31.4", "460,800", "185 h", "1.00 GiB"):
        assert number in text, number


def test_the_best_row_is_marked(tmp_path: Path) -> None:
    folders = [run(tmp_path / "1", "one"), run(tmp_path / "2", "two_%", last=(70, 80))]
    comparison = compared(*folders)
    assert re.search(r"two_% \(inclora\) +1 +75\.0\*", shown(comparison, 120))
    assert "| two_% (inclora) | 1 | **75.0** | -10.0 |" in written(comparison, "markdown")
    assert r"two\_\% (inclora) & 1 & \textbf{75.0} & $-$10.0 &" in written(comparison, "latex")


def test_all_rows_that_tie_for_the_best_are_marked(tmp_path: Path) -> None:
    lasts = (
        (20, 80),
        (30, 70),
        (49.96, 50),
        (10, 20),
    )  # averages of 50, 50, 49.98 and 15: three are shown as 50.0
    folders = [run(tmp_path / str(i), f"r{i}", last=last) for i, last in enumerate(lasts)]
    comparison = compared(*folders)
    found = {
        line.split()[0]: "*" in line for line in shown(comparison, 120).splitlines() if "(inclora)" in line
    }
    assert found == {"r0": True, "r1": True, "r2": True, "r3": False}
    assert written(comparison, "markdown").count("**50.0**") == 3
    assert written(comparison, "latex").count(r"\textbf{50.0}") == 3


def test_rows_of_one_name_are_told_apart_in_every_format(tmp_path: Path) -> None:
    folders = [run(tmp_path / "1", "one"), run(tmp_path / "2", "one", train={"epochs": 7})]
    comparison = compared(*folders)
    labels = [f"one (inclora) in {folder}" for folder in folders]
    assert [(line["run"], line["label"]) for line in table_of(comparison)] == [
        ("one", label) for label in labels
    ]


def test_names_cannot_break_a_table(tmp_path: Path) -> None:
    folder = run(tmp_path / "1", "a|b*<c>&\\_{x}")
    comparison = compared(folder)
    header, _, line = written(comparison, "markdown").splitlines()[:3]
    assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", header))
    latex = written(comparison, "latex")
    assert r"a$|$b*$<$c$>$\&\textbackslash{}\_\{x\} (inclora)" in latex
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    assert re.search(r"\n\{\}\[b\] .*&", written(compared(run(tmp_path / "2", "[b]")), "latex"))
    assert table_of(comparison)[0]["run"] == "a|b*<c>&\\_{x}"
