"""`nlora compare` notes why runs are not comparable."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from compared_runs import ONE_TASK, changed, compared, digests, run, shown, table_of
from page_reader import page_of

from nlora.report.comparison_formats import written


def test_other_tasks_models_and_thresholds_are_noted(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", name="one", rate=0.1), run(tmp_path / "2", name="two", tasks=("b", "a"))
    text = shown(compared(one, two), 200)
    assert "These runs learned different tasks or orders; averages are not comparable:" in text
    assert "b, a: two (inclora)" in text
    assert "*" not in text  # no best row among runs that do not compare
    assert "more than 0.0001" in text
    three = run(tmp_path / "3", name="three", model="other", rate=0.1)
    path = three / "summary.json"
    path.write_text(path.read_text().replace("0.0001", "0.5"))
    text = shown(compared(one, three), 200)
    assert "different models:\ntiny: one (inclora)\nother: three (inclora)" in re.sub(" +\n", "\n", text)
    assert "at different thresholds, 0.0001 to 0.5" in text
    path.write_text(path.read_text().replace("0.5", "0.000101"))
    assert "at different thresholds, 0.0001 to 0.000101" in shown(compared(one, three), 200)
    assert "different tasks" not in text
    assert "different models" in table_of(compared(one, three))[0]["note"]


def test_runs_of_different_protocols_are_not_averaged(tmp_path: Path) -> None:
    folders = [run(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    path = folders[1] / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "protocol": "released"}))
    values = json.loads((folders[2] / "summary.json").read_text())
    del values["protocol"]  # from an older version, which had only the repaired one
    (folders[2] / "summary.json").write_text(json.dumps(values))
    comparison = compared(*folders)
    assert [row.seeds for row in comparison.rows] == [(1, 3), (2,)]
    assert "These runs followed different protocols" in comparison.notes[0]
    assert not comparison.compares
    assert len(compared(folders[0], folders[2]).notes) == 0


def test_runs_scored_on_different_files_are_noted_and_not_averaged(tmp_path: Path) -> None:
    one = changed(run(tmp_path / "1", seed=1, **ONE_TASK), digests=digests("x"))
    two = changed(run(tmp_path / "2", seed=2, **ONE_TASK), digests=digests("y", count=3))
    same = changed(run(tmp_path / "3", seed=3, **ONE_TASK), digests=digests("x"))
    comparison = compared(one, two, same)
    assert [row.seeds for row in comparison.rows] == [(1, 3), (2,)]
    assert comparison.notes[:3] == (
        "These runs were scored on different test examples; averages are not comparable:",
        f"a, 9 test examples: plain (inclora) in {one}",
        f"a, 3 other test examples: plain (inclora) in {two}",
    )
    assert not comparison.compares
    assert "*" not in shown(comparison, 300)
    older = run(tmp_path / "4", seed=4, **ONE_TASK)  # from an older version, without digests
    assert [row.seeds for row in compared(one, older).rows] == [(1, 4)]
    assert not compared(one, older).notes


def test_runs_of_one_name_with_other_options_are_not_averaged(tmp_path: Path) -> None:
    same = {"train": {"learning_rate": 1e-3}, "evaluate": {"batch_size": 2}}
    folders = [
        run(tmp_path / "1", seed=1, train={"learning_rate": 1e-3}, **ONE_TASK),
        run(tmp_path / "2", seed=2, **ONE_TASK, **same),  # as fast as one likes
        run(tmp_path / "3", seed=3, train={"learning_rate": 5e-2}, **ONE_TASK),
    ]
    found = compared(*folders)
    assert [row.seeds for row in found.rows] == [(1, 2), (3,)]
    one, other = (row.label for row in found.rows)
    assert f"{other}: has other options than {one}, so the two are not averaged." in found.notes
    changed(folders[2], settings_sha256="")  # of a version that did not know
    assert [row.seeds for row in compared(*folders).rows] == [(1, 2, 3)]


def test_samples_that_the_seed_draws_are_averaged_and_noted_once(tmp_path: Path) -> None:
    folders = [
        changed(run(tmp_path / f"{name}{seed}", name, seed=seed, **ONE_TASK),
             digests=digests(f"sample {seed}", count=5, drawn_from="file"))
        for name in ("one", "two") for seed in (1, 2)
    ]  # fmt: skip
    comparison = compared(*folders)
    assert [row.seeds for row in comparison.rows] == [(1, 2), (1, 2)]
    assert comparison.compares
    (note,) = comparison.notes
    assert note.startswith("Each seed is scored on its own sample")
    other = changed(
        run(tmp_path / "x", "one", seed=3, **ONE_TASK), digests=digests("s", count=5, drawn_from="other file")
    )
    comparison = compared(*folders, other)
    assert [row.seeds for row in comparison.rows] == [(1, 2), (1, 2), (3,)]
    assert "scored on different test examples" in comparison.notes[0]


def test_different_train_examples_and_prompts_are_noted(tmp_path: Path) -> None:
    one = changed(run(tmp_path / "1", "one", **ONE_TASK), digests=digests("x"))
    two = changed(run(tmp_path / "2", "two", **ONE_TASK), digests=digests("x", train="u", prompt="q"))
    comparison = compared(one, two)
    assert comparison.compares  # on the same test examples
    assert comparison.notes == (
        "These runs were trained on different examples:",
        "a, 20 train examples: one (inclora)",
        "a, 20 other train examples: two (inclora)",
        "These runs used different prompts:",
        "a, prompts: one (inclora)",
        "a, other prompts: two (inclora)",
    )


def test_different_decoding_and_metrics_are_noted(tmp_path: Path) -> None:
    labels = changed(
        run(tmp_path / "1", "one", **ONE_TASK), decode={"a": "labels"}, metrics={"a": "exact_match"}
    )
    free = changed(
        run(tmp_path / "2", "two", **ONE_TASK), decode={"a": "generate"}, metrics={"a": "exact_match"}
    )
    comparison = compared(labels, free)
    assert comparison.notes == (
        "These runs' answers were produced in different ways, which are not comparable:",
        "the likeliest label: one (inclora)",
        "the generated answer: two (inclora)",
    )
    assert not comparison.compares
    for format_ in ("markdown", "latex", "csv"):
        assert "produced in different ways" in written(comparison, format_)  # type: ignore[arg-type]
    rouge = changed(
        run(tmp_path / "3", "three", **ONE_TASK), decode={"a": "generate"}, metrics={"a": "rougeL"}
    )
    assert compared(free, rouge).notes == (
        "These runs have different kinds of scores; averages are not comparable:",
        "exact match: two (inclora)",
        "ROUGE-L: three (inclora)",
    )
    unfinished = changed(  # not scored on b yet
        run(tmp_path / "5", "five", learned=1), decode={"a": "generate"}, metrics={"a": "exact_match"}
    )
    both = changed(
        run(tmp_path / "6", "six"),
        decode={"a": "generate", "b": "labels"},
        metrics={"a": "exact_match", "b": "rougeL"},
    )
    assert not compared(unfinished, both).notes
    seed = changed(run(tmp_path / "4", "one", seed=2, **ONE_TASK), decode={"a": "generate"})
    assert [row.seeds for row in compared(labels, seed).rows] == [(1,), (2,)]
    assert compared(labels).notes == ("Scores in percent: exact match of the likeliest label.",)


def test_an_average_over_two_kinds_of_scores_is_noted(tmp_path: Path) -> None:
    folder = changed(
        run(tmp_path / "1"),
        decode={"a": "labels", "b": "generate"},
        metrics={"a": "exact_match", "b": "rougeL"},
    )
    assert compared(folder).notes == (
        "Scores in percent: exact match of the likeliest label for a; ROUGE-L of the generated answer for b; averages "
        "are over both kinds.",
    )


def test_averages_over_other_tasks_are_noted_and_not_averaged(tmp_path: Path) -> None:
    """A task that came in as an adapter has a score in one run and none in the other."""
    without = run(tmp_path / "1", seed=1)
    path = without / "summary.json"
    values = json.loads(path.read_text())
    changed(without, R=[[None, score] for _, score in values["R"]], average_accuracy=80.0)
    whole, third = run(tmp_path / "2", seed=2), run(tmp_path / "3", "third")
    comparison = compared(without, whole, third)
    assert [row.seeds for row in comparison.rows] == [(1,), (2,), (1,)]
    assert comparison.notes[:3] == (
        "These runs' averages are over different tasks:",
        f"all tasks but a: plain (inclora) in {without}",
        f"all tasks: plain (inclora) in {whole}, third (inclora)",
    )
    assert not comparison.compares
    assert "*" not in shown(comparison, 300)
    assert compared(whole, third).compares


def test_the_page_tells_how_answers_were_produced_as_the_table_does(tmp_path: Path) -> None:
    """Task by task, so that neither another order nor more tasks at a stage is a difference; and none is best."""
    kinds = {"a": "labels", "b": "generate"}
    one = changed(run(tmp_path / "1", "one"), decode=kinds)
    order = changed(run(tmp_path / "2", "two", tasks=("b", "a")), decode=kinds)
    other = changed(run(tmp_path / "3", "three"), decode={"a": "generate", "b": "generate"})
    assert "different ways" not in page_of(tmp_path, one, order).text
    page = page_of(tmp_path, one, other)
    assert "answers were produced in different ways, which are not comparable:" in page.text
    assert "Difference to" not in page.text
    assert "best average accuracy" not in page.text
    assert not compared(one, other).compares


def test_a_quantized_run_compares_with_those_of_the_same_quantization_only(tmp_path: Path) -> None:
    plain, small = run(tmp_path / "1", "plain"), run(tmp_path / "2", "small", quantize="4bit")
    found = compared(plain, small)
    assert not found.compares
    assert found.notes[:3] == (
        "These runs use different models:",
        "tiny: plain (inclora)",
        "tiny in 4bit: small (inclora)",
    )
    assert compared(small, run(tmp_path / "3", "other", quantize="4bit", lora={"r": 2})).compares


def test_changes_of_the_perplexity_of_different_texts_are_not_averaged(tmp_path: Path) -> None:
    def on(folder: str, text: str, change: float, **more: Any) -> Path:
        general = [{"text": text, "text_sha256": f"{text}-digest", "perplexity": 20.0}] * 2
        return changed(run(tmp_path / folder, **more), general=general, perplexity_change=change)

    found = compared(
        on("1", "default", 50, seed=1), on("2", "mine.txt", 2, seed=2), on("3", "mine.txt", 4, seed=3)
    )
    assert [(row.seeds, row.values["perplexity_change"].mean) for row in found.rows] == [
        ((1,), 50),
        ((2, 3), 3),
    ]
    assert "These runs measured the perplexity of different texts:" in found.notes
    assert found.compares, "their scores do"
    unmeasured = run(tmp_path / "4", seed=4)
    assert [row.seeds for row in compared(tmp_path / "1", unmeasured).rows] == [(1, 4)]
