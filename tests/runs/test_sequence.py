"""The sequence as a whole, on tiny models: what a run leaves, that it can be killed, and that it repeats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers import learn, same_outcome, write_config
from nlora.config.load import load_config
from nlora.data.collate import Collator
from nlora.data.task import TokenizedExample
from nlora.evaluation.evaluator import Evaluator
from nlora.evaluation.label_scoring import LabelTree, label_scores
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import load_factors
from nlora.models.merged_updates import MergedUpdates
from nlora.runs.plan import make_plan
from nlora.runs.stage_training import stage_seed
from nlora.training.random_state import random_state

TinyModel = Callable[[str], Path]


def adapters(run: Path) -> list[dict[str, torch.Tensor]]:
    return [load_file(file) for file in sorted(run.glob("outputs/*/adapter/adapter_model.safetensors"))]


def predictions(run: Path) -> list[str]:
    return [file.read_text() for file in sorted(run.glob("outputs/*/predict_eval_predictions.jsonl"))]


def assert_same_files(a: Path, b: Path) -> None:
    files = sorted(f.relative_to(a) for f in a.glob("outputs/**/*.safetensors"))
    assert len(files) >= 2
    assert files == sorted(f.relative_to(b) for f in b.glob("outputs/**/*.safetensors"))
    for one, other in ((load_file(a / file), load_file(b / file)) for file in files):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert predictions(a) == predictions(b)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("method", ["nlora", "inclora", "seqlora"])
def test_a_run_learns_every_task_and_leaves_the_released_files(
    tmp_path: Path, tiny_model: TinyModel, family: str, method: str
) -> None:
    evaluate = {"batch_size": 4, "zero_shot": True, "unseen": True}
    config = write_config(tmp_path, tiny_model(family), method=method, evaluate=evaluate)
    summary = learn(config)
    assert summary.status == "complete"
    assert all(score is not None for row in summary.R for score in row)
    assert summary.forward_transfer is not None
    run = tmp_path / "run"
    for stage in ("1-colors", "2-animals"):
        names = {file.name for file in (run / "outputs" / stage).iterdir()}
        assert {"adapter", "all_results.json", "train_results.json", "predict_results.json"} <= names
        assert {"predict_eval_predictions.jsonl", "trainer_state.json"} <= names
    results = json.loads((run / "outputs/2-animals/predict_results.json").read_text())
    assert results["decode"] == "labels"
    assert results["predict_exact_match_for_colors"] == pytest.approx(summary.R[1][0], abs=1e-3)
    written = json.loads((run / "summary.json").read_text())
    assert written["schema"] == 1
    assert written["average_accuracy"] == pytest.approx(sum(summary.R[1]) / 2)  # type: ignore[arg-type]


def test_training_learns_what_the_text_says(tmp_path: Path, tiny_model: TinyModel) -> None:
    train = {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2}
    summary = learn(write_config(tmp_path, tiny_model("llama"), method="seqlora", train=train, lora={"r": 8}))
    losses = [
        json.loads((tmp_path / f"run/outputs/{stage}/trainer_state.json").read_text())["log_history"]
        for stage in ("1-colors", "2-animals")
    ]
    assert all(log[-1]["train_loss"] < log[0]["loss"] for log in losses)
    assert summary.R[1][1] is not None


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), lora={"r": 4, "dropout": 0.1})
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        learn(config, f"output_dir={tmp_path / name}", f"seed={seed}")
    assert_same_files(tmp_path / "a", tmp_path / "b")
    first, other = adapters(tmp_path / "a")[0], adapters(tmp_path / "c")[0]
    assert not any(torch.equal(first[key], other[key]) for key in first)


def test_weight_zero_is_incremental_lora_to_the_bit(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    zero = learn(config, f"output_dir={tmp_path / 'zero'}", "method.weight=0")
    plain = learn(config, f"output_dir={tmp_path / 'plain'}", "method=inclora")
    penalized = learn(config, f"output_dir={tmp_path / 'penalized'}", "method.weight=0.1")
    assert same_outcome(zero, plain)
    assert_same_files(tmp_path / "zero", tmp_path / "plain")
    assert penalized.tasks == plain.tasks
    a, b = adapters(tmp_path / "penalized")[0], adapters(tmp_path / "plain")[0]
    assert not all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("method", ["nlora", "seqlora", "ewc", "seqft", "osf"])
def test_a_run_killed_while_a_stage_is_scored_trains_nothing_again_and_ends_like_one_that_was_not(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), method=method)
    whole = learn(config, f"output_dir={tmp_path / 'whole'}")
    target = f"output_dir={tmp_path / 'killed'}"

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # Dies while the second stage writes its results: the first is committed, the second is not.
        original = Evaluator.answer
        asked: list[str] = []

        def answer(self: Evaluator, task: Any, *args: Any, **kwargs: Any) -> Any:
            asked.append(task.name)
            return killed() if task.name == "animals" else original(self, task, *args, **kwargs)

        patch.setattr(Evaluator, "answer", answer)
        with pytest.raises(KeyboardInterrupt):
            learn(config, target)
    assert {f.name for f in (tmp_path / "killed/outputs").iterdir()} == {"1-colors", ".tmp-2-animals"}
    assert json.loads((tmp_path / "killed/summary.json").read_text())["status"] == "running"
    with monkeypatch.context() as patch:
        patch.setattr(
            "nlora.runs.stage_training.train",
            lambda *args, **kwargs: pytest.fail("a trained stage was trained"),
        )
        assert same_outcome(learn(config, target), whole)
    assert_same_files(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_is_not_run_again(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    first = learn(config)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run/outputs").rglob("*")}
    monkeypatch.setattr("nlora.runs.plan.make_plan", lambda loaded: pytest.fail("a finished run was planned"))
    assert same_outcome(learn(config), first)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "run/outputs").rglob("*")} == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_stock_peft_adds_the_saved_adapters_up_to_the_same_answers(
    tmp_path: Path, tiny_model: TinyModel, family: str
) -> None:
    from peft import PeftModel

    config = write_config(
        tmp_path, tiny_model(family), train={"epochs": 4, "batch_size": 4, "learning_rate": 1e-2}
    )
    learn(config)
    folders = sorted((tmp_path / "run/outputs").glob("*/adapter"))
    plan = make_plan(load_config(str(config), [f"output_dir={tmp_path / 'again'}"]))
    ours: Any = load_backbone(str(tiny_model(family)))
    folded = MergedUpdates(ours.model, [module.name for module in plan.modules])
    folded.activate([load_factors(folder) for folder in folders])

    stock: Any = load_backbone(str(tiny_model(family)))
    peft_model = PeftModel.from_pretrained(stock.model, folders[0], adapter_name="first")
    peft_model.load_adapter(folders[1], adapter_name="second")
    peft_model.base_model.set_adapter(["first", "second"])

    evaluator = Evaluator(stock, plan.encoder, plan.config.evaluate)
    file = tmp_path / "run/outputs/2-animals/predict_eval_predictions.jsonl"
    expected = [json.loads(line)["Prediction"] for line in file.read_text().splitlines()]
    assert [text for task in plan.tasks for text in evaluator.answer(task).texts] == expected
    for task, encoded in zip(plan.tasks, plan.encoded, strict=True):
        # The same scores too: what a tiny random model finds likeliest hardly depends on the text.
        tree = LabelTree.build(plan.encoder.label_ids(task.labels or ()), plan.encoder.end_id)
        prompts = [TokenizedExample(e.prompt_ids, ()) for e in encoded]
        batch = Collator(0, ours.encoder_decoder)(prompts)
        found, scores = label_scores(stock.model, batch, tree), label_scores(ours.model, batch, tree)
        torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-4)
        assert scores.std(dim=0).max() > 1e-3


def test_stage_seeds_differ_and_depend_on_both_numbers() -> None:
    seeds = {stage_seed(seed, stage) for seed in range(20) for stage in range(1, 16)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_random_numbers_of_the_host_go_on(tmp_path: Path, tiny_model: TinyModel) -> None:
    """Otherwise what a program draws after every run would be the same."""
    before = random_state()
    learn(write_config(tmp_path, tiny_model("llama")))
    after = random_state()
    assert before["python"] == after["python"]
    assert torch.equal(before["cpu"], after["cpu"])
    for one, other in zip(before["numpy"], after["numpy"], strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
