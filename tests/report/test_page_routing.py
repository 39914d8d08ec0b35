"""The page's confusion matrix of tasks, and what tables call a run that guesses them."""

from __future__ import annotations

import json
from pathlib import Path

from made_runs import make_run
from page_reader import page_of, table_of

from nlora.report.comparison import compare, read_runs
from nlora.runs.routing import Routing
from nlora.runs.summary import read_summary

TASKS = ("colors", "plants")
GUESSES = {"colors": ["colors"] * 19 + ["plants"], "plants": ["plants"] * 14 + ["colors"] * 6}


def routed(folder: Path, seed: int = 1) -> Path:
    """A run that guessed the tasks of 40 examples, 33 of them right."""
    run = make_run(folder, name="served", tasks=TASKS, seed=seed)
    found = Routing.of(TASKS, GUESSES)
    assert found is not None
    values = json.loads((run / "summary.json").read_text())
    added = {"serve": "routed", "routing": found.model_dump(mode="json")}
    (run / "summary.json").write_text(json.dumps({**values, **added}))
    return run


def test_the_page_has_the_confusion_matrix(tmp_path: Path) -> None:
    root = page_of(tmp_path, routed(tmp_path / "run"))
    assert table_of(root, "Test examples by task and guess") == [["colors", "19", "1"], ["plants", "6", "14"]]
    section = root.one("section", id="routing")
    assert "The task of 82.5 % of the test examples was guessed right." in section.text
    assert "just learned" not in section.text
    assert [a.text for a in root.all("a", href="#routing")] == ["Guesses"]
    assert "a router guesses the task of each text" in root.text


def test_runs_without_guesses_have_no_such_section(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", name="plain", tasks=TASKS)
    assert page_of(tmp_path, plain).all("section", id="routing") == []
    root = page_of(tmp_path, plain, routed(tmp_path / "run"))
    assert table_of(root, "Guessed tasks of served")[0] == ["colors", "19", "1"]


def test_seeds_of_another_serving_are_not_averaged(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "plain", name="served", tasks=TASKS, seed=1),
        routed(tmp_path / "a", seed=2),
        routed(tmp_path / "b", seed=3),
    ]
    rows = compare(read_runs(runs)).rows
    assert [(row.label, row.seeds) for row in rows] == [
        ("served (inclora)", (1,)),
        ("served (inclora, routed)", (2, 3)),
    ]
    assert read_summary(runs[0]).serve is None
