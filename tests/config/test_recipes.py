"""The nine published recipes: flag by flag the released scripts, and each runs to its end on a tiny model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import learn
from nlora.config.load import load_config, recipe_description, recipe_names, recipe_text
from nlora.config.schema import Config
from nlora.data import cl_benchmark
from nlora.data.prompts import head
from nlora.data.task import Task
from nlora.methods.registry import build
from nlora.models.lora_factors import load_factors
from nlora.runs.layout import stage_name
from released_data import LABELS, write_benchmark

SCRIPTS = {f"order_{k}": f"N-LoRA/scripts/order_{k}.sh" for k in range(1, 7)} | {
    f"llama_order_{k}": f"N-LoRA/scripts_llama/order_{k}.sh" for k in range(1, 4)
}
PUBLISHED = {  # average accuracy of N-LoRA and of O-LoRA: reference/paper_facts.md, section 4
    "order_1": (79.2, 75.4), "order_2": (78.4, 75.7), "order_3": (78.8, 76.3),
    "order_4": (73.6, 72.3), "order_5": (70.3, 64.8), "order_6": (73.2, 71.6),
    "llama_order_1": (77.2, 76.8), "llama_order_2": (77.3, 75.7), "llama_order_3": (78.4, 75.7),
}  # fmt: skip
NO_COUNTERPART = {
    "add_dataset_name": "the prompt always names the data set",
    "add_task_name": "the prompt always names the kind of task",
    "instruction_file": "the instructions are part of nlora.data.cl_benchmark",
    "instruction_strategy": "there is one instruction per kind of task; `single` takes the first",
    "do_train": "a stage always trains",
    "do_predict": "a stage always scores",
    "evaluation_strategy": "`no`: nothing is scored during training, here never",
    "logging_strategy": "how the log is cut, not what is computed",
    "logging_steps": "how the log is cut, not what is computed",
    "save_strategy": "`no`: stages are committed whole",
    "save_steps": "without effect where save_strategy is `no`",
    "overwrite_cache": "token ids are kept under a key of all that decides them",
    "overwrite_output_dir": "a folder belongs to one configuration",
    "run_name": "a name for W&B",
    "per_device_train_batch_size": "only how much a device holds at once, as the next: their product is compared",
    "gradient_accumulation_steps": "see per_device_train_batch_size",
    "per_device_eval_batch_size": "how many prompts are answered at once, not what is answered",
}
KEPT_BYTES = {"encoder-decoder": 142 * 1024, "causal": 175 * 1024}
"""For the backward pass, of one token in one layer: counted from what autograd saves at these models' sizes."""


def config_of(name: str) -> Config:
    return load_config(name).config


def released(shared: Path, name: str) -> dict[str, Any]:
    file = shared / "reference" / "released_hyperparameters.json"
    scripts: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    script: dict[str, Any] = scripts[SCRIPTS[name]]
    return script


def method_weight(config: Config, task: str) -> float:
    return float(build(config.method.name, config.method_options(task)).weight)  # type: ignore[attr-defined]


def flags_of(config: Config, stage: int) -> dict[str, Any]:
    """What the recipe says of a stage, in the released script's words. stage: from 0."""
    task = config.tasks[stage].name
    train = config.train_options(task)
    return {
        "data_dir": config.data,
        "task_config_dir": task,
        "output_dir": stage_name(stage + 1, task),
        "learning_rate": train.learning_rate,
        "num_train_epochs": train.epochs,
        "examples_per_optimizer_step": train.batch_size,
        "warmup_steps": train.warmup_steps,
        "lr_scheduler_type": "constant" if train.warmup_steps == 0 else "constant_with_warmup",
        "max_source_length": train.max_source_tokens,
        "max_target_length": train.max_target_tokens,
        "generation_max_length": train.max_target_tokens,
        "predict_with_generate": config.evaluate.decode == "generate",
        "lamda_1": method_weight(config, task),
    }


def same(ours: Any, theirs: Any) -> bool:
    return float(theirs) == ours if type(ours) in {int, float} else theirs == ours


def test_the_recipes_are_there() -> None:
    assert set(recipe_names()) >= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_released_flag_is_in_the_recipe(name: str, shared: Path) -> None:
    script, config = released(shared, name), config_of(name)
    assert len(config.tasks) == len(script["stages"])
    (gpus,) = (len(entry.split(",")) for entry in script["gpus"])
    for stage, own in enumerate(script["stages"]):
        flags = {**script["every_stage"], **own}
        # The first stage starts from the model, each later one from the adapter of the one before.
        start = flags.pop("model_name_or_path")
        before = stage_name(stage, config.tasks[stage - 1].name)
        assert start.endswith(f"/{before}/adapter" if stage else {0: "t5-large", 1: "llama"}["llama" in name])
        for key in ("task_config_dir", "output_dir"):
            flags[key] = flags[key].rpartition("/")[2]
        flags["examples_per_optimizer_step"] = (
            int(flags["per_device_train_batch_size"]) * int(flags["gradient_accumulation_steps"]) * gpus
        )
        ours = flags_of(config, stage)
        assert ours.keys() | NO_COUNTERPART.keys() >= flags.keys(), "a flag that nobody has looked at"
        assert ours.keys() <= flags.keys(), "the recipe is compared with what the script does not say"
        wrong = {key: (ours[key], flags[key]) for key in ours if not same(ours[key], flags[key])}
        assert not wrong, f"stage {stage + 1}: (ours, released)"


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_no_flag_says_is_as_in_the_released_code(name: str) -> None:
    """Rank, scaling, dropout, modules, clipping, seed, and the penalty: paper_facts.md, sections 2 and 6."""
    config = config_of(name)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout, config.lora.targets) == (8, 32, 0.1, None)
    assert (config.train.max_grad_norm, config.train.weight_decay, config.seed) == (1.0, 0.0, 42)
    assert config.method.name == "nlora"
    assert config.method.options["penalty"] == "factor_l1"
    assert config.protocol == "released"
    assert (config.train.truncate, config.train.batches) == ("released", "random")
    causal = name.startswith("llama")
    assert (config.family, config.dtype) == (
        ("causal", "bfloat16") if causal else ("encoder-decoder", "float32")
    )
    assert config.model == ("huggyllama/llama-7b" if causal else "google-t5/t5-large")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_opens_with_command_hardware_and_published_score(name: str) -> None:
    text, (nlora, olora) = recipe_text(name), PUBLISHED[name]
    config = config_of(name)
    opening = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert f"nlora run {name} model={config.model} data=CL_Benchmark" in opening
    assert "Not run here, an estimate: one GPU" in opening
    assert f"N-LoRA {nlora}, O-LoRA {olora}" in opening
    assert recipe_description(name).startswith(f"Order {name[-1]} of the N-LoRA paper")
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_fits_a_card_of_80_gb_on_paper(name: str) -> None:
    """T5-large: 738 million float32 parameters, width 1024; LLaMA-7B: 6.74 thousand million bfloat16, width 4096."""
    config, text = config_of(name), recipe_text(name)
    causal = config.family == "causal"
    layers, weights = (32, 6.74e9 * 2) if causal else (24, 738e6 * 4)
    tokens = config.train.max_source_tokens + (config.train.max_target_tokens if causal else 0)
    # Keys and values: of a causal model's own tokens, of an encoder's tokens for each layer of the decoder.
    cached = 2 * 4096 * 2 if causal else 2 * 1024 * 4
    micro = config.train.micro_batch_size or config.train.batch_size
    training = layers * micro * tokens * KEPT_BYTES[config.family or ""]
    scoring = layers * config.evaluate.batch_size * tokens * cached
    assert weights + max(training, scoring) < 0.75 * 80e9  # the rest: logits, the allocator, CUDA itself
    said = [
        float(number)
        for number in re.findall(r"^#   (?:training|scoring) +([\d.]+) GiB of", text, re.MULTILINE)
    ]
    assert said == [pytest.approx(training / 2**30, rel=0.02), pytest.approx(scoring / 2**30, rel=0.02)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_published_protocol_can_be_left(name: str) -> None:
    """What the protocol sets by default does not stand in the recipe itself, where it would win."""
    config = load_config(name, ["protocol=repaired"]).config
    assert (config.train.truncate, config.train.batches) == ("text", "by_length")
    assert config.evaluate.decode == "labels"


def test_a_prompt_names_kind_and_data_set() -> None:
    """The reason that add_task_name and add_dataset_name have no key."""
    assert head(Task("agnews", "TC", "Topic?", None, (), ())).startswith("Task:TC\nDataset:agnews\n")


def test_the_tiny_benchmark_has_the_released_types() -> None:
    assert {place.split("/")[1]: place.split("/")[0] for place in LABELS} == cl_benchmark.RELEASED_TYPES


def test_order_four_without_a_task_whose_stage_it_changes() -> None:
    loaded = load_config("order_4", ["tasks=[MNLI, CB, RTE]"])
    assert set(loaded.config.stages) == {"RTE"}
    assert method_weight(loaded.config, "RTE") == 1.2
    assert method_weight(loaded.config, "CB") == 0.4


@pytest.fixture(scope="module")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("CL_Benchmark"))


@pytest.fixture(scope="module")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[bool], Any]
) -> dict[bool, Path]:
    """By whether it is causal: random one-layer models with square q and v, as T5-large and LLaMA-7B have."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    folders = {
        causal: tmp_path_factory.mktemp("tiny-llama" if causal else "tiny-t5") for causal in (True, False)
    }
    llama = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    t5 = T5Config(
        vocab_size=400, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1, dropout_rate=0.0,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlamaForCausalLM(llama).save_pretrained(folders[True])
        T5ForConditionalGeneration(t5).save_pretrained(folders[False])
    for causal, folder in folders.items():
        tiny_tokenizer(not causal).save_pretrained(folder)
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_recipe_runs_to_its_end(
    name: str, benchmark_folder: Path, tiny_models: dict[bool, Path], tmp_path: Path
) -> None:
    recipe = config_of(name)
    model = tiny_models[recipe.family == "causal"]
    quick = ["train.epochs=1", "train.max_target_tokens=24"]
    quick += [
        f"stages.{task}.train.epochs=1" for task, stage in recipe.stages.items() if "epochs" in stage.train
    ]
    summary = learn(name, f"model={model}", f"data={benchmark_folder}", f"output_dir={tmp_path}/run", *quick)
    assert summary.status == "complete"
    assert summary.tasks == tuple(task.name for task in recipe.tasks)
    assert all((score is None) == (i > k) for k, row in enumerate(summary.R) for i, score in enumerate(row))
    folders = sorted(
        (tmp_path / "run" / "outputs").iterdir(), key=lambda folder: int(folder.name.split("-")[0])
    )
    assert [folder.name for folder in folders] == [f"{k}-{task}" for k, task in enumerate(summary.tasks, 1)]
    for stage, folder in enumerate(folders, start=1):
        names = {file.name for file in folder.iterdir()}
        assert names >= {"adapter", "all_results.json", "train_results.json", "predict_results.json",
                         "predict_eval_predictions.jsonl"}  # fmt: skip
        assert load_factors(folder / "adapter")
        results = json.loads((folder / "predict_results.json").read_text(encoding="utf-8"))
        assert results["decode"] == "generate"
        assert results["predict_samples"] == 2 * stage, "MNLI's '-' stays"
        assert f"predict_exact_match_for_{summary.tasks[stage - 1]}" in results
