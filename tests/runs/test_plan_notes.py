"""What is said of a plan before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers import COLORS, write_config, write_task
from nlora.config.load import load_config
from nlora.runs.plan import make_plan
from nlora.runs.plan_notes import plan_notes

TinyModel = Callable[[str], Path]


@pytest.mark.parametrize("family", ["mixtral", "llama"])
def test_experts_in_one_tensor_are_said_to_be_left_out(
    tmp_path: Path, tiny_family: Callable[[str], Any], tiny_tokenizer: Callable[[bool], Any], family: str
) -> None:
    model = tiny_family(family)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer(False).save_pretrained(tmp_path / "model")
    config = write_config(tmp_path, tmp_path / "model", lora={"targets": "all-linear"})

    def notes(*overrides: str) -> list[str]:
        found = plan_notes(make_plan(load_config(str(config), list(overrides))))
        return [note for note in found if "experts" in note]

    weights = {name: p.numel() for name, p in model.named_parameters() if "layers" in name and p.dim() > 1}
    experts = sum(count for name, count in weights.items() if "experts" in name)
    routers = sum(
        count for name, count in weights.items() if name.endswith("gate.weight")
    )  # no linear layers
    share = 1 - experts / (sum(weights.values()) - routers)
    assert notes() == (
        [
            "lora.targets: all-linear leaves out the experts, which are one tensor in each layer here; it updates "
            f"{100 * share:.2g} % of the weights of both"
        ]
        if experts
        else []
    )
    assert notes("lora.targets=null") == notes("method=seqft") == []


def test_answers_of_free_text_that_are_cut_are_counted(tmp_path: Path, tiny_model: TinyModel) -> None:
    """One that just fits is not among them."""
    config = write_config(tmp_path, tiny_model("llama"))
    values = yaml.safe_load(config.read_text())
    task = values["tasks"][0]
    del task["labels"]
    plan = make_plan(load_config(str(config), ["train.max_target_tokens=500"]))
    words = [" ".join(["blue"] * n) for n in range(1, 17)]
    lengths = [len(plan.encoder.answer_ids(text)) for text in words]
    most = lengths[9]
    assert lengths[8] < most < lengths[10]
    rows = [{"sentence": f"text {i}", "label": text} for i, text in enumerate(words)]
    Path(task["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.write_text(yaml.safe_dump(values))
    notes = plan_notes(make_plan(load_config(str(config), [f"train.max_target_tokens={most}"])))
    assert [note for note in notes if "answers" in note] == [
        f"colors: 6 of 16 answers are longer than {most} tokens, and are cut in training; set train.max_target_tokens "
        "to the longest that matters"
    ]


def test_steps_that_bfloat16_rounds_away_are_announced(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"))

    def notes(method: str, dtype: str) -> list[str]:
        plan = make_plan(load_config(str(config), [f"method={method}", f"dtype={dtype}"]))
        return [note for note in plan_notes(plan) if "bfloat16" in note]

    for method in ("seqft", "osf"):
        assert notes(method, "bfloat16") == [
            f"{method} trains the model's weights in bfloat16, which rounds most small steps away; set dtype: "
            "float32, or a larger train.learning_rate"
        ]
        assert notes(method, "float32") == []
    assert notes("seqlora", "bfloat16") == []  # its adapter is in float32


def without_effect(config: Path, **overrides: Any) -> list[str]:
    found = plan_notes(make_plan(load_config(config, overrides)))
    return [note for note in found if "effect" in note]


def test_settings_of_tasks_that_mtl_does_not_train_alone_are_named(
    tmp_path: Path, tiny_model: TinyModel
) -> None:
    """But not those of their examples, which it trains on, nor those of its last task, which hold for all."""
    stages = {
        "colors": {
            "train": {"learning_rate": 1e-4, "max_samples": 5, "label_weights": "balanced", "epochs": 9}
        },
        "animals": {"train": {"epochs": 3, "batch_size": 16}},
    }
    config = write_config(tmp_path, tiny_model("llama"), method="mtl", stages=stages)
    assert without_effect(config) == [
        "stages.colors.train.epochs, stages.colors.train.learning_rate: without effect, because mtl trains on all "
        "tasks at once, with the settings of the last, animals"
    ]
    plan = make_plan(load_config(config))
    assert [len(tokens) for tokens in plan.encoded] == [0, 5 + 16]
    assert plan.stages[1].steps == -(-(5 + 16) // 16) * 3
    weights = plan.weights[1]
    assert weights is not None
    assert len(set(weights[:5])) > 1
    assert without_effect(config, method="inclora") == []
    del stages["colors"]["train"]["learning_rate"], stages["colors"]["train"]["epochs"]
    assert without_effect(write_config(tmp_path, tiny_model("llama"), method="mtl", stages=stages)) == []


def test_settings_of_an_adapter_from_elsewhere_are_named(tmp_path: Path, tiny_model: TinyModel) -> None:
    model = tiny_model("llama")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora).save_pretrained(tmp_path / "old")
    tasks = [{"name": "old", "adapter": str(tmp_path / "old")}, write_task(tmp_path, "colors", COLORS)]
    stages = {
        "old": {"train": {"max_samples": 5}, "method": {"weight": 0.5}},
        "colors": {"train": {"epochs": 1}, "method": {"weight": 0.5}},
    }
    config = write_config(tmp_path, model, tasks=tasks, stages=stages)
    assert without_effect(config) == [
        "stages.old.train.max_samples, stages.old.method.weight: without effect, because an adapter from elsewhere "
        "is not trained"
    ]
