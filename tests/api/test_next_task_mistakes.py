"""Mistakes in a call of nlora.next_task: one line each, and the model is left alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model

import nlora
from nlora.models.target_modules import target_modules
from states import of_matrix, random_state, write_adapter
from tiny import LORA, load

VALUES = {"r": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> Any:
    return load(tiny_model("llama"))


@pytest.mark.parametrize(
    "name", ["l2p", "lori", "lwf", "mtl", "oplora", "osf", "progprompt", "replay", "seqft"]
)
def test_a_method_that_needs_more_is_refused_by_name(name: str, model: Any) -> None:
    with pytest.raises(
        nlora.InputErrors, match=f"^method: {name} .*nlora run only.*disjoint, ella, ewc, inclora"
    ):
        nlora.next_task(model, method=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "nlra"}, "method.name: unknown method 'nlra'; did you mean 'nlora'?"),
        ({"method": {"name": "nlora", "wieght": 1}}, "method.wieght: unknown key; did you mean 'weight'?"),
        ({"lora": {"rank": 4}}, "lora.rank: unknown key; use lora.r"),
        ({"lora": {"targets": ["q_prj"]}}, "lora.targets: LlamaForCausalLM has no layer q_prj"),
        ({"method": "disjoint"}, "method.tasks: the number of tasks is not known here"),
        ({"method": {"name": "nlora", "penalty": "factor_l1"}}, "method.penalty: factor_l1 needs layers"),
        (
            {"method": {"name": "nlora", "clipped": False}},
            "method: other trainers add nlora's penalty to the loss",
        ),
        (
            {"method": {"name": "nlora", "growth": 0.5}},
            "method: other trainers add nlora's penalty to the loss",
        ),
        (
            {"method": {"name": "inclora", "rescale": 0.5}},
            "method.rescale: other trainers save what they have trained",
        ),
        (
            {"method": {"name": "nlora", "weight": "auto"}},
            "method.weight: auto tries weights with trainings of its own",
        ),
        ({"method": {"name": 5}}, "method.name: must be a text, not 5"),
        ({"method": 5}, "method: must be a name or a mapping with the method's options, not 5"),
        ({"lora": 5}, "lora: must be a mapping of keys, not 5"),
        ({"seed": -1}, "seed: must be a whole number >= 0 and < 4294967296, not -1"),
        ({"seed": "a"}, "seed: must be a whole number >= 0 and < 4294967296, not 'a'"),
        ({"seed": True}, "seed: must be a whole number >= 0 and < 4294967296, not true"),
        ({"after": ["nowhere"]}, "nowhere: not an adapter, there is no such folder"),
        ({"after": None}, "after: must be adapters, runs, or factors in memory, not None"),
        ({"after": [5]}, "after: must be adapters, runs, or factors in memory, not 5"),
        ({"after": {"a": "adapters/a"}}, "after: must be adapters, runs, or factors in memory, not {'a': "),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_model_alone(
    arguments: dict[str, Any], message: str, model: Any
) -> None:
    with pytest.raises(nlora.NloraError) as caught:
        nlora.next_task(model, **arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "lora_A" not in str(model)
    nlora.next_task(model)  # nothing is left of the attempt


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForSequenceClassification"])
def test_a_model_that_writes_no_text_is_refused_and_left_alone(
    name: str, tiny_model: Callable[[str], Path]
) -> None:
    model = getattr(transformers, name).from_pretrained(tiny_model("llama"))
    with pytest.raises(nlora.ModelError, match=r"models that write text; Llama.* has another head"):
        nlora.next_task(model)
    assert "lora_A" not in str(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_that_cannot_be_made_keeps_what_was_trained(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with nlora.next_task(model) as task:
        for folder in ("file", "file/inside"):
            with pytest.raises(
                nlora.RunError, match=r"file.*: cannot be written: (File exists|Not a directory); choose"
            ):
                task.save(tmp_path / folder)
        task.save(tmp_path / "folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_adapter_of_another_backbone_is_refused(model: Any, tmp_path: Path) -> None:
    name = target_modules(model, LORA)[0].name
    other = write_adapter(tmp_path / "wide", random_state({name: (64, 48)}, 2, 1))
    with pytest.raises(
        nlora.AdapterError, match=r"wide: .* is 64x48, but the layer is 32x32 .*another model"
    ):
        nlora.next_task(model, after=[other])
    other = write_adapter(tmp_path / "deep", random_state({name.replace("0", "9"): (32, 32)}, 2, 1))
    with pytest.raises(
        nlora.AdapterError, match=r"deep: updates .*layers\.9.*, which the model does not have"
    ):
        nlora.next_task(model, after=[other])
    with pytest.raises(nlora.AdapterError, match=r"adapter 1: .*is 3x3"):
        nlora.next_task(model, after={name: of_matrix(torch.ones(3, 3))})


def test_a_peft_model_needs_one_plain_lora_adapter_that_trains(model: Any) -> None:
    own = get_peft_model(model, LoraConfig(target_modules=["q_proj"]), "one")
    with pytest.raises(nlora.InputErrors, match="lora: the PeftModel has an adapter already"):
        nlora.next_task(own, lora=VALUES)
    own.add_adapter("two", LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(nlora.AdapterError, match=r"several adapters \(one, two\); delete all but one"):
        nlora.next_task(own)
    own.delete_adapter("two")
    own.requires_grad_(False)
    with pytest.raises(nlora.AdapterError, match=r"adapter one is frozen; load it with .*is_trainable=True"):
        nlora.next_task(own)
    model = own.unload()
    with pytest.raises(nlora.AdapterError, match="default is not plain LoRA, it uses use_dora"):
        nlora.next_task(get_peft_model(model, LoraConfig(target_modules=["q_proj"], use_dora=True)))


def test_a_peft_model_whose_training_would_be_lost_is_refused(model: Any) -> None:
    own = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    own.merge_adapter()
    with pytest.raises(nlora.AdapterError, match=r"default is merged into the weights; call unmerge_adapter"):
        nlora.next_task(own)
    own.unmerge_adapter()
    own.get_base_model().model.norm.requires_grad_(True)
    with pytest.raises(nlora.AdapterError, match=r"also trains \S+norm\.weight, which an adapter's folder"):
        nlora.next_task(own)
    own.get_base_model().model.norm.requires_grad_(False)
    with nlora.next_task(own):
        pass


@pytest.mark.parametrize(("method", "counts"), [("nlora", True), ("seqlora", False), ("pertask", False)])
def test_what_a_peft_model_holds_does_not_count_twice(
    method: str, counts: bool, model: Any, tmp_path: Path
) -> None:
    own = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM"))
    with nlora.next_task(own) as task:
        for factors in task.model.parameters():
            if factors.requires_grad:
                torch.nn.init.normal_(factors)
        task.save(tmp_path / "a")
    if counts:
        with pytest.raises(nlora.InputErrors, match=r"^after: .*a is what the PeftModel holds.*twice"):
            nlora.next_task(own, after=tmp_path / "a", method=method)
        own.unload()
    else:  # the earlier update is not active while the method trains
        with nlora.next_task(own, after=tmp_path / "a", method=method):
            pass


def test_an_earlier_adapter_is_not_overwritten(here: Path, model: Any, tmp_path: Path) -> None:
    with nlora.next_task(model) as task:
        task.save(tmp_path / "a")
        task.save(tmp_path / "a")  # its own
    stage = nlora.open_run("runs/support").stages[1].folder / "adapter"
    before = (stage / "adapter_model.safetensors").read_bytes()
    with nlora.next_task(model, after=tmp_path / "a") as task:
        with pytest.raises(nlora.InputErrors, match=r"^folder: .* holds an earlier task's adapter; choose"):
            task.save(tmp_path / "b/../a")
        with pytest.raises(nlora.InputErrors, match=r"^folder: .* is the adapter of a run's stage"):
            task.save(stage)
        with pytest.raises(nlora.InputErrors, match=r"^folder: must be a path, not None"):
            task.save(None)  # type: ignore[arg-type]
        task.save(tmp_path / "b")
    assert (stage / "adapter_model.safetensors").read_bytes() == before


def test_an_adapter_of_an_embedding_is_refused(model: Any) -> None:
    own = get_peft_model(model, LoraConfig(target_modules=["q_proj", "embed_tokens"]))
    with pytest.raises(
        nlora.AdapterError, match=r"adapts model\.embed_tokens, a Embedding; only linear layers"
    ):
        nlora.next_task(own)


def test_a_model_learns_one_task_at_a_time(model: Any, tmp_path: Path) -> None:
    task = nlora.next_task(model)
    with pytest.raises(nlora.ModelError, match=r"learning another task already; call release\(\)"):
        nlora.next_task(model)
    with pytest.raises(nlora.ModelError, match=r"learning another task already; call release\(\)"):
        nlora.next_task(task.model)
    task.release()
    again = nlora.next_task(model)
    with pytest.raises(nlora.RunError, match="save the adapter before release"):
        task.save(tmp_path / "late")
    assert not (tmp_path / "late").exists()
    for late in (task.penalty, task.backward):
        with pytest.raises(nlora.RunError, match="add no penalty after release"):
            late()
    task.release()  # again, which leaves the other one alone
    again.penalty()


def test_an_update_does_not_count_twice(here: Path, model: Any, tmp_path: Path) -> None:
    run = nlora.open_run("runs/support")
    adapter = run.stages[0].folder / "adapter"
    own, _ = run.model(stage=0)
    for twice in ([run, "runs/support"], [run, adapter], [adapter, adapter], [adapter, here / adapter]):
        with pytest.raises(nlora.InputErrors, match=r"^after: \S+ is given twice"):
            nlora.next_task(own, after=twice)
    with nlora.next_task(own, after=[adapter, run.stages[1].folder / "adapter"]):
        pass
    merged, _ = run.model(stage=1)
    for after in (run, adapter):
        with pytest.raises(nlora.InputErrors, match=r"^after: \S+: Run.model\(\) has merged .*stage=0"):
            nlora.next_task(merged, after=after)
    with nlora.next_task(merged, after=run.stages[1].folder / "adapter"):
        pass


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_of_torch_is_refused(dtype: torch.dtype, here: Path, model: Any) -> None:
    """The same seed would draw another adapter, and the analysis failed after all training."""
    config = nlora.load_config("support.yaml", {"output_dir": "runs/other"})
    torch.set_default_dtype(dtype)
    try:
        for call in (lambda: nlora.next_task(model), lambda: nlora.run(config)):
            with pytest.raises(nlora.NloraError, match=f"default dtype is {dtype}.*set_default_dtype"):
                call()
        assert nlora.interference("runs/support")["pairs"]  # needs none of it
    finally:
        torch.set_default_dtype(torch.float32)
    assert not Path("runs/other").exists()


@pytest.mark.parametrize("method", ["pertask", "osf"])
def test_a_run_without_one_adapter_per_stage_says_what_to_give(method: str, here: Path) -> None:
    run = nlora.run(nlora.load_config("support.yaml", {"method": method, "output_dir": "runs/other"}))
    plain, _ = nlora.open_run("runs/support").model(stage=0)
    message = {
        "pertask": "has a model for each task; name the adapters",
        "osf": r"trains weights.*Run\.model\(\)",
    }
    with pytest.raises(nlora.AdapterError, match=f"runs/other: {method} {message[method]}"):
        nlora.next_task(plain, after=run)


def test_a_model_that_is_not_loaded_is_refused() -> None:
    with pytest.raises(nlora.ModelError, match="needs a loaded transformers model or a PeftModel, not a str"):
        nlora.next_task("smollm2")


@pytest.mark.parametrize("option", ["fp16", "deepspeed", "fsdp"])
def test_a_trainer_that_scales_or_splits_gradients_is_refused(option: str, model: Any) -> None:
    task = nlora.next_task(model)
    with pytest.raises(nlora.ModelError, match=rf"TrainingArguments\({option}=...\)"):
        task.callback.on_train_begin(SimpleNamespace(**{option: True}), None, None)


@pytest.mark.parametrize(
    ("precision", "kind", "said"),
    [
        ("fp16", "NO", "fp16"),
        ("no", "DEEPSPEED", "deepspeed"),
        ("no", "FSDP", "fsdp"),
        ("bf16", "MULTI_CPU", ""),
    ],
)
def test_what_accelerate_launch_sets_is_refused_too(
    precision: str, kind: str, said: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the Trainer's accelerator and not in its arguments."""
    launched = SimpleNamespace(mixed_precision=precision, distributed_type=DistributedType(kind))
    module = importlib.import_module("nlora.api.penalty_callback")
    monkeypatch.setattr(module, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "AcceleratorState", lambda: launched)
    task = nlora.next_task(model)
    if not said:
        task.callback.on_train_begin(SimpleNamespace(), None, None)
        return
    for told in (lambda: task.callback.on_train_begin(SimpleNamespace(), None, None), task.backward):
        with pytest.raises(nlora.ModelError, match=rf"accelerate launch \({said}\): the penalty cannot"):
            told()


def test_offloaded_layers_are_one_line(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_model("llama"), device_map=places, offload_folder=tmp_path
    )
    with pytest.raises(nlora.ModelError, match=r"^model\.layers\.1\..* is offloaded \(device_map\)"):
        nlora.next_task(model)


def test_an_adapter_that_seqlora_cannot_continue_is_told_by_what_it_lacks(model: Any, tmp_path: Path) -> None:
    shapes = {
        m.name: (m.out_features, m.in_features) for m in target_modules(model, LORA) if "q_proj" in m.name
    }
    write_adapter(tmp_path / "a", random_state(shapes, 8, 1))
    with pytest.raises(nlora.AdapterError, match=r"lack .*v_proj") as caught:
        nlora.next_task(model, after=[tmp_path / "a"], method="seqlora")
    assert "rank 1" not in str(caught.value)
