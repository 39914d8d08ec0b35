"""`nlora analyze`: adapters from folders and the hub, a run's stages, tables, JSON, CSV, HTML."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from nlora.analysis.adapter_sources import _short_names
from nlora.analysis.of_run import analyze_run
from nlora.models.lora_factors import load_factors
from nlora.runs.summary import read_summary
from states import SHAPES, plain_measures, random_state, write_adapter, write_run
from tiny import load

Call = Callable[..., tuple[int, str, str]]


def test_json_has_documented_keys_and_the_numbers_of_whole_updates(two: list[Path], nlora: Call) -> None:
    status, out, _ = nlora("analyze", *two, "--json", "--threshold", "0.5")
    assert status == 0
    values = json.loads(out)
    assert (values["schema"], values["threshold"]) == (1, 0.5)
    assert list(values["adapters"]) == ["1-task", "2-task"]  # without the end that both paths share
    assert {"density", "nuclear_norm", "stable_rank", "effective_rank", "l1", "frobenius"} <= set(
        values["adapters"]["1-task"]
    )
    own = values["pairs"]["1-task|2-task"]
    expected = plain_measures(*(load_factors(folder) for folder in two), 0.5)
    assert {key: own[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert values["average_collision_rate"] == own["collision_rate"]


def test_stock_adapters_of_different_ranks_alphas_and_modules(
    tmp_path: Path, tiny_model: Callable[[str], Path], nlora: Call
) -> None:
    options: dict[str, dict[str, Any]] = {
        "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
        "patterns": {"r": 4, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.*q_proj": 20},
                     "target_modules": ["q_proj", "v_proj"]},
        "one": {"r": 1, "lora_alpha": 8, "target_modules": ["q_proj"]},
    }  # fmt: skip
    merged: dict[str, dict[str, torch.Tensor]] = {}
    for name, own in options.items():
        model = get_peft_model(load(tiny_model("llama")), LoraConfig(task_type="CAUSAL_LM", **own))
        torch.manual_seed(len(merged))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_()
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        layers = model.get_base_model().named_modules()
        merged[name] = {n: m.get_delta_weight("default") for n, m in layers if hasattr(m, "get_delta_weight")}
    status, out, _ = nlora("analyze", *(tmp_path / name for name in options), "--json", "--threshold", "1.0")
    assert status == 0
    values = json.loads(out)
    for pair, own in values["pairs"].items():
        one, other = (merged[name] for name in pair.split("|"))
        common = one.keys() & other.keys()
        both = sum(int(((one[m].abs() > 1) & (other[m].abs() > 1)).sum()) for m in common)
        assert own["collision_rate"] == pytest.approx(both / sum(one[m].numel() for m in common))
    assert len(values["notes"]) == 1
    assert values["notes"][0].startswith("one lacks 2 of 4 modules")


def test_the_tables_show_rate_threshold_and_rule_in_80_columns(two: list[Path], nlora: Call) -> None:
    values = json.loads(nlora("analyze", *two, "--json")[1])
    status, out, _ = nlora("analyze", *two)
    assert status == 0
    assert f"average collision rate {100 * values['average_collision_rate']:.2f} %, mean over 1 pair" in out
    assert f"threshold {values['threshold']:.3g}: 0.1 x the root mean square" in out
    assert max(map(len, out.splitlines())) <= 80


def test_fifteen_adapters_fit_in_80_columns(tmp_path: Path, nlora: Call) -> None:
    name = "a_rather_long_name_of_a_task"
    folders = [write_adapter(tmp_path / f"{n}_{name}", random_state(SHAPES, 2, n)) for n in range(15)]
    out = nlora("analyze", *folders)[1]
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80
    assert "mean over 105 pairs" in out
    rows = [line for line in out.splitlines() if line.startswith("14 ")]
    assert rows[-1].split()[-1].isdecimal()  # the last pair's rate is not cut off


def test_csv_has_every_pair_overall_and_by_module(tmp_path: Path, two: list[Path], nlora: Call) -> None:
    file = tmp_path / "pairs.csv"
    assert nlora("analyze", *two, "--csv", file)[0] == 0
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["module"] for row in rows] == ["", *SHAPES]
    overall, *modules = [float(row["collision_rate"]) for row in rows]
    assert overall == pytest.approx(sum(modules) / 2)  # modules of one size


def test_a_file_that_cannot_be_written_leaves_the_run_as_it_was(
    tmp_path: Path, nlora: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(run := tmp_path / "run")
    assert nlora("analyze", run, "--csv", tmp_path / "pairs.csv")[0] == 0
    names = ("analysis.json", "summary.json", "../pairs.csv")
    before = {name: (run / name).read_bytes() for name in names}
    for option in ("--csv", "--html"):
        for file, said in ((tmp_path / "no/x", f"there is no folder {tmp_path}/no"), (run, "is a folder; ")):
            status, out, err = nlora("analyze", run, "--threshold", "0.5", option, file)
            assert (status, out) == (2, "")
            assert err.startswith(f"error: {option}: {file}")
            assert said in err
            assert err.count("\n") == 1
    assert before == {name: (run / name).read_bytes() for name in names}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    assert nlora("analyze", *sorted(run.glob("outputs/*/adapter")), "--csv", tmp_path / "pairs.csv")[0] == 2
    assert (tmp_path / "pairs.csv").read_bytes() == before["../pairs.csv"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "pairs.csv"}


def test_html_has_the_same_numbers(tmp_path: Path, nlora: Call) -> None:
    hostile = "<script>alert(1)<"
    adapters = [
        write_adapter(tmp_path / name / "adapter", random_state(SHAPES, 2, seed))
        for seed, name in enumerate((hostile, "plain"))
    ]
    page = tmp_path / "page.html"
    status, out, _ = nlora("analyze", *adapters, "--html", page, "--json", "--threshold", "0.5")
    assert status == 0
    rate = json.loads(out)["pairs"][f"{hostile}|plain"]["collision_rate"]
    text = page.read_text()
    assert f"{100 * rate:.1f}" in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;" in text
    status, _, errors = nlora("analyze", *adapters, "--html", tmp_path)
    assert status == 2
    assert "is a folder; give the name of a file" in errors


def test_a_run_is_compared_by_task_and_keeps_its_analysis(tmp_path: Path, nlora: Call) -> None:
    states = write_run(tmp_path / "run")
    status, out, _ = nlora("analyze", tmp_path / "run", "--json")
    assert status == 0
    values = json.loads(out)
    assert (
        json.loads((tmp_path / "run" / "analysis.json").read_text())
        == values
        == analyze_run(tmp_path / "run").to_json()
    )
    assert list(values["pairs"]) == ["r8|news", "r8|tweets", "news|tweets"]
    expected = plain_measures(states[0], states[2], values["threshold"])
    assert values["pairs"]["r8|tweets"]["overlap_energy"] == pytest.approx(
        expected["overlap_energy"], rel=1e-4
    )
    assert [pair["drop"] for pair in values["forgetting"]["pairs"]] == [20.0, -5.0, 20.0]
    assert values["forgetting"]["correlation"]["collision_rate"] is None
    assert values["run"]["method"] == "inclora"
    collision = analyze_run(tmp_path / "run").collision()
    assert collision is not None
    assert collision.average_rate == values["average_collision_rate"]
    assert collision.pairs["news|tweets"] == values["pairs"]["news|tweets"]["collision_rate"]
    assert "too few pairs" in nlora("analyze", tmp_path / "run")[1]


def test_an_unfinished_run_is_analyzed_by_its_finished_stages(tmp_path: Path, nlora: Call) -> None:
    write_run(tmp_path / "two", stages=2)
    found = analyze_run(tmp_path / "two")
    assert list(found.pairs) == ["r8|news"]
    assert found.notes == ["2 of 3 stages have an update."]
    write_run(tmp_path / "one", stages=1)
    found = analyze_run(tmp_path / "one")
    assert found.collision() is None
    assert (found.adapters["r8"].nuclear_norm or 0) > 0
    assert nlora("analyze", tmp_path / "one")[0] == 0


def test_the_summary_has_the_collisions_of_the_last_analysis(tmp_path: Path, nlora: Call) -> None:
    """Else `nlora compare`, which reads nothing else, would go on showing those of another threshold."""
    write_run(tmp_path / "run")
    assert nlora("analyze", tmp_path / "run", "--threshold", "0.5")[0] == 0
    found = read_summary(tmp_path / "run").collision
    assert found == analyze_run(tmp_path / "run", 0.5).collision()
    assert found is not None
    assert found.threshold == 0.5


def test_an_adapter_trained_through_all_tasks_is_compared_by_its_changes(tmp_path: Path) -> None:
    states = write_run(tmp_path / "run", method="seqlora")
    values = analyze_run(tmp_path / "run", threshold=0.5).to_json()
    first, second = (torch.cat([f.update().flatten() for f in s.values()]) for s in states[:2])
    assert values["adapters"]["r8"]["frobenius"] == pytest.approx(float(first.norm()), rel=1e-4)
    assert values["adapters"]["news"]["frobenius"] == pytest.approx(float((second - first).norm()), rel=1e-4)
    assert values["pairs"]["r8|news"]["orthogonality"] is None
    assert "trains one adapter through all tasks" in values["notes"][0]


def test_two_files_are_fetched_for_a_hub_id(
    two: list[Path], nlora: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repo: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo, allow_patterns))
        if repo == "some/gone":
            raise OSError("401 Client Error: no such repository\nmore lines")
        return str(two[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    status, out, _ = nlora("analyze", "some/adapter", two[1], "--json")
    assert status == 0
    assert asked == [("some/adapter", ["adapter_config.json", "adapter_model.safetensors"])]
    assert len(json.loads(out)["pairs"]) == 1
    status, _, err = nlora("analyze", "some/gone", two[1])
    assert status == 2
    assert "some/gone: neither a folder here nor an adapter that can be fetched from the hub (401" in err
    assert len(err.splitlines()) == 1


def test_different_base_models_are_noted(tmp_path: Path, nlora: Call) -> None:
    folders = [
        write_adapter(tmp_path / base, random_state(SHAPES, 2, 1), base=base) for base in ("one", "other")
    ]
    status, out, _ = nlora("analyze", *folders)
    assert status == 0
    assert "name different base models (one, other)" in " ".join(out.split())


def test_names_are_the_shortest_distinct_ends_of_the_paths(tmp_path: Path, nlora: Call) -> None:
    paths = ["x/a/outputs/1-r8/adapter", "y/a/outputs/1-r8/adapter", "x/b/outputs/1-r8/adapter"]
    folders = [write_adapter(tmp_path / path, random_state(SHAPES, 2, n)) for n, path in enumerate(paths)]
    names = list(json.loads(nlora("analyze", *folders, "--json")[1])["adapters"])
    assert names == ["x/a", "y/a", "x/b"]


def test_the_current_folder_has_a_name_among_adapters() -> None:
    assert _short_names([".", "../b"]) == [Path.cwd().name, "b"]
