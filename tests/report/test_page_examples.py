"""Forgotten examples and prompts on the page are those of the predictions."""

from __future__ import annotations

import re
from pathlib import Path

from made_runs import TESTS, make_run, right_answers
from page_reader import page_of, table_of

from helpers import without_checksums
from nlora.report.forgotten_examples import find_forgotten, prompts_of, shortened
from nlora.report.run_files import load_run

TASKS = ("colors", "animals", "plants")


def test_forgotten_examples_are_those_right_then_and_wrong_now(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    root = page_of(tmp_path, folders["one"])
    rows = table_of(root, "Correct answers when just learned and at the end")
    then = [right_answers(i, i, 3) for i in (1, 2)]
    now = [right_answers(i, 3, 3) for i in (1, 2)]
    lost = [a - b for a, b in zip(then, now, strict=True)]
    # Nothing was gained, so an exact test is twice the chance that d tosses all fall on one side; then Holm for two.
    small, large = sorted(min(1.0, 2 * 0.5**d) for d in lost)
    corrected = {small: min(1.0, 2 * small), large: max(large, min(1.0, 2 * small))}
    assert rows == [
        [task, str(TESTS), str(a), str(b), str(d), "0", f"{corrected[min(1.0, 2 * 0.5**d)]:.3f}"]
        for task, a, b, d in zip(TASKS, then, now, lost, strict=False)
    ]
    shown = root.all("li", class_="example")
    assert [e.attributes["data-task"] for e in shown].count("colors") == lost[0]
    assert len(shown) == sum(lost)
    first = next(e for e in shown if e.attributes["data-task"] == "colors")
    assert first.one("p", class_="text").text == f"the thing number {now[0]} was painted"
    assert [dd.text for dd in first.all("dd")] == ["red", "red", "blue"]


def test_the_list_of_examples_is_capped(folders: dict[str, Path], tmp_path: Path) -> None:
    found = find_forgotten(load_run(folders["one"]), most=1)
    assert [len(task.examples) for task in found] == [1, 1]
    assert sum(task.forgotten for task in found) > 2
    assert shortened("word " * 500, 100).count("…") == 1
    assert len(shortened("word " * 500, 100)) <= 103


def test_examples_are_matched_by_text_not_by_position(folders: dict[str, Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    without_checksums(run)
    before = find_forgotten(load_run(run), most=99)
    last = run / "outputs/3-plants/predict_eval_predictions.jsonl"
    last.write_text("\n".join(reversed(last.read_text().splitlines())) + "\n")
    after = find_forgotten(load_run(run), most=99)
    assert [(t.task, t.forgotten, t.gained) for t in after] == [
        (t.task, t.forgotten, t.gained) for t in before
    ]


def test_whole_prompts_are_shown(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"])
    block = root.one("details", id="prompts")
    assert [dt.text for dt in block.all("dt")] == list(TASKS)  # the last task's too
    prompt = "Task:TC\nDataset:colors\nWhich color is it?\nthe thing number 0 was painted\nAnswer:"
    assert block.all("pre")[0].pieces == [prompt]
    assert block.all("p", class_="foot")[0].text == "expected: red; answered: red"


def test_a_very_long_prompt_is_visibly_shortened(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("colors",))
    without_checksums(run)
    (file,) = run.glob("outputs/*/predict_eval_predictions.jsonl")
    file.write_text(file.read_text().replace("Which color is it?", "Option: " + "label, " * 2000))
    (shown,) = prompts_of(load_run(run)).values()
    assert len(shown.text) < 8100
    assert re.search(r"\n… [\d,]+ characters left out …\n", shown.text)
    assert shown.text.startswith("Task:TC\nDataset:colors\nOption: label, ")
    assert shown.text.endswith("label, \nthe thing number 0 was painted\nAnswer:")
