"""lm-evaluation-harness on the model in memory, with a task of the user's own; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import small
from transformers import AutoTokenizer

import tiny
from helpers import learn
from nlora.config.load import load_config
from nlora.errors import InputErrors, RunError
from nlora.evaluation.harness import harness_problem, results_of
from nlora.runs.plan import make_plan
from nlora.runs.summary import read_summary

CHOICES = ("red", "green stock")
QUESTIONS = [(f"the thing number {i} of {i * i} is", i % 2) for i in range(8)]
TASK = """
task: paints
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task `paints`."""
    made = tmp_path_factory.mktemp("harness")
    rows = [{"question": text, "choices": CHOICES, "answer": right} for text, right in QUESTIONS]
    (made / "paints.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "paints.yaml").write_text(TASK.format(file=made / "paints.jsonl"))
    return made


def accuracy(model: Any, limit: int) -> float:
    """The share of questions whose likelier choice, by the sum over its tokens, is the right one."""
    tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
    right = 0
    for text, answer in QUESTIONS[:limit]:
        sums = []
        for choice in CHOICES:
            start = len(tokenizer(text)["input_ids"])
            ids = tokenizer(f"{text} {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                log_p = model(input_ids=ids).logits[0].log_softmax(-1)
            sums.append(sum(float(log_p[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
        right += sums.index(max(sums)) == answer
    return right / limit


def test_a_run_measures_its_tasks_before_and_after_every_stage(
    folder: Path,
    tmp_path: Path,
    tiny_model: Callable[[str], Path],
    small_run: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    general = {"text": None, "harness": ["paints"], "harness_path": str(folder), "harness_limit": 7}
    values = {"method": "inclora", "evaluate": {"general": general}}
    measured = learn(small(tmp_path, tiny_model("llama"), **values))
    before = measured.general[0]
    assert before is not None
    assert before.harness["paints"]["acc"] == pytest.approx(accuracy(tiny.load(tiny_model("llama")), 7))
    assert before.harness["paints"].keys() == {"acc", "acc_stderr"}
    assert [scores is not None and scores.harness.keys() == {"paints"} for scores in measured.general] == [
        True
    ] * 3
    assert before.perplexity is None
    assert read_summary(tmp_path / "run") == measured
    # The harness seeds the global random generators; the run does not notice.
    plain = small_run("inclora") / "run"
    assert measured.R == read_summary(plain).R
    for file in sorted(plain.glob("outputs/*/adapter/*.safetensors")):
        assert (tmp_path / "run" / file.relative_to(plain)).read_bytes() == file.read_bytes()


def test_data_that_cannot_be_loaded_end_the_run_in_one_line(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    (tmp_path / "lost.yaml").write_text(TASK.format(file=tmp_path / "none.jsonl").replace("paints", "lost"))
    general = {"text": None, "harness": ["lost"], "harness_path": str(tmp_path)}
    with pytest.raises(
        RunError, match=r"lm-evaluation-harness failed on lost: .*; leave evaluate.general.harness out"
    ):
        learn(small(tmp_path, tiny_model("llama"), evaluate={"general": general}))


def test_what_cannot_be_run_is_found_before_training(
    folder: Path, tmp_path: Path, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert harness_problem(["paints"], str(folder)) is None
    fsdp = small(tmp_path, tiny_model("llama"), fsdp=True, evaluate={"general": {"harness": ["paints"]}})
    with pytest.raises(InputErrors, match="harness: the harness reads the model in one process"):
        make_plan(load_config(fsdp))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert harness_problem(["paints"], None) == "lm-eval is not installed; pip install lm-eval"


def test_a_group_without_metrics_is_replaced_by_its_tasks() -> None:
    found = {
        "results": {
            "tag": {"alias": "tag"},
            "one": {"alias": "one", "acc,none": 0.25, "acc_stderr,none": "N/A", "sample_len": 4},
            "two": {"exact_match,strict-match": 0.5, "exact_match,flexible": float("nan")},
            "group": {"acc,none": 0.375},
            "in group": {"acc,none": 0.3},
        },
        "group_subtasks": {"tag": ["one", "two"], "group": ["in group"]},
    }
    expected = {"one": {"acc": 0.25}, "two": {"exact_match (strict-match)": 0.5}, "group": {"acc": 0.375}}
    assert results_of(found, ["tag", "group"]) == expected
