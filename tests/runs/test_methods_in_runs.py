"""Every method in a whole run on a tiny model: the files it leaves, resuming, and what makes it incremental LoRA."""

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
from nlora.evaluation.evaluator import Evaluator
from nlora.methods.registry import method_names
from nlora.models.backbone import load_backbone
from nlora.models.lora_adapter import load_factors
from nlora.models.merged_updates import MergedUpdates
from nlora.runs.layout import MEMORY_FILE
from nlora.runs.plan import make_plan
from nlora.training.penalized_trainer import PenalizedTrainer

TinyModel = Callable[[str], Path]

# What turns a method off; those that are not named have no such option.
OFF = {
    "nlora": "method.weight=0",
    "olora": "method.weight=0",
    "ella": "method.weight=0",
    "clora": "method.weight=0",
    "oplora": "method.k=0",
    "ewc": "method.weight=0",
    "lwf": "method.weight=0",
    "replay": "method.memory=0",
    "disjoint": "method.tasks=1",
    "gorp": "method.threshold=0",
}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "outputs").rglob("*.safetensors"))
    return {
        f"{f.relative_to(run / 'outputs')}/{key}": value for f in files for key, value in load_file(f).items()
    }


def same_tensors(a: Path, b: Path) -> bool:
    one, other = tensors(a), tensors(b)
    return bool(one) and one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("method", method_names())
def test_a_killed_run_ends_like_one_that_was_not(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """And so the same seed gives the same bits; another one does not."""
    config = write_config(tmp_path, tiny_model("llama"), method=method, evaluate={"unseen": True})
    whole = learn(config, f"output_dir={tmp_path / 'whole'}")
    assert whole.status == "complete"
    assert all(score is not None for score in whole.R[1])
    assert (whole.backward_transfer is None) == (method == "mtl")
    target = f"output_dir={tmp_path / 'killed'}"
    original = PenalizedTrainer.train
    starts: list[int] = []

    def train(self: PenalizedTrainer, *args: Any, **kwargs: Any) -> Any:
        starts.append(len(starts))
        if len(starts) == (1 if method == "mtl" else 2):
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PenalizedTrainer, "train", train)
        with pytest.raises(KeyboardInterrupt):
            learn(config, target)
    assert [f.name for f in (tmp_path / "killed/outputs").iterdir()] == ["1-colors"]
    assert same_outcome(learn(config, target), whole)
    assert same_tensors(tmp_path / "whole", tmp_path / "killed")
    learn(config, f"output_dir={tmp_path / 'other'}", "seed=4")
    assert not same_tensors(tmp_path / "whole", tmp_path / "other")


def test_lost_zero_shot_scores_are_those_of_the_bare_backbone_when_a_run_goes_on(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), evaluate={"zero_shot": True})
    whole = learn(config, f"output_dir={tmp_path / 'whole'}")
    original = PenalizedTrainer.train
    starts: list[int] = []

    def train(self: PenalizedTrainer, *args: Any, **kwargs: Any) -> Any:
        starts.append(len(starts))
        if len(starts) == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PenalizedTrainer, "train", train)
        with pytest.raises(KeyboardInterrupt):
            learn(config)
    (tmp_path / "run/zero_shot.json").unlink()
    assert same_outcome(learn(config), whole)


@pytest.mark.parametrize("method", sorted(OFF))
def test_turned_off_it_is_incremental_lora_to_the_bit(
    tmp_path: Path, tiny_model: TinyModel, method: str
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), lora={"r": 4, "alpha": 8, "dropout": 0.1})
    off = learn(config, f"output_dir={tmp_path / 'off'}", f"method={method}", OFF[method])
    plain = learn(config, f"output_dir={tmp_path / 'plain'}", "method=inclora")
    assert same_outcome(off, plain)
    one, other = tensors(tmp_path / "off"), tensors(tmp_path / "plain")
    remembered = {key for key in one if MEMORY_FILE in key}  # a later task may turn it on
    assert bool(remembered) == (method in ("ewc", "gorp"))
    assert one.keys() - remembered == other.keys() != set()
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("method", ["ewc", "lwf", "seqft", "mtl"])
def test_other_families_learn_too(tmp_path: Path, tiny_model: TinyModel, method: str, family: str) -> None:
    summary = learn(write_config(tmp_path, tiny_model(family), method=method))
    assert summary.status == "complete"
    assert summary.average_accuracy is not None


@pytest.mark.parametrize("method", ["ewc", "gorp"])
def test_a_task_may_be_learned_without_what_the_method_adds(
    tmp_path: Path, tiny_model: TinyModel, method: str
) -> None:
    key, _, value = OFF[method].partition(".")[2].partition("=")
    stages = {"colors": {"method": {key: int(value)}}}
    assert (
        learn(write_config(tmp_path, tiny_model("llama"), method=method, stages=stages)).status == "complete"
    )


def test_all_parameters_move_and_the_stage_holds_the_whole_model(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), method="seqft")
    learn(config)
    before = load_backbone(str(tiny_model("llama"))).model.state_dict()
    folder = tmp_path / "run/outputs/2-animals"
    assert not (folder / "adapter").exists()
    tensors_after = load_file(folder / "model/model.safetensors")
    moved = [name for name, tensor in tensors_after.items() if not torch.equal(tensor, before[name])]
    assert len(moved) == len(tensors_after)
    again = load_backbone(str(folder / "model"))  # a model to go on with, tokenizer included
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in tensors_after.items())


def test_pertask_answers_each_task_with_its_own_adapter(tmp_path: Path, tiny_model: TinyModel) -> None:
    train = {"epochs": 4, "batch_size": 4, "learning_rate": 2e-2}
    config = write_config(tmp_path, tiny_model("llama"), method="pertask", train=train)
    summary = learn(config)
    assert summary.R[0][0] == summary.R[1][0]  # nothing learned later touches it
    plan = make_plan(load_config(str(config), [f"output_dir={tmp_path / 'again'}"]))
    backbone = load_backbone(str(tiny_model("llama")))
    folded = MergedUpdates(backbone.model, [module.name for module in plan.modules])
    evaluator = Evaluator(backbone, plan.encoder, plan.config.evaluate)
    for index, stage in enumerate(("1-colors", "2-animals")):
        folded.activate([load_factors(tmp_path / "run/outputs" / stage / "adapter")])
        task = plan.tasks[index]
        texts = evaluator.answer(task).texts
        hits = sum(text == example.label for text, example in zip(texts, task.test, strict=True))
        assert summary.R[1][index] == pytest.approx(100 * hits / len(task.test))


def test_a_methods_memory_lies_with_the_last_stage_only(tmp_path: Path, tiny_model: TinyModel) -> None:
    learn(write_config(tmp_path, tiny_model("llama"), method="ewc"))
    assert [f.parent.name for f in (tmp_path / "run/outputs").glob("*/memory.safetensors")] == ["2-animals"]


@pytest.mark.parametrize("method", sorted({"ewc", "lwf", "replay", "ella", "olora"} & set(method_names())))
def test_turned_on_it_changes_the_second_stage_and_not_the_first(
    tmp_path: Path, tiny_model: TinyModel, method: str
) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    strong = {} if method == "replay" else {"method.weight": 1e4}
    learn(
        config, f"output_dir={tmp_path / 'on'}", f"method={method}", *(f"{k}={v}" for k, v in strong.items())
    )
    learn(config, f"output_dir={tmp_path / 'off'}", "method=inclora")
    on, off = tensors(tmp_path / "on"), tensors(tmp_path / "off")
    for key in off:
        if key.startswith("1-"):
            assert torch.equal(on[key], off[key])
    assert not all(torch.equal(on[key], off[key]) for key in off if key.startswith("2-"))


@pytest.mark.parametrize("method", ["nlora", "seqft", "osf"])
def test_activations_computed_twice_change_nothing(
    tmp_path: Path, tiny_model: TinyModel, method: str
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), method=method)
    for name in ("false", "true"):
        learn(config, f"output_dir={tmp_path / name}", f"train.gradient_checkpointing={name}")
    kept = sorted((tmp_path / "false/outputs").glob("**/*.safetensors"))
    assert len(kept) >= 2
    for file in kept:
        again = load_file(tmp_path / "true" / file.relative_to(tmp_path / "false"))
        for key, tensor in load_file(file).items():
            torch.testing.assert_close(again[key], tensor, rtol=0, atol=2e-4)


def test_a_run_of_layers_that_have_no_number_has_an_analysis_and_a_page(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    learn(write_config(tmp_path, tiny_model("llama"), lora={"r": 4, "targets": ["lm_head"]}))
    analysis = json.loads((tmp_path / "run/analysis.json").read_text())
    assert analysis["by_layer"]["layers"] == []
    assert analysis["by_kind"]["kinds"] == ["lm_head"]
    assert "lm_head" in (tmp_path / "run/report.html").read_text()
