"""A run whose tasks have metrics of their own: macro-F1, a function in a file, several accepted answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ANIMALS, COLORS, learn, without_checksums, write_config, write_task
from nlora.analysis.gate import gate
from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.report.comparison import compare, read_runs
from nlora.report.forgotten_examples import find_forgotten
from nlora.report.run_files import load_run
from nlora.runs.answers import read_answers
from nlora.runs.checkpoint import read_stage
from nlora.runs.export.verify import tasks_to_check
from nlora.runs.plan import make_plan
from nlora.runs.summary import read_summary

Made = Callable[[str], Path]
Nlora = Callable[..., Any]
SCORER = """
def overlap(prediction, answers):
    # The share of an answer's letters that the prediction has, for the best answer.
    return max(len(set(prediction) & set(a)) / len(set(a)) for a in answers)
"""
METRICS = {"colors": "macro_f1", "animals": "mine.py:overlap", "notes": "rougeL"}


def tasks_in(folder: Path) -> list[dict[str, Any]]:
    """colors: labels, some examples with two. animals: labels, generated. notes: free text, two answers each."""
    colors = write_task(folder, "colors", COLORS) | {"metric": "macro_f1"}
    test = Path(colors["test"])
    rows = [json.loads(line) for line in test.read_text().splitlines()]
    for row in rows[:3]:
        row["label"] = [row["label"], "blue"]
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    animals = write_task(folder, "animals", ANIMALS) | {"metric": "./mine.py:overlap"}
    notes = write_task(folder, "notes", COLORS)
    del notes["labels"]
    for split in ("train", "test"):
        file = Path(notes[split])
        each = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [row | {"label": [f"it is {row['label']}", f"{row['label']}"]} for row in each]
        file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return [colors, animals, notes]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Made) -> Path:
    """A folder with config.yaml, mine.py, the data, and the finished run."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "mine.py").write_text(SCORER)
    config = write_config(
        folder,
        tiny_model("llama"),
        method="inclora",
        tasks=tasks_in(folder / "data"),
        train={"epochs": 6, "batch_size": 8, "learning_rate": 2e-2, "max_target_tokens": 8},
        evaluate={"batch_size": 8, "decode": "generate"},
    )
    learn(config)
    return folder


def lines(run: Path, stage: int, task: str) -> list[dict[str, Any]]:
    (file,) = run.glob(f"outputs/{stage}-*/predict_eval_predictions.jsonl")
    return [row for row in map(json.loads, file.read_text().splitlines()) if row["Dataset"] == task]


def plain(text: str) -> str:
    return text.lower().strip(" .,!?")


def expected_macro_f1(rows: list[dict[str, Any]]) -> float:
    """In percent, from the lines of the file; an example counts for an accepted answer if it was given."""
    pairs = []
    for row in rows:
        answers, text = row.get("Answers", [row["Instance"]["label"]]), plain(row["Prediction"])
        pairs.append((text if text in answers else answers[0], text if text in COLORS else None))
    scores = []
    for label in {label for pair in pairs for label in pair} - {None}:
        right = pairs.count((label, label))
        scores.append(2 * right / (sum(a == label for a, _ in pairs) + sum(b == label for _, b in pairs)))
    return 100 * sum(scores) / len(scores)


def overlap(row: dict[str, Any]) -> float:
    label = set(row["Instance"]["label"])
    return len(set(row["Prediction"]) & label) / len(label)


def test_each_entry_of_the_matrix_is_by_the_metric_of_its_task(project: Path) -> None:
    run = project / "run"
    summary = read_summary(run)
    assert summary.metrics == METRICS
    for stage in (1, 2, 3):
        row = summary.R[stage - 1]
        assert row[0] == pytest.approx(expected_macro_f1(lines(run, stage, "colors")))
        if stage > 1:
            scores = [overlap(line) for line in lines(run, stage, "animals")]
            assert row[1] == pytest.approx(100 * sum(scores) / len(scores))
            assert [line["Score"] for line in lines(run, stage, "animals")] == pytest.approx(scores)
    assert summary.scoring.endswith("; averages are over all kinds")
    assert "macro-F1 of the generated answer for colors; mine.py:overlap of the generated" in summary.scoring


def test_the_lines_of_a_stage_carry_all_answers_only_where_there_are_several(project: Path) -> None:
    colors = lines(project / "run", 3, "colors")
    assert [line.get("Answers") for line in colors[:3]] == [["red", "blue"], ["green", "blue"], None]
    assert all("Answers" not in line and "Score" not in line for line in colors[3:])
    assert all(("Outside" in line) == (plain(line["Prediction"]) not in COLORS) for line in colors)
    assert lines(project / "run", 3, "notes")[0]["Answers"] == ["it is red", "red"]
    (file,) = (project / "run").glob("outputs/3-*/predict_eval_predictions.jsonl")
    answers = read_answers(file, ["notes"])["notes"].values()
    assert [answer.accepted for answer in answers][:2] == [("it is red", "red"), ("it is green", "green")]


def test_the_results_have_precision_and_recall_of_each_label(project: Path) -> None:
    (file,) = (project / "run").glob("outputs/3-*/predict_results.json")
    found = json.loads(file.read_text())["by_label"]
    assert list(found) == ["animals", "colors"]  # sorted, as the released files; notes has no labels
    rows = lines(project / "run", 3, "colors")
    given = [plain(row["Prediction"]) for row in rows]
    assert found["colors"]["outside"] == sum(text not in COLORS for text in given)
    for label in COLORS:
        values = found["colors"]["labels"][label]
        right = sum(
            text == label and text in row.get("Answers", [row["Instance"]["label"]])
            for text, row in zip(given, rows, strict=True)
        )
        assert values["answered"] == given.count(label)
        expected = round(100 * right / given.count(label), 4) if given.count(label) else None
        assert values["precision"] == expected
    assert sum(v["support"] for v in found["colors"]["labels"].values()) == len(rows)


def test_eval_gives_the_runs_own_scores_and_names_the_metrics(
    project: Path, nlora: Nlora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = nlora("eval", project / "run", "--json")
    assert told.status == 0, told.err
    found = json.loads(told.out)["tasks"]
    assert [task["score"] for task in found] == pytest.approx(list(read_summary(project / "run").R[2]))
    assert {task["task"]: task["metric"] for task in found} == METRICS
    out = nlora("eval", project / "run", "--tasks", "colors,animals").out
    assert out.splitlines()[1].split() == [
        *["task", "examples", "exact", "match", "ROUGE-L", "macro-F1", "mine.py:overlap", "decode", "seconds"]
    ]
    assert f"{found[0]['score']:.1f}*" in out


def test_gate_compares_by_the_metric_and_tests_the_examples(project: Path) -> None:
    run = project / "run"
    R = read_summary(run).R
    colors, animals = (verdict.changes for verdict in gate(run).tasks)
    assert (colors.metric, animals.metric) == ("macro_f1", "mine.py:overlap")
    assert (colors.before, colors.after) == pytest.approx((R[0][0], R[2][0]))
    assert (animals.before, animals.after) == pytest.approx((R[1][1], R[2][1]))
    then, now = lines(run, 2, "animals"), lines(run, 3, "animals")
    assert animals.changes.worse == sum(overlap(a) > overlap(b) for a, b in zip(then, now, strict=True))
    assert animals.labels == {}
    assert set(colors.labels) == set(COLORS)


def test_an_accepted_answer_is_not_forgotten(project: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(project / "run", run)
    without_checksums(run)
    for stage, text in ((1, "red"), (3, "BLUE")):  # blue is accepted in the first three examples
        (file,) = run.glob(f"outputs/{stage}-*/predict_eval_predictions.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["Prediction"] = text
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (colors, _) = find_forgotten(load_run(run), most=9)
    # red is right in examples 0, 3 and 6; blue in 0, 1 and 2, and in 5 and 8.
    assert (colors.right_then, colors.right_now, colors.forgotten, colors.gained) == (3, 5, 2, 4)


def test_an_export_is_compared_by_the_metric(project: Path, nlora: Nlora, tmp_path: Path) -> None:
    told = nlora("export", project / "run", "--as", "merged", tmp_path / "out")
    assert told.status == 0, told.err
    card = (tmp_path / "out/README.md").read_text()
    assert "(colors: macro-F1; animals: mine.py:overlap; notes: ROUGE-L)" in card
    last = read_summary(project / "run").R[2]
    for name, score in zip(METRICS, last, strict=True):
        assert f"| {name} | 9 | {score:.1f} | {score:.1f} | 0 |" in card


def test_a_function_that_was_edited_since_is_named(project: Path, nlora: Nlora, tmp_path: Path) -> None:
    """What the run has is by the function as it was; an edit that changes no score is in nobody's way."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    run = f"output_dir={folder / 'again'}"
    (folder / "mine.py").write_text(f"# as before\n{SCORER}")
    told = nlora("eval", folder / "run", "--tasks", "animals")
    assert (
        "! animals differs from what the run scored: another version of mine.py:overlap, whose file was edited"
        in (" ".join(told.out.split()))
    )
    assert nlora("export", folder / "run", "--as", "merged", tmp_path / "out").status == 0
    (folder / "mine.py").write_text("def overlap(prediction, answers):\n    return 0.25\n")
    for command in (
        ("export", folder / "run", "--as", "merged", tmp_path / "other"),
        ("gate", tmp_path / "out", "--against", folder / "run"),
    ):
        told = nlora(*command)
        assert told.status == 2
        then = read_summary(folder / "run").R[2][1]
        said = f"task animals: mine.py:overlap gives the run's own answers 25.0 now and gave them {then:.1f} when"
        assert said in told.err
    learn(folder / "config.yaml", run, "seed=7")
    told = nlora("gate", folder / "again", "--against", folder / "run")
    assert (told.status, told.err.count("not comparable")) == (2, 1)
    assert "task animals: the two are not comparable: another version of mine.py:overlap" in told.err
    found = compare(read_runs([folder / "run", folder / "again"]))
    assert [row.seeds for row in found.rows] == [(3,), (7,)]
    assert (
        "These runs were scored by different versions of a function; averages are not comparable:"
        in found.notes
    )
    assert not found.compares


def test_free_text_of_an_older_version_is_exported_and_compared_by_exact_match(
    project: Path, tmp_path: Path
) -> None:
    """That version kept no records of its tasks. eval and the matrix say exact match, so the rest does, too."""
    run = tmp_path / "run"
    shutil.copytree(project / "run", run)
    without_checksums(run)
    for file in run.glob("outputs/*/stage.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tasks": {}}))
    (checked,) = tasks_to_check(read_stage(run, None), None, lambda index: index == 2)
    rows = lines(run, 3, "notes")
    right = [plain(row["Prediction"]) in map(plain, row["Answers"]) for row in rows]
    assert (checked.task.name, checked.metric) == ("notes", "exact_match")
    assert checked.score(checked.stored_texts) == pytest.approx(100 * sum(right) / len(right))
    notes = gate(run, against=project / "run").tasks[2].changes
    assert (notes.task, notes.metric, notes.after) == (
        "notes",
        "exact_match",
        pytest.approx(100 * sum(right) / len(right)),
    )


def changed(project: Path, folder: Path, task: int, metric: Any, stages: int) -> Path:
    """A copy of the first stages of the run, and a configuration in which a task has another metric."""
    shutil.copytree(project / "run", folder / "run")
    for stage in range(stages + 1, 4):
        (place,) = (folder / "run").glob(f"outputs/{stage}-*")
        shutil.rmtree(place)
    values = yaml.safe_load((project / "config.yaml").read_text())
    values["tasks"][task]["metric"] = metric
    values["output_dir"] = str(folder / "run")
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    shutil.copy(project / "mine.py", folder)
    return folder / "config.yaml"


def test_the_metric_of_a_learned_task_may_not_change_and_that_of_a_later_one_may(
    project: Path, tmp_path: Path, nlora: Nlora
) -> None:
    told = nlora("run", changed(project, tmp_path / "a", 0, "accuracy", stages=2))
    assert told.status == 2
    assert 'tasks.0.metric: "macro_f1" in the folder, "accuracy" now' in told.err
    assert (
        learn(changed(project, tmp_path / "b", 2, "exact_match", stages=2)).metrics["notes"] == "exact_match"
    )


def test_a_task_that_has_scores_before_it_is_learned_keeps_its_metric(
    tmp_path: Path, tiny_model: Made
) -> None:
    config = write_config(
        tmp_path, tiny_model("llama"), train={"epochs": 1, "batch_size": 8}, evaluate={"unseen": True}
    )
    learn(config)
    shutil.rmtree(tmp_path / "run/outputs/2-animals")
    values = yaml.safe_load(config.read_text())
    values["tasks"][1]["metric"] = "macro_f1"
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(InputErrors) as told:
        learn(config)
    assert list(map(str, told.value.problems)) == [
        "task animals: it is scored by macro-F1, but stage 1 was scored on it by exact match; restore its metric, or "
        "choose another output_dir"
    ]
    values["tasks"][1]["metric"] = "accuracy"  # the same score
    config.write_text(yaml.safe_dump(values))
    assert learn(config).metrics == {"colors": "exact_match", "animals": "exact_match"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "return 7",
            "task animals: mine.py:overlap returned 7 for example 0; it must return a number from 0 to 1",
        ),
        ("return 'yes'", "task animals: mine.py:overlap returned 'yes' for example 0; it must"),
        (
            "raise OSError('no\\n file')",
            "task animals: mine.py:overlap raised OSError: no file on example 0, prediction ",
        ),
    ],
)
def test_a_function_that_cannot_score_is_found_before_anything_is_trained(
    project: Path, tmp_path: Path, nlora: Nlora, body: str, said: str
) -> None:
    config = changed(project, tmp_path / "a", 1, "./mine.py:overlap", stages=0)
    (tmp_path / "a/mine.py").write_text(f"def overlap(prediction, answers):\n    {body}\n")
    shutil.rmtree(tmp_path / "a/run")
    with pytest.raises(InputErrors) as found:
        make_plan(load_config(config))
    (problem,) = found.value.problems
    line = 1 + next(i for i, text in enumerate(config.read_text().splitlines()) if "mine.py" in text)
    assert str(problem).startswith(f"{config}:{line}: tasks.1.metric: {said}")
    assert nlora("run", config).status == 2
    assert not (tmp_path / "a/run").exists()


def test_a_function_that_fails_after_training_leaves_what_was_trained(
    project: Path, tmp_path: Path, nlora: Nlora
) -> None:
    config = changed(project, tmp_path / "a", 1, "./mine.py:overlap", stages=1)
    file = tmp_path / "a/mine.py"
    file.write_text("def overlap(prediction, answers):\n    return 1 if prediction in answers else None\n")
    told = nlora("run", config)
    assert told.status == 2
    assert "task animals: mine.py:overlap returned None for example " in told.err
    assert "stage 2, animals is trained" in told.out
    shutil.copy(project / "mine.py", file)
    assert learn(config).R == read_summary(project / "run").R
