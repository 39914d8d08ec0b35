"""`nlora compare`: which runs make up a row, with means and spreads recomputed, and published numbers."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from compared_runs import ORDER_1, changed, compared, run, shown, table_of

from nlora.errors import InputErrors
from nlora.report.comparison import Spread, read_runs
from nlora.report.comparison_formats import written
from nlora.runs.lock import held_lock
from nlora.runs.summary import Summary


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


def test_what_training_leaves_out_is_listed(tmp_path: Path) -> None:
    searched = changed(run(tmp_path / "auto"), train_seconds=[1, 1], prepare_seconds=[5, 5])
    plain = changed(run(tmp_path / "plain", "other"), train_seconds=[10, 10], prepare_seconds=[0.9, 1])
    old = changed(run(tmp_path / "old", "older"), prepare_seconds=[])
    comparison = compared(searched, plain, old)
    lines = [(line["train_seconds_mean"], line["prepare_seconds_mean"]) for line in table_of(comparison)]
    assert lines == [("2.0", "10.0"), ("20.0", "1.9"), ("60.0", "")]
    text = " ".join(shown(comparison, 160).split())
    assert "training preparing memory" in text
    assert "2.0 s 10 s" in text
    assert "training: time for all tasks, without preparing and scoring" in text
    assert "preparing: what" in text
    short = shown(compared(plain, old), 160)
    assert "preparing: what" not in short
    assert re.search("training +memory", short)


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    comparison = compared(run(tmp_path / "a", last=(51, 80)))
    assert comparison.rows[0].values["average_accuracy"] == Spread(65.5, None, 1)
    assert "±" not in shown(comparison)
    assert table_of(comparison)[0]["average_accuracy_std"] == ""


def test_a_measure_that_some_seeds_lack_shows_its_count(tmp_path: Path) -> None:
    comparison = compared(run(tmp_path / "a", seed=1, rate=0.5), run(tmp_path / "b", seed=2))
    assert "50.0 (n=1)" in shown(comparison, 120)
    assert table_of(comparison)[0]["collision_rate_n"] == "1"


def test_an_unfinished_run_has_its_own_row_with_what_is_known(tmp_path: Path) -> None:
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
    with held_lock(folders[1]):  # a process is writing there
        comparison = compared(*folders)
        assert "plain (inclora), running: 1 of 2 tasks" in written(comparison, "markdown")
    assert compared(*folders).rows[1].status == "stopped"  # the lock file remains


def test_a_folder_counts_once_and_a_repeated_seed_gets_its_own_row(tmp_path: Path) -> None:
    one = run(tmp_path / "x" / "plain-seed1", last=(40, 80))
    assert len(compared(one, one / ".." / "plain-seed1", tmp_path / "x").rows) == 1
    other = run(tmp_path / "y" / "plain-seed1", last=(60, 80))
    comparison = compared(one, other, run(tmp_path / "z", seed=2))
    first, second = comparison.rows
    assert (first.seeds, second.seeds) == ((1, 2), (1,))
    assert first.label == f"plain (inclora) in {one}"
    assert second.values["average_accuracy"].mean == 70
    assert any("seed 1 is also in another row" in note for note in comparison.notes)


def test_published_numbers_are_listed_with_runs_of_a_published_order(tmp_path: Path) -> None:
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
    short = compared(run(tmp_path / "5", "olora", method="olora"), everything=True)
    assert "No numbers are published for these sequences of tasks." in short.notes
    kept = run(
        tmp_path / "4", "kept", tasks=ORDER_1, last=(1, 1, 1, 1), method="inclora", replay={"memory": 8}
    )
    assert {row.method for row in compared(kept).published} == {"replay"}
    llama = run(
        tmp_path / "3", "x", tasks=ORDER_1, last=(1, 1, 1, 1), method="nlora", model="huggyllama/llama-7b"
    )
    labels = [row.label for row in compared(llama).published]
    assert labels == ["N-LoRA, published (T5-large)", "N-LoRA, published (LLaMA-7B)"]


def test_two_published_orders_have_distinct_labels(tmp_path: Path) -> None:
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


def test_all_paths_that_are_not_runs_are_reported_together(tmp_path: Path) -> None:
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
    assert "broken: status" in lines[2]


def test_a_summary_without_a_parameter_count_is_read(tmp_path: Path) -> None:
    folder = run(tmp_path / "1")
    values = json.loads((folder / "summary.json").read_text())
    del values["trained_parameters"]
    (folder / "summary.json").write_text(json.dumps(values))
    (row,) = compared(folder).rows
    assert "trained_parameters" not in row.values
    assert isinstance(read_runs([folder])[0][1], Summary)
