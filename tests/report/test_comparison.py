"""Runs in one table: means and spreads recomputed, what does not compare is said, and every format says the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlora.cli import app
from nlora.config.schema import Config
from nlora.errors import InputErrors, NloraError
from nlora.report.comparison import Comparison, Spread, compare, read_runs
from nlora.report.comparison_formats import compare_command, written
from nlora.report.comparison_table import ComparisonView
from nlora.runs.lock import held_lock
from nlora.runs.summary import Collision, StageRecord, Summary, summary_of, write_summary

ORDER_1 = ("dbpedia", "amazon", "yahoo", "agnews")
Score = float | None


def run(
    folder: Path,
    name: str = "plain",
    seed: int = 1,
    last: tuple[float, ...] = (50, 80),
    tasks: tuple[str, ...] = ("a", "b"),
    learned: int | None = None,
    rate: float | None = None,
    **config: Any,
) -> Path:
    """A run's folder whose every score when just learned is 80, and whose last row is `last`."""
    T = len(tasks)
    rows = [tuple(80.0 if i == k else 60.0 if i < k else None for i in range(T)) for k in range(T - 1)]
    rows.append(tuple(map(float, last)))
    records = [
        StageRecord(
            stage=k + 1,
            task=tasks[k],
            row=rows[k],
            train_seconds=30 * seed,
            evaluate_seconds=1,
            train_samples_per_second=1,
            peak_memory_bytes=2**30 + seed,
            trained_parameters=460_800,
        )
        for k in range(T if learned is None else learned)
    ]
    values = {
        "tasks": list(tasks),
        "name": name,
        "seed": seed,
        "model": "tiny",
        "method": "inclora",
        **config,
    }
    collision = None if rate is None else Collision(threshold=1e-4, average_rate=rate, pairs={})
    folder.mkdir(parents=True)
    write_summary(folder, summary_of(Config.model_validate(values), records, collision=collision))
    return folder


def compared(*folders: Path, everything: bool = False) -> Comparison:
    return compare(read_runs(folders), published="all" if everything else "methods")


def shown(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(ComparisonView(comparison))
    return captured.get()


def table_of(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(written(comparison, "csv"))))


def test_seeds_of_one_name_are_one_row_with_mean_and_sample_deviation(tmp_path: Path) -> None:
    for seed, last in ((1, (40, 80)), (2, (50, 82)), (3, (66, 78))):
        run(tmp_path / f"plain-seed{seed}", seed=seed, last=last, rate=seed / 10)
    comparison = compared(tmp_path)
    (row,) = comparison.rows
    values = [60.0, 66.0, 72.0]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    assert (row.seeds, row.values["average_accuracy"]) == ((1, 2, 3), Spread(mean, deviation, 3))
    # Each was 80 when just learned.
    assert row.values["backward_transfer"].mean == pytest.approx((40 + 50 + 66) / 3 - 80)
    assert row.values["collision_rate"].mean == pytest.approx(20.0)
    assert row.values["train_seconds"].mean == pytest.approx(2 * 60)
    assert row.values["trained_parameters"] == Spread(460_800, 0, 3)
    assert "forward_transfer" not in row.values
    (line,) = table_of(comparison)
    assert float(line["average_accuracy_mean"]) == mean
    assert float(line["average_accuracy_std"]) == deviation
    assert (line["average_accuracy_n"], line["n"], line["seeds"]) == ("3", "3", "1 2 3")
    assert line["forward_transfer_mean"] == ""
    text = shown(comparison, 120)
    assert re.search(
        r"plain \(inclora\) +1-3 +66\.0 ±6\.0 +-28\.0 ±13\.1 +28\.0 ±13\.1 +20\.0 ±10\.0 +460,800", text
    )
    assert "±: sample standard deviation over the seeds." in text


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    comparison = compared(run(tmp_path / "a", last=(51, 80)))
    assert comparison.rows[0].values["average_accuracy"] == Spread(65.5, None, 1)
    assert "±" not in shown(comparison)
    assert table_of(comparison)[0]["average_accuracy_std"] == ""


def test_a_measure_that_not_every_seed_has_says_of_how_many_it_is(tmp_path: Path) -> None:
    comparison = compared(run(tmp_path / "a", seed=1, rate=0.5), run(tmp_path / "b", seed=2))
    assert "50.0 (n=1)" in shown(comparison, 120)
    assert table_of(comparison)[0]["collision_rate_n"] == "1"


def test_an_unfinished_run_stands_alone_with_what_there_is(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "a", seed=1),
        run(tmp_path / "b", seed=2, learned=1),
        run(tmp_path / "c", seed=3),
    ]
    comparison = compared(*folders)
    done, stopped = comparison.rows
    assert (done.seeds, stopped.seeds, stopped.status) == ((1, 3), (2,), "stopped")
    assert "average_accuracy" not in stopped.values
    assert stopped.values["train_seconds"].mean == 60
    assert "plain (inclora), stopped after 1 of 2 tasks" in written(comparison, "markdown")
    assert table_of(comparison)[1]["status"] == "stopped"
    with held_lock(folders[1]):  # somebody writes there
        comparison = compared(*folders)
        assert "plain (inclora), running: 1 of 2 tasks" in written(comparison, "markdown")
    assert compared(*folders).rows[1].status == "stopped"  # the lock's file stays there


def test_the_same_folder_counts_once_and_the_same_seed_apart(tmp_path: Path) -> None:
    one = run(tmp_path / "x" / "plain-seed1", last=(40, 80))
    assert len(compared(one, one / ".." / "plain-seed1", tmp_path / "x").rows) == 1
    other = run(tmp_path / "y" / "plain-seed1", last=(60, 80))
    comparison = compared(one, other, run(tmp_path / "z", seed=2))
    first, second = comparison.rows
    assert (first.seeds, second.seeds) == ((1, 2), (1,))
    assert first.label == f"plain (inclora) in {one}"
    assert second.values["average_accuracy"].mean == 70
    assert any("seed 1 is in another row too" in note for note in comparison.notes)


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", name="one", rate=0.1), run(tmp_path / "2", name="two", tasks=("b", "a"))
    text = shown(compared(one, two), 200)
    assert "These runs learned different tasks or orders; averages do not compare:" in text
    assert "b, a: two (inclora)" in text
    assert "*" not in text  # no best one among what does not compare
    assert "more than 0.0001" in text
    three = run(tmp_path / "3", name="three", model="other", rate=0.1)
    path = three / "summary.json"
    path.write_text(path.read_text().replace("0.0001", "0.5"))
    text = shown(compared(one, three), 200)
    assert "different models:\ntiny: one (inclora)\nother: three (inclora)" in re.sub(" +\n", "\n", text)
    assert "at different thresholds, 0.0001 to 0.5" in text
    assert "different tasks" not in text
    assert "different models" in table_of(compared(one, three))[0]["note"]


def test_protocols_are_told_apart(tmp_path: Path) -> None:
    folders = [run(tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    path = folders[1] / "summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "protocol": "released"}))
    values = json.loads((folders[2] / "summary.json").read_text())
    del values["protocol"]  # an older nlora, which knew only the repaired one
    (folders[2] / "summary.json").write_text(json.dumps(values))
    comparison = compared(*folders)
    assert [row.seeds for row in comparison.rows] == [(1, 3), (2,)]
    assert "These runs followed different protocols" in comparison.notes[0]
    assert not comparison.compares
    assert len(compared(folders[0], folders[2]).notes) == 0


def test_published_numbers_stand_beside_runs_of_a_published_order(tmp_path: Path) -> None:
    folder = run(tmp_path / "1", "olora", tasks=ORDER_1, last=(50, 50, 50, 80), method="olora")
    comparison = compared(folder)
    assert [(row.label, row.values["average_accuracy"].mean) for row in comparison.published] == [
        ("O-LoRA, published (T5-large)", 75.4),
        ("O-LoRA, released results (T5-large)", 78.37),
    ]
    for text in (shown(comparison, 200), written(comparison, "markdown"), written(comparison, "latex")):
        assert "O-LoRA, published (T5-large)" in text
        assert "10 epochs" in text.replace("\n", " ")  # the protocol, in a footnote
    line = table_of(comparison)[1]
    assert (line["status"], line["average_accuracy_mean"], line["seeds"]) == ("published", "75.4", "")
    assert "10 epochs" in line["note"]
    every = [row.label for row in compared(folder, everything=True).published]
    assert len(every) == 14 + 4 + 2
    assert "N-LoRA, published (LLaMA-7B)" in every
    assert not compared(run(tmp_path / "2", "olora", method="olora"), everything=True).published
    llama = run(
        tmp_path / "3", "x", tasks=ORDER_1, last=(1, 1, 1, 1), method="nlora", model="huggyllama/llama-7b"
    )
    labels = [row.label for row in compared(llama).published]
    assert labels == ["N-LoRA, published (T5-large)", "N-LoRA, published (LLaMA-7B)"]


def test_two_published_orders_are_told_apart(tmp_path: Path) -> None:
    order_2 = (*ORDER_1[:2], "agnews", "yahoo")
    folders = [
        run(tmp_path / str(i), "nlora", tasks=tasks, last=(5, 5, 5, 5), method="nlora")
        for i, tasks in enumerate((ORDER_1, order_2))
    ]
    comparison = compared(*folders)
    found = {row.label: row.values["average_accuracy"].mean for row in comparison.published}
    assert found == {
        "N-LoRA, published (T5-large, order_1)": 79.2,
        "N-LoRA, published (T5-large, order_2)": 78.4,
    }
    assert "dbpedia, amazon, agnews, yahoo (order_2)" in "\n".join(comparison.notes)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_is_cut_in_any_width(tmp_path: Path, width: int) -> None:
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


def test_the_best_row_is_marked_where_rows_compare(tmp_path: Path) -> None:
    folders = [run(tmp_path / "1", "one"), run(tmp_path / "2", "two_%", last=(70, 80))]
    comparison = compared(*folders)
    assert re.search(r"two_% \(inclora\) +1 +75\.0\*", shown(comparison, 120))
    assert "| two_% (inclora) | 1 | **75.0** | -10.0 |" in written(comparison, "markdown")
    assert r"two\_\% (inclora) & 1 & \textbf{75.0} & $-$10.0 &" in written(comparison, "latex")


def test_a_tie_for_the_best_is_marked_on_all(tmp_path: Path) -> None:
    lasts = (
        (20, 80),
        (30, 70),
        (49.96, 50),
        (10, 20),
    )  # averages of 50, 50, 49.98 and 15: shown as 50.0 thrice
    folders = [run(tmp_path / str(i), f"r{i}", last=last) for i, last in enumerate(lasts)]
    comparison = compared(*folders)
    found = {
        line.split()[0]: "*" in line for line in shown(comparison, 120).splitlines() if "(inclora)" in line
    }
    assert found == {"r0": True, "r1": True, "r2": True, "r3": False}
    assert written(comparison, "markdown").count("**50.0**") == 3
    assert written(comparison, "latex").count(r"\textbf{50.0}") == 3


ONE_TASK = {"tasks": ("a",), "last": (50,)}


def told(folder: Path, **keys: Any) -> Path:
    """The run, with keys of its summary changed."""
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    return folder


def digests(
    test: str, *, count: int = 9, drawn_from: str | None = None, train: str = "t", prompt: str = "p"
) -> Any:
    """The digests of task a."""
    return {
        "a": {
            "train": {"sha256": train, "count": 20},
            "test": {"sha256": test, "count": count, "drawn_from": drawn_from},
            "prompt_sha256": prompt,
        }
    }


def test_runs_scored_on_different_files_are_not_averaged_and_it_is_said(tmp_path: Path) -> None:
    one = told(run(tmp_path / "1", seed=1, **ONE_TASK), digests=digests("x"))
    two = told(run(tmp_path / "2", seed=2, **ONE_TASK), digests=digests("y", count=3))
    same = told(run(tmp_path / "3", seed=3, **ONE_TASK), digests=digests("x"))
    comparison = compared(one, two, same)
    assert [row.seeds for row in comparison.rows] == [(1, 3), (2,)]
    assert comparison.notes[:3] == (
        "These runs were scored on different test examples; averages do not compare:",
        f"a, 9 test examples: plain (inclora) in {one}",
        f"a, 3 other test examples: plain (inclora) in {two}",
    )
    assert not comparison.compares
    assert "*" not in shown(comparison, 300)
    older = run(tmp_path / "4", seed=4, **ONE_TASK)  # of an older version, which says nothing
    assert [row.seeds for row in compared(one, older).rows] == [(1, 4)]
    assert not compared(one, older).notes


def test_samples_that_the_seed_draws_are_averaged_and_noted_once(tmp_path: Path) -> None:
    folders = [
        told(run(tmp_path / f"{name}{seed}", name, seed=seed, **ONE_TASK),
             digests=digests(f"sample {seed}", count=5, drawn_from="file"))
        for name in ("one", "two") for seed in (1, 2)
    ]  # fmt: skip
    comparison = compared(*folders)
    assert [row.seeds for row in comparison.rows] == [(1, 2), (1, 2)]
    assert comparison.compares
    (note,) = comparison.notes
    assert note.startswith("Each seed is scored on a sample of its own")
    other = told(
        run(tmp_path / "x", "one", seed=3, **ONE_TASK), digests=digests("s", count=5, drawn_from="other file")
    )
    comparison = compared(*folders, other)
    assert [row.seeds for row in comparison.rows] == [(1, 2), (1, 2), (3,)]
    assert "scored on different test examples" in comparison.notes[0]


def test_other_train_examples_and_prompts_are_said_too(tmp_path: Path) -> None:
    one = told(run(tmp_path / "1", "one", **ONE_TASK), digests=digests("x"))
    two = told(run(tmp_path / "2", "two", **ONE_TASK), digests=digests("x", train="u", prompt="q"))
    comparison = compared(one, two)
    assert comparison.compares  # on the same test examples
    assert comparison.notes == (
        "These runs were trained on different examples:",
        "a, 20 train examples: one (inclora)",
        "a, 20 other train examples: two (inclora)",
        "These runs were asked with different prompts:",
        "a, prompts: one (inclora)",
        "a, other prompts: two (inclora)",
    )


def test_labels_beside_generate_and_exact_match_beside_rouge_are_said(tmp_path: Path) -> None:
    labels = told(
        run(tmp_path / "1", "one", **ONE_TASK), decode={"a": "labels"}, metrics={"a": "exact_match"}
    )
    free = told(
        run(tmp_path / "2", "two", **ONE_TASK), decode={"a": "generate"}, metrics={"a": "exact_match"}
    )
    comparison = compared(labels, free)
    assert comparison.notes == (
        "These runs' answers were made in different ways, which do not compare:",
        "the likeliest label: one (inclora)",
        "the generated answer: two (inclora)",
    )
    assert not comparison.compares
    for format_ in ("markdown", "latex", "csv"):
        assert "made in different ways" in written(comparison, format_)  # type: ignore[arg-type]
    rouge = told(run(tmp_path / "3", "three", **ONE_TASK), decode={"a": "generate"}, metrics={"a": "rougeL"})
    assert compared(free, rouge).notes == (
        "These runs' scores are of different kinds; averages do not compare:",
        "exact match: two (inclora)",
        "ROUGE-L: three (inclora)",
    )
    unfinished = told(  # says nothing of b yet
        run(tmp_path / "5", "five", learned=1), decode={"a": "generate"}, metrics={"a": "exact_match"}
    )
    both = told(
        run(tmp_path / "6", "six"),
        decode={"a": "generate", "b": "labels"},
        metrics={"a": "exact_match", "b": "rougeL"},
    )
    assert not compared(unfinished, both).notes
    seed = told(run(tmp_path / "4", "one", seed=2, **ONE_TASK), decode={"a": "generate"})
    assert [row.seeds for row in compared(labels, seed).rows] == [(1,), (2,)]
    assert compared(labels).notes == ("Scores in percent: exact match of the likeliest label.",)


def test_averages_over_different_kinds_of_scores_say_so(tmp_path: Path) -> None:
    folder = told(
        run(tmp_path / "1"),
        decode={"a": "labels", "b": "generate"},
        metrics={"a": "exact_match", "b": "rougeL"},
    )
    assert compared(folder).notes == (
        "Scores in percent: exact match of the likeliest label for a; ROUGE-L of the generated answer for b; averages "
        "are over both kinds.",
    )


def test_names_cannot_break_a_table(tmp_path: Path) -> None:
    folder = run(tmp_path / "1", "a|b*<c>&\\_{x}")
    comparison = compared(folder)
    header, _, line = written(comparison, "markdown").splitlines()[:3]
    assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", header))
    latex = written(comparison, "latex")
    assert r"a$|$b*$<$c$>$\&\textbackslash{}\_\{x\} (inclora)" in latex
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
    assert table_of(comparison)[0]["run"] == "a|b*<c>&\\_{x}"


def test_paths_that_are_no_runs_are_told_at_once(tmp_path: Path) -> None:
    good = run(tmp_path / "runs" / "good")
    broken = run(tmp_path / "runs" / "broken")
    values = json.loads((broken / "summary.json").read_text())
    (broken / "summary.json").write_text(json.dumps({**values, "status": "over"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputErrors) as caught:
        read_runs([good, tmp_path / "nowhere", tmp_path / "empty", tmp_path / "runs"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == f"{tmp_path / 'nowhere'}: no such folder; give the output_dir of a run"
    assert lines[1].startswith(f"{tmp_path / 'empty'}: no summary.json in it")
    assert "is broken: status" in lines[2]


def test_out_writes_the_format_of_its_suffix(tmp_path: Path) -> None:
    folder = str(run(tmp_path / "1"))
    console = Console(quiet=True)
    heads = {"md": "| run |", "tex": "% needs", "csv": "run,method", "txt": " run "}
    for suffix, head in heads.items():
        out = tmp_path / f"table.{suffix}"
        compare_command([folder], None, str(out), False, console)
        assert out.read_text(encoding="utf-8").startswith(head)
    compare_command([folder], "csv", str(tmp_path / "table.md"), False, console)
    assert (tmp_path / "table.md").read_text().startswith("run,method")
    for out in (tmp_path, tmp_path / "no" / "table.md"):
        with pytest.raises(NloraError, match=r"--out .*(is a folder|no folder)"):
            compare_command([folder], None, str(out), False, console)
    with pytest.raises(InputErrors, match="did you mean 'markdown'"):
        compare_command([folder], "markdwn", None, False, console)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = run(tmp_path / "1")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["nlora", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    status, out, _ = call(folder)
    assert (status, "65.0" in out) == (0, True)
    status, out, _ = call(tmp_path, "--format", "csv")
    assert next(csv.DictReader(io.StringIO(out)))["average_accuracy_mean"] == "65.0"
    status, _, err = call(folder, tmp_path / "nowhere")
    assert (status, len(err.strip().splitlines())) == (2, 1)


def test_a_summary_of_before_the_parameters_were_counted_is_read(tmp_path: Path) -> None:
    folder = run(tmp_path / "1")
    values = json.loads((folder / "summary.json").read_text())
    del values["trained_parameters"]
    (folder / "summary.json").write_text(json.dumps(values))
    (row,) = compared(folder).rows
    assert "trained_parameters" not in row.values
    assert isinstance(read_runs([folder])[0][1], Summary)
