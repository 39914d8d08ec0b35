"""Every number on the page is that of the run's files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from made_runs import changed_summary, make_run, matrix
from page_reader import page_of, table_of

from nlora.config.overrides import parse
from nlora.evaluation.continual_metrics import summarize
from nlora.report.run_files import load_runs
from nlora.report.sections.stages import _task_lines
from nlora.report.variants import variants_of

TASKS = ("colors", "animals", "plants")


def test_the_headline_numbers_come_from_the_matrix(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"])
    expected = summarize(matrix(3))
    facts = {
        f.one("dt").text: f.one("dd", class_="value").text for f in root.one("dl", class_="facts").all("div")
    }
    assert facts["average accuracy"] == f"{expected['average_accuracy']:.1f}"
    assert facts["backward transfer"] == f"{expected['backward_transfer']:.1f}".replace("-", "−")
    assert facts["forgetting"] == f"{expected['forgetting']:.1f}"
    assert "mean over the 2 earlier tasks" in root.one("dl", class_="facts").text


def test_the_matrix_is_a_table_with_the_diagonal_marked(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"])
    rows = table_of(root, "Accuracy on each task after each stage")
    R = matrix(3)
    for k, row in enumerate(rows):
        assert row[0] == f"{k + 1} {TASKS[k]}"
        texts = ["" if value is None else f"{value:.1f}" for value in R[k]]
        texts[k] += " just learned"
        assert row[1:] == texts
    heat = root.one("figure", id="matrix-1").one("table")
    assert len(heat.all("td", class_="marked")) == 3


def test_the_header_describes_the_run(folders: dict[str, Path], tmp_path: Path) -> None:
    text = page_of(tmp_path, folders["one"]).one("header", id="top").text
    for part in (
        "made/up",
        "nlora, penalty update_l1, weight 1e-05, reduction sum",
        "colors, animals, plants",
        "160 per task",
        "1 epoch in batches of 32, learning rate 0.001",
        "the most likely of the task's labels, on the test examples",
    ):
        assert part in text


def test_the_header_shows_a_default_weight(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", method="nlora")
    assert "weight 3e-05" in page_of(tmp_path, run).one("header", id="top").text


def test_losses_and_times_come_from_the_files(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"])
    history = json.loads((folders["one"] / "outputs/2-animals/trainer_state.json").read_text())["log_history"]
    row = table_of(root, "First and last logged loss of each stage")[1]
    assert row[:2] == ["2 animals", "12"]
    assert float(row[2]) == pytest.approx(history[0]["loss"], rel=1e-3)
    assert float(row[3]) == pytest.approx(history[11]["loss"], rel=1e-3)
    assert table_of(root, "Each stage")[0] == ["1 colors", "31 s", "0.8 s", "2.0 s", "5", "1.77 GiB"]


def test_an_older_file_does_not_say_how_long_preparing_took(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for file in run.glob("outputs/*/stage.json"):
        record = json.loads(file.read_text())
        del record["prepare_seconds"]
        file.write_text(json.dumps(record))
    assert table_of(page_of(tmp_path, run), "Each stage")[0] == ["1 colors", "31 s", "2.0 s", "5", "1.77 GiB"]


def test_runs_side_by_side_show_preparing_where_it_takes_long(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, name=name) for name in ("plain", "searched")]
    assert "Preparing:" not in page_of(tmp_path, *runs).text  # 0.75 to 2.25 s of 31 to 33 s
    path = runs[1] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prepare_seconds": [20, 30, 40]}))
    root = page_of(tmp_path, *runs)
    shown = {row[0]: row[-3:-1] for row in table_of(root, "The runs side by side")}
    assert shown == {"plain": ["96 s", "4.5 s"], "searched": ["96 s", "90 s"]}
    assert "Preparing: what the method does before and after training" in root.text


def test_a_stage_without_training_is_not_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    stage = run / "outputs/1-colors"
    for file in stage.glob("*"):
        if file.name != "stage.json":
            file.unlink()
    record = json.loads((stage / "stage.json").read_text())
    record |= {"scores": {}, "train_seconds": 0.0, "evaluate_seconds": 0.0, "is_skipped": True}
    (stage / "stage.json").write_text(json.dumps(record))
    summary = json.loads((run / "summary.json").read_text())
    summary["R"][0] = [None] * 3
    (run / "summary.json").write_text(json.dumps(summary))
    root = page_of(tmp_path, run)
    assert [row[0] for row in table_of(root, "Each stage")] == ["2 animals", "3 plants"]
    assert [row[0] for row in table_of(root, "Correct answers when just learned and at the end")] == [
        "animals"
    ]


def test_collisions_are_shown_or_the_command_that_computes_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    root = page_of(tmp_path, folders["one"])
    found = json.loads((folders["one"] / "analysis.json").read_text())
    rows = table_of(root, "Collision rate of each pair, %")
    assert rows[1] == ["plants"] + [
        f"{100 * found['pairs'][f'{a}|plants']['collision_rate']:.1f}" for a in TASKS[:2]
    ]
    keys = {figure.attributes["id"] for figure in root.all("figure")}
    wanted = {"collision-layers", "collision-kinds", "nuclear-norm", "collision-thresholds", "density",
              "forgetting-collision-rate"}  # fmt: skip
    assert wanted <= keys
    assert "0.61" in table_of(root, "Is more collision associated with more forgetting?")[0]
    bare = page_of(tmp_path, folders["bare"]).one("section", id="collisions")
    assert bare.one("code").text == f"nlora analyze {folders['bare']}"


def test_without_an_analysis_the_collisions_of_the_summary_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("a", "b"))
    summary = json.loads((run / "summary.json").read_text())
    summary["collision"] = {"threshold": 1e-4, "average_rate": 0.25, "pairs": {"a|b": 0.25}}
    (run / "summary.json").write_text(json.dumps(summary))
    assert table_of(page_of(tmp_path, run), "Collision rate of each pair, %") == [["b", "25.0"]]


def test_the_command_repeats_the_run(folders: dict[str, Path], tmp_path: Path) -> None:
    code = page_of(tmp_path, folders["bare"]).one("section", id="repeat").one("code").text
    assert code == f"nlora run {folders['bare']}/run.yaml output_dir={folders['bare']}-again"


@pytest.mark.parametrize("name", ["a", "exp #2", "it's"])
def test_the_printed_commands_work_from_inside_the_run_and_with_odd_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs" / name)
    again = tmp_path / "runs" / f"{name}-again"
    for here, given in ((run, Path()), (run / "outputs", Path("..")), (tmp_path, Path("runs", name))):
        monkeypatch.chdir(here)
        page = page_of(tmp_path, given)
        command = shlex.split(page.one("section", id="repeat").one("code").text)
        assert Path(command[2]).resolve() == run / "run.yaml"
        assert Path(parse(command[3]).value).resolve() == again
        more = [code.text for code in page.one("section", id="files").all("code") if "CONFIG" in code.text]
        assert Path(parse(shlex.split(more[0])[3]).value).resolve() == run


@pytest.mark.parametrize(
    ("method", "update"),
    [("inclora", "LoRA of rank 8"), ("osf", "the model's own weights"), ("l2p", "soft prompts")],
)
def test_what_is_trained_is_named_and_only_updates_are_compared(
    tmp_path: Path, method: str, update: str
) -> None:
    page = page_of(tmp_path, make_run(tmp_path / "run", method=method))
    assert update in page.text
    assert ("LoRA of rank" in page.text) == (method == "inclora")
    collisions = page.one("section", id="collisions")
    assert [code.text for code in collisions.all("code")] == (
        [f"nlora analyze {tmp_path / 'run'}"] if method == "inclora" else []
    )
    assert ("trains no adapters" in collisions.text) == (method != "inclora")


def test_the_kinds_of_scores_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name="free", tasks=("replies", "colors"))
    decode = {"replies": "generate", "colors": "labels"}
    changed_summary(run, decode=decode, metrics={"replies": "rougeL", "colors": "exact_match"})
    text = page_of(tmp_path, run).text
    kinds = "ROUGE-L of the generated answer for replies; exact match of the likeliest label for colors"
    assert f"Scores are in percent: {kinds}; averages are over both kinds." in text
    assert f"on the test examples: {kinds}; averages are over both kinds" in text
    assert "also in tasks scored by ROUGE-L" in text
    plain = make_run(tmp_path / "plain", name="plain", tasks=("replies", "colors"))
    text = page_of(tmp_path, run, plain).text
    assert "These runs have different kinds of scores; averages are not comparable:" in text
    assert "Bold: the best" not in text


def test_different_test_examples_are_noted_and_all_ties_are_marked(tmp_path: Path) -> None:
    def digests(sha256: str) -> dict[str, object]:
        examples = {"sha256": "t", "count": 9}
        return {"colors": {"train": examples, "test": {"sha256": sha256, "count": 20}, "prompt_sha256": "p"}}

    one, two, other = (
        changed_summary(make_run(tmp_path / name, name=name), digests=digests(sha256))
        for name, sha256 in (("one", "x"), ("two", "x"), ("other", "y"))
    )
    root = page_of(tmp_path, one, two)
    average = f"{summarize(matrix(3))['average_accuracy']:.1f}"
    assert [cell.text for cell in root.all("td", class_="strong")].count(average) == 2
    assert "different test examples" not in root.text
    text = page_of(tmp_path, one, two, other).text
    assert (
        "scored on different test examples; averages are not comparable: colors, 20 test examples: one, two; "
        in text
    )
    assert "colors, 20 other test examples: other." in text


def test_tasks_without_scores_leave_averages_and_intervals_as_they_are(tmp_path: Path) -> None:
    """As of adapters that a run begins from and that nobody has test examples of."""
    plain = make_run(tmp_path / "plain", tasks=("colors", "animals"), steps=12)
    begun = make_run(tmp_path / "begun", tasks=("old", "older", "colors", "animals"), unscored=2)
    pages = [page_of(tmp_path, folder) for folder in (plain, begun)]
    (mean, meaning), other = (
        next(
            (f.one("dd", class_="value").text, f.all("dd")[-1].text)
            for f in page.one("dl", class_="facts").all("div")
            if f.one("dt").text == "average accuracy"
        )
        for page in pages
    )
    assert "95 % interval" in meaning
    assert other == (mean, meaning)
    (seen,), (seen_begun,) = (table_of(page, "Average over seen tasks") for page in pages)
    assert seen_begun[1:] == ["–", "–", *seen[1:]]


def test_the_line_of_a_task_begins_where_it_is_learned_also_if_it_was_scored_before(tmp_path: Path) -> None:
    R = ((90.0, 30.0, 20.0), (85.0, 90.0, 40.0), (80.0, 85.0, 90.0))
    run = changed_summary(make_run(tmp_path / "run"), R=R, zero_shot=(10, 10, 10), forward_transfer=25.0)
    text = page_of(tmp_path, run).one("figure", id="task-scores").text
    assert "Each line begins where its task is learned" in text
    variants = variants_of(load_runs([run]))
    series = _task_lines(variants)
    assert [[x for x, _ in series[task][0].points] for task in TASKS] == [[1, 2, 3], [2, 3], [3]]


def test_the_later_tasks_are_counted_without_those_that_have_no_scores(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", unscored=1)
    changed_summary(run, zero_shot=(None, 10, 10), forward_transfer=15.0)
    assert "mean over the 2 later tasks" in page_of(tmp_path, run).text
    two = make_run(tmp_path / "two", tasks=TASKS[:2])
    changed_summary(two, zero_shot=(10, 10), forward_transfer=15.0)
    assert "mean over the later task:" in page_of(tmp_path, two).text
