"""`nlora compare --base`: differences with their intervals in every format."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from compared_runs import run as run_without_answers
from made_runs import make_run

from nlora.cli.app import main
from nlora.errors import InputErrors
from nlora.report.comparison import compare, read_runs
from nlora.report.comparison_formats import written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants of two seeds, and a third run that is not finished."""
    root = tmp_path_factory.mktemp("base")
    for name, seed, fewer in (("inclora", 1, 4), ("inclora", 2, 3), ("nlora", 1, 1), ("nlora", 2, 1)):
        make_run(root / f"{name}{seed}", name=name, method=name, seed=seed, fewer=fewer)
    make_run(root / "olora1", name="olora", method="olora", stages=2)
    return root


def test_every_format_has_the_difference_and_its_interval(folder: Path) -> None:
    found = compare(read_runs([folder]), base="inclora")
    (row,) = [row for row in found.rows if row.name == "nlora"]
    assert row.minus_base is not None
    assert row.minus_base.mean == pytest.approx(100 * (3 + 2) / 2 / 20)
    low, high = row.minus_base.interval or (0, 0)
    assert 0 < low < 12.5 < high < 25
    rows = {line["run"]: line for line in csv.DictReader(io.StringIO(written(found, "csv")))}
    assert float(rows["nlora"]["difference_low"]) == low
    assert rows["nlora"]["base"] == "inclora"
    assert rows["inclora"]["difference_mean"] == rows["olora"]["difference_mean"] == ""
    text = f"+12.5 (+{low:.1f} to +{high:.1f})"
    for shown in (written(found, "table"), written(found, "markdown")):
        assert text in shown
        assert "minus inclora: mean difference in average accuracy" in " ".join(shown.split())
    assert f"$+$12.5 ($+${low:.1f} to $+${high:.1f})" in written(found, "latex")


def test_without_answers_only_the_mean_is_known(tmp_path: Path) -> None:
    for name, last in (("one", (50, 80)), ("two", (60, 80))):
        run_without_answers(tmp_path / name, name, last=last)
    rows = compare(read_runs([tmp_path]), base="one").rows
    assert [row.minus_base and row.minus_base.mean for row in rows] == [None, 5.0]
    assert "+5.0\n" in re.sub(
        r" +\+5\.0 .*", "+5.0", written(compare(read_runs([tmp_path]), base="one"), "table")
    )


def test_a_base_that_is_not_there_is_named(folder: Path) -> None:
    for wrong in ("inclor", "olora"):  # olora has not finished
        with pytest.raises(
            InputErrors, match=f"--base {wrong}: no finished run has this name; choose one of inclora"
        ):
            compare(read_runs([folder]), base=wrong)


def test_the_name_of_the_base_is_text_in_every_format(tmp_path: Path) -> None:
    make_run(tmp_path / "one", name="base_1 [v2]", fewer=1)
    make_run(tmp_path / "two", name="other", method="nlora")
    found = compare(read_runs([tmp_path]), base="base_1 [v2]")
    assert "minus base_1 [v2]" in written(found, "table")
    assert r"minus base\_1 [v2]" in written(found, "latex")
    assert "minus base_1 [v2]" in written(found, "markdown")


def test_the_command_takes_a_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["nlora", "compare", str(folder), "--base", "nlora", "--format", "csv"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["difference_n"] for line in lines if line["run"] == "inclora"] == ["2"]
