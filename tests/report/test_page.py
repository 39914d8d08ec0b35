"""The page against the files that it was made of: numbers, words, structure, and text that stays text."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from made_runs import TESTS, make_run, matrix, right_answers
from page_reader import Element, read_page, table_of

from nlora.errors import RunError
from nlora.evaluation.continual_metrics import summarize
from nlora.report.forgotten_examples import asked, find_forgotten, shortened
from nlora.report.run_files import load_run, load_runs
from nlora.report.write import write_report

TASKS = ("colors", "animals", "plants")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that no test changes."""
    root = tmp_path_factory.mktemp("runs")
    nlora = {"name": "nlora", "weight": 1e-5}
    return {
        "one": make_run(root / "one", method=nlora, analyzed=True),
        "bare": make_run(root / "bare", name="bare"),
        "half": make_run(root / "half", name="half", stages=1),
        "empty": make_run(root / "empty", name="empty", stages=0),
        "order": make_run(root / "order", name="order", tasks=TASKS[::-1], analyzed=True),
        "other": make_run(root / "other", name="other", tasks=("colors", "metals")),
        "single": make_run(root / "single", name="single", tasks=("colors",)),
        "long": make_run(
            root / "long", name="long", tasks=[f"task{k}" for k in range(15)], analyzed=True, steps=400
        ),
    }


def page(tmp_path: Path, *runs: Path) -> Element:
    return read_page(write_report(runs, tmp_path / "page.html"))


def test_the_headline_numbers_are_those_of_the_matrix(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page(tmp_path, folders["one"])
    expected = summarize(matrix(3))
    facts = {
        f.one("dt").text: f.one("dd", class_="value").text for f in root.one("dl", class_="facts").all("div")
    }
    assert facts["average accuracy"] == f"{expected['average_accuracy']:.1f}"
    assert facts["backward transfer"] == f"{expected['backward_transfer']:.1f}".replace("-", "−")
    assert facts["forgetting"] == f"{expected['forgetting']:.1f}"
    assert "mean over the 2 earlier tasks" in root.one("dl", class_="facts").text


def test_the_matrix_is_a_table_with_the_diagonal_marked(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page(tmp_path, folders["one"])
    rows = table_of(root, "Accuracy on each task after each stage")
    R = matrix(3)
    for k, row in enumerate(rows):
        assert row[0] == f"{k + 1} {TASKS[k]}"
        texts = ["" if value is None else f"{value:.1f}" for value in R[k]]
        texts[k] += " just learned"
        assert row[1:] == texts
    heat = root.one("figure", id="matrix-1").one("table")
    assert len(heat.all("td", class_="marked")) == 3


def test_what_was_run_is_said_in_words(folders: dict[str, Path], tmp_path: Path) -> None:
    text = page(tmp_path, folders["one"]).one("header", id="top").text
    for part in (
        "made/up",
        "nlora, penalty update_l1, weight 1e-05, reduction sum",
        "colors, animals, plants",
        "160 examples per task, 1 epoch in batches of 32, learning rate 0.001",
        "the likeliest label of the task's set, on the test examples",
    ):
        assert part in text


def test_a_default_weight_is_the_one_in_force(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", method="nlora")
    assert "weight 3e-05" in page(tmp_path, run).one("header", id="top").text


def test_forgotten_examples_are_exactly_those(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page(tmp_path, folders["one"])
    rows = table_of(root, "Answers when just learned and at the end")
    then = [right_answers(i, i, 3) for i in (1, 2)]
    now = [right_answers(i, 3, 3) for i in (1, 2)]
    lost = [a - b for a, b in zip(then, now, strict=True)]
    assert rows == [
        [task, str(TESTS), str(a), str(b), str(d), "0"]
        for task, a, b, d in zip(TASKS, then, now, lost, strict=False)
    ]
    shown = root.all("li", class_="example")
    assert [e.attributes["data-task"] for e in shown].count("colors") == lost[0]
    assert len(shown) == sum(lost)
    first = next(e for e in shown if e.attributes["data-task"] == "colors")
    assert first.one("p", class_="text").text == f"the thing number {now[0]} was painted"
    assert [dd.text for dd in first.all("dd")] == ["red", "red", "blue"]


def test_the_list_of_examples_is_capped_and_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    found = find_forgotten(load_run(folders["one"]), most=1)
    assert [len(task.examples) for task in found] == [1, 1]
    assert sum(task.forgotten for task in found) > 2
    assert shortened("word " * 500, 100).count("…") == 1
    assert len(shortened("word " * 500, 100)) <= 103


def test_a_late_example_is_found_by_its_text_not_its_place(folders: dict[str, Path], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = find_forgotten(load_run(run), most=99)
    last = run / "outputs/3-plants/predict_eval_predictions.jsonl"
    last.write_text("\n".join(reversed(last.read_text().splitlines())) + "\n")
    after = find_forgotten(load_run(run), most=99)
    assert [(t.task, t.forgotten, t.gained) for t in after] == [
        (t.task, t.forgotten, t.gained) for t in before
    ]


def test_losses_and_times_are_those_of_the_files(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page(tmp_path, folders["one"])
    history = json.loads((folders["one"] / "outputs/2-animals/trainer_state.json").read_text())["log_history"]
    row = table_of(root, "Loss by stage, as first and last logged")[1]
    assert row[:2] == ["2 animals", "12"]
    assert float(row[2]) == pytest.approx(history[0]["loss"], rel=1e-3)
    assert float(row[3]) == pytest.approx(history[11]["loss"], rel=1e-3)
    assert table_of(root, "Each stage")[0] == ["1 colors", "31 s", "2.0 s", "5", "1.90 GB"]


def test_collisions_are_shown_or_the_way_to_them(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page(tmp_path, folders["one"])
    found = json.loads((folders["one"] / "analysis.json").read_text())
    rows = table_of(root, "Collision rate of each pair, %")
    assert rows[1] == ["plants"] + [
        f"{100 * found['pairs'][f'{a}|plants']['collision_rate']:.1f}" for a in TASKS[:2]
    ]
    keys = {figure.attributes["id"] for figure in root.all("figure")}
    wanted = {"collision-layers", "collision-kinds", "nuclear-norm", "collision-thresholds", "density",
              "forgetting-collision-rate"}  # fmt: skip
    assert wanted <= keys
    assert "0.61" in table_of(root, "Does more collision go with more forgetting?")[0]
    bare = page(tmp_path, folders["bare"]).one("section", id="collisions")
    assert bare.one("code").text == f"nlora analyze {folders['bare']}"


def test_the_summary_stands_in_for_a_missing_analysis(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("a", "b"))
    summary = json.loads((run / "summary.json").read_text())
    summary["collision"] = {"threshold": 1e-4, "average_rate": 0.25, "pairs": {"a|b": 0.25}}
    (run / "summary.json").write_text(json.dumps(summary))
    assert table_of(page(tmp_path, run), "Collision rate of each pair, %") == [["b", "25.0"]]


def test_the_command_repeats_the_run(folders: dict[str, Path], tmp_path: Path) -> None:
    code = page(tmp_path, folders["bare"]).one("section", id="repeat").one("code").text
    assert code == f"nlora run {folders['bare']}/run.yaml output_dir={folders['bare']}-again"


@pytest.mark.parametrize("name", ["half", "empty", "single", "bare"])
def test_a_run_shows_what_there_is(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = page(tmp_path, folders[name])
    if name in {"half", "empty"}:
        assert f"{int(name == 'half')} of 3 tasks learned" in root.one("p", role="status").text
    assert len(root.one("nav").all("a")) == 8


def test_a_stage_at_which_nothing_was_trained_costs_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    stage = run / "outputs/1-colors"
    for file in stage.glob("*"):
        if file.name != "stage.json":
            file.unlink()
    record = json.loads((stage / "stage.json").read_text())
    record |= {"row": [None] * 3, "train_seconds": 0.0, "evaluate_seconds": 0.0, "is_skipped": True}
    (stage / "stage.json").write_text(json.dumps(record))
    summary = json.loads((run / "summary.json").read_text())
    summary["R"][0] = [None] * 3
    (run / "summary.json").write_text(json.dumps(summary))
    root = page(tmp_path, run)
    assert [row[0] for row in table_of(root, "Each stage")] == ["2 animals", "3 plants"]
    assert [row[0] for row in table_of(root, "Answers when just learned and at the end")] == ["animals"]


def test_several_runs_stand_side_by_side(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page(tmp_path, folders["one"], folders["order"], folders["half"])
    assert [row[0] for row in table_of(root, "The runs side by side")] == ["made", "order", "half"]
    assert "the same tasks in different orders" in root.one("section", id="outcome").text
    assert len(root.one("section", id="matrix").all("table")) == 3
    assert [row[0] for row in table_of(root, "Where the runs differ")] == ["made", "order", "half"]
    different = page(tmp_path, folders["one"], folders["other"])
    assert "These runs learned different tasks" in different.one("section", id="outcome").text
    assert not different.all("td", class_="strong")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"s{seed}", seed=seed) for seed in (1, 2)]
    assert [run.label for run in load_runs(runs)] == ["made, seed 1", "made, seed 2"]
    twins = [make_run(tmp_path / name) for name in ("a", "b")]
    assert [run.label for run in load_runs(twins)] == ["a", "b"]
    with pytest.raises(RunError, match="is named twice"):
        load_runs([twins[0], twins[0]])


@pytest.mark.parametrize("name", ["one", "long", "half"])
def test_the_structure_serves_keyboards_and_screen_readers(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    root = page(tmp_path, folders[name])
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


def test_many_runs_leave_the_lists_of_pairs_out_and_say_so(tmp_path: Path) -> None:
    many = [make_run(tmp_path / f"r{k}", seed=k, tasks=("a", "b"), analyzed=True) for k in range(9)]
    root = page(tmp_path, *many)
    assert not any("All measures" in caption.text for caption in root.all("caption"))
    assert "stands in their analysis.json only" in root.one("section", id="collisions").text
    assert any("All measures" in caption.text for caption in page(tmp_path, *many[:8]).all("caption"))


def test_markup_in_data_stays_text(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    run = make_run(
        tmp_path / "run", name=f"{evil}name", tasks=(evil, "b", "c"), label="</script><b>label",
        wrong='"><i>wrong', sentence="</script><script>alert(1)</script><!-- {}", analyzed=True,
    )  # fmt: skip
    root = page(tmp_path, run)
    assert not root.all("img") + root.all("b") + root.all("i")
    assert len(root.all("script")) == 3
    example = root.all("li", class_="example")[0]
    assert example.attributes["data-task"] == evil
    assert example.one("p", class_="text").text.startswith("</script><script>alert(1)</script><!-- ")
    assert [dd.text for dd in example.all("dd")] == ["</script><b>label"] * 2 + ['"><i>wrong']
    style = json.loads("".join(root.one("script", id="figure-style").pieces))["style"]
    assert "<" not in style


def summarized(folder: Path, **keys: object) -> Path:
    """The run, with keys of its summary changed."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


def test_the_prompts_are_shown_whole_with_their_names_and_lines(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    root = page(tmp_path, folders["one"])
    block = root.one("details", id="asked")
    assert [dt.text for dt in block.all("dt")] == list(TASKS)  # the last task's too
    prompt = "Task:TC\nDataset:colors\nWhich color is it?\n…\nAnswer:"
    assert block.all("pre")[0].pieces == [prompt]


def test_a_very_long_prompt_is_shortened_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("colors",))
    (file,) = run.glob("outputs/*/predict_eval_predictions.jsonl")
    file.write_text(file.read_text().replace("Which color is it?", "Option: " + "label, " * 1000))
    (shown,) = asked(load_run(run)).values()
    assert len(shown) < 4100
    assert re.search(r"\n… [\d,]+ characters left out …\n", shown)
    assert shown.startswith("Task:TC\nDataset:colors\nOption: label, ")
    assert shown.endswith("label, \n…\nAnswer:")


def test_what_the_scores_are_stands_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", name="free", tasks=("replies", "colors"))
    decode = {"replies": "generate", "colors": "labels"}
    summarized(run, decode=decode, metrics={"replies": "rougeL", "colors": "exact_match"})
    text = page(tmp_path, run).text
    kinds = "ROUGE-L of the generated answer for replies; exact match of the likeliest label for colors"
    assert f"Scores are in percent: {kinds}; averages are over both kinds." in text
    assert f"on the test examples: {kinds}; averages are over both kinds" in text
    assert "also of tasks whose score is ROUGE-L" in text
    plain = make_run(tmp_path / "plain", name="plain", tasks=("replies", "colors"))
    text = page(tmp_path, run, plain).text
    assert "These runs' scores are of different kinds; averages do not compare:" in text
    assert "Bold: the best" not in text


def test_other_test_examples_are_said_and_ties_are_marked_on_all(tmp_path: Path) -> None:
    def digests(sha256: str) -> dict[str, object]:
        examples = {"sha256": "t", "count": 9}
        return {"colors": {"train": examples, "test": {"sha256": sha256, "count": 20}, "prompt_sha256": "p"}}

    one, two, other = (
        summarized(make_run(tmp_path / name, name=name), digests=digests(sha256))
        for name, sha256 in (("one", "x"), ("two", "x"), ("other", "y"))
    )
    root = page(tmp_path, one, two)
    average = f"{summarize(matrix(3))['average_accuracy']:.1f}"
    assert [cell.text for cell in root.all("td", class_="strong")].count(average) == 2
    assert "different test examples" not in root.text
    text = page(tmp_path, one, two, other).text
    assert (
        "scored on different test examples; averages do not compare: colors, 20 test examples: one, two; "
        in text
    )
    assert "colors, 20 other test examples: other." in text
