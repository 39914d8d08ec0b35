"""Ship or not: a run's tasks against the time when they were learned, and against another run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import COLORS, learn, without_checksums, write_config, write_task
from nlora.analysis.gate import Gate, gate
from nlora.errors import InputErrors, RunError

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Made) -> Path:
    """A finished run of two tasks that forgets."""
    folder = tmp_path_factory.mktemp("gate")
    learn(
        write_config(
            folder, tiny_model("llama"), method="inclora",
            train={"epochs": 6, "batch_size": 8, "learning_rate": 2e-2},
        )
    )  # fmt: skip
    return folder / "run"


def lines(run: Path, stage: str, task: str) -> list[dict[str, Any]]:
    file = run / "outputs" / stage / "predict_eval_predictions.jsonl"
    return [row for row in map(json.loads, file.read_text().splitlines()) if row["Dataset"] == task]


def right(row: dict[str, Any]) -> bool:
    return str(row["Prediction"]) == row["Instance"]["label"]


def test_a_task_is_compared_with_the_stage_that_learned_it(run: Path) -> None:
    verdict = gate(run)
    (colors,) = verdict.tasks
    then, now = lines(run, "1-colors", "colors"), lines(run, "2-animals", "colors")
    assert colors.since == "stage 1"
    assert colors.changes.changes.worse == sum(
        right(a) and not right(b) for a, b in zip(then, now, strict=True)
    )
    assert colors.changes.changes.better == sum(
        right(b) and not right(a) for a, b in zip(then, now, strict=True)
    )
    R = json.loads((run / "summary.json").read_text())["R"]
    assert colors.changes.before == pytest.approx(R[0][0])
    assert colors.changes.after == pytest.approx(R[1][0])
    assert colors.is_allowed == verdict.passed == (R[0][0] - R[1][0] <= 2.0)
    for label, counts in colors.changes.labels.items():
        assert counts.count == sum(row["Instance"]["label"] == label for row in then)


def worsened(run: Path, folder: Path) -> Path:
    """A copy of the run whose last stage answers the first task wrongly throughout."""
    shutil.copytree(run, folder)
    without_checksums(folder)
    file = folder / "outputs" / "2-animals" / "predict_eval_predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        if row["Dataset"] == "colors":
            row["Prediction"] = "nothing"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_same_examples_at_other_rows_of_a_file_are_the_same_examples(run: Path, tmp_path: Path) -> None:
    """As in the file of a sample. By their ids, which are row numbers, some were others and some were missing."""
    worse = worsened(run, tmp_path / "worse")
    expected = gate(worse, against=run)
    for file in (worse / "outputs").glob("*/predict_eval_predictions.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["Instance"]["id"] = str(int(row["Instance"]["id"]) + 2)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = gate(worse, against=run)
    assert [task.changes for task in found.tasks] == [task.changes for task in expected.tasks]
    assert [task.changes.changes.count for task in found.tasks] == [
        len(lines(run, "2-animals", task)) for task in ("colors", "animals")
    ]


def test_what_may_be_lost_is_up_to_the_limits(run: Path, tmp_path: Path) -> None:
    worse = worsened(run, tmp_path / "worse")
    then = lines(run, "1-colors", "colors")
    drop = 100 * sum(map(right, then)) / len(then)
    assert drop > 2
    assert not gate(worse).passed
    assert gate(worse, max_drop=drop).passed
    p_value = gate(worse).tasks[0].p_value
    assert p_value == pytest.approx(min(1.0, 2 * 0.5 ** sum(map(right, then))))
    assert gate(worse, alpha=max(p_value / 2, 1e-9)).passed
    assert gate(worse, alpha=min(p_value * 1.01, 0.999)).passed == (p_value >= 0.999)


def test_a_drop_of_exactly_what_is_allowed_passes_in_spite_of_rounding(run: Path, tmp_path: Path) -> None:
    n = len(lines(run, "1-colors", "colors"))
    limit = 100 / n
    right_then = next(k for k in range(1, n + 1) if 100 * (k / n) - 100 * ((k - 1) / n) > limit)
    folder = shutil.copytree(run, tmp_path / "run")
    without_checksums(folder)
    for stage, count in (("1-colors", right_then), ("2-animals", right_then - 1)):
        file = folder / "outputs" / stage / "predict_eval_predictions.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for i, row in enumerate(row for row in rows if row["Dataset"] == "colors"):
            row["Prediction"] = row["Instance"]["label"] if i < count else "nothing"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (verdict,) = gate(folder, max_drop=limit).tasks
    assert verdict.changes.drop == pytest.approx(limit)
    assert verdict.is_allowed
    assert not gate(folder, max_drop=limit - 0.01).passed


def test_two_runs_are_compared_on_the_tasks_that_both_scored(run: Path, tmp_path: Path) -> None:
    verdict = gate(worsened(run, tmp_path / "worse"), against=run)
    assert [(v.changes.task, v.changes.drop > 0) for v in verdict.tasks] == [
        ("colors", True),
        ("animals", False),
    ]
    assert verdict.tasks[0].since.endswith(", stage 2")


def test_the_untrained_model_has_no_answers_to_compare_with(run: Path) -> None:
    with pytest.raises(
        InputErrors, match=r"^--against-stage: 0 is the untrained model, whose answers are not"
    ):
        gate(run, against_stage=0)


def test_a_model_is_not_compared_with_itself(run: Path, tmp_path: Path) -> None:
    """It would always pass. A copy is another run, whose answers may be the same."""
    both: dict[str, Any] = {"against": run, "stage": 1, "against_stage": 1}
    for options in ({"against": run}, {"against_stage": 2}, both):
        with pytest.raises(
            InputErrors, match=r"^--against.* would be compared with itself; name another run"
        ):
            gate(run, **options)
    shutil.copytree(run, tmp_path / "copy")
    same = gate(run, against=tmp_path / "copy")
    assert same.passed
    assert all(v.p_value == 1.0 and v.changes.changes.worse == 0 for v in same.tasks)


def test_p_values_are_corrected_for_the_number_of_tasks(run: Path, tmp_path: Path) -> None:
    verdict = gate(worsened(run, tmp_path / "worse"), against=run)
    alone = verdict.tasks[0].changes.changes.p_value
    assert verdict.tasks[0].p_value == pytest.approx(min(1.0, 2 * alone))


def test_it_prints_as_the_command_does(run: Path, nlora: Callable[..., Any]) -> None:
    """In Python, too, where the window's width is not known."""
    printed = str(gate(run)).splitlines()
    assert printed[1].split() == ["task", "since", "before", "after", "change", "worse", "better", "p"]
    _, shown, _ = nlora("gate", run)
    assert " ".join(printed).split() == shown.split()


def test_the_values_are_plain_json(run: Path) -> None:
    values = json.loads(json.dumps(gate(run).values()))
    (task,) = values["tasks"]
    assert (values["schema"], values["max_drop"], task["task"], task["since"]) == (
        1,
        2.0,
        "colors",
        "stage 1",
    )
    assert task["drop"] == pytest.approx(task["before"] - task["after"])
    assert set(task["changes"]) == {"count", "worse", "better"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 1}, "has no earlier task to compare; give --against RUN"),
        ({"stage": 5}, "there is no stage 5"),
        ({"max_drop": -1.0}, "--max-drop: must be a number of percentage points >= 0, not -1"),
        ({"max_drop": float("nan")}, "--max-drop: must be"),
        ({"alpha": 5.0}, "--alpha: must be between 0 and 1, not 5"),
    ],
)
def test_wrong_requests_are_one_line(run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputErrors, match=re.escape(message)) as caught:
        gate(run, **options)
    assert "\n" not in str(caught.value)


def test_runs_of_other_tasks_or_other_examples_are_refused(
    run: Path, tmp_path: Path, tiny_model: Made
) -> None:
    config = write_config(
        tmp_path, tiny_model("llama"), method="inclora", train={"epochs": 1, "batch_size": 8}
    )
    learn(config)
    assert gate(tmp_path / "run", against=run).tasks[0].changes.changes.count > 0  # the same examples
    generated = tmp_path / "generated"
    generated.mkdir()
    learn(
        write_config(
            generated,
            tiny_model("llama"),
            method="inclora",
            train={"epochs": 1},
            evaluate={"decode": "generate"},
        )
    )
    with pytest.raises(
        InputErrors, match=r"task colors: the two are not comparable: decode generate \(the run had"
    ):
        gate(generated / "run", against=run)
    other = tmp_path / "other"
    other.mkdir()
    config = write_config(other, tiny_model("llama"), method="inclora", train={"epochs": 1})
    write_task(other, "colors", COLORS, test=3)
    learn(config)
    with pytest.raises(InputErrors, match="task colors: the two are not comparable: 3 other test examples"):
        gate(other / "run", against=run)
    with pytest.raises(RunError, match="no such folder"):
        gate(run, against=tmp_path / "nowhere")


def test_a_broken_line_is_named(run: Path, tmp_path: Path) -> None:
    broken = worsened(run, tmp_path / "broken")
    file = broken / "outputs" / "2-animals" / "predict_eval_predictions.jsonl"
    file.write_text('{"Dataset": "colors"}\n' + file.read_text())
    with pytest.raises(RunError, match=r"predict_eval_predictions\.jsonl:1: not a prediction of this run"):
        gate(broken)


def test_skipped_stages_are_no_baseline(tmp_path: Path, tiny_model: Made) -> None:
    learn(write_config(tmp_path, tiny_model("llama"), method="mtl", train={"epochs": 1, "batch_size": 8}))
    with pytest.raises(InputErrors, match="has no earlier task to compare"):
        gate(tmp_path / "run")


def test_the_verdict_of_no_task_is_none() -> None:
    assert Gate("m", 2.0, None, ()).passed


def test_a_stage_of_an_older_version_is_compared_by_its_answers(run: Path, tmp_path: Path) -> None:
    """Its record has no digests of the examples."""
    folder = shutil.copytree(run, tmp_path / "run")
    without_checksums(folder)
    file = folder / "outputs/1-colors/stage.json"
    values = json.loads(file.read_text())
    del values["tasks"]
    file.write_text(json.dumps(values))
    assert gate(folder).tasks == gate(run).tasks
    whole = shutil.copytree(run, tmp_path / "whole")  # whose last stage is of that version, too
    without_checksums(whole)
    for file in whole.glob("outputs/*/stage.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tasks": {}}))
    assert gate(whole).tasks == gate(run).tasks
    assert [v.changes.metric for v in gate(whole).tasks] == ["exact_match"]
    for one, other in ((whole, run), (run, whole)):
        against = gate(one, against=other)
        assert [v.changes.task for v in against.tasks] == ["colors", "animals"]
        assert all(v.changes.changes.worse == v.changes.changes.better == 0 for v in against.tasks)
    answers = folder / "outputs/1-colors/predict_eval_predictions.jsonl"
    answers.write_text(answers.read_text().replace('"sentence": "', '"sentence": "other '))
    with pytest.raises(InputErrors, match="task colors: no test example was answered by both"):
        gate(folder)
