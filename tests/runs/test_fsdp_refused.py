"""What a sharded backbone is refused for: told by name, before anything is loaded or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import write_config
from nlora.config.load import load_config
from nlora.errors import InputErrors
from nlora.methods.registry import build, method_names
from nlora.models.backbone import load_skeleton
from nlora.models.target_modules import ModuleShape
from nlora.runs.checks import fsdp_problems
from nlora.runs.memory_advice import memory_lines
from nlora.runs.memory_estimate import MemoryEstimate, estimate_memory
from nlora.runs.plan import make_plan

TinyModel = Callable[[str], Path]


def told(folder: Path, model: Path, *overrides: str, **changes: Any) -> str:
    config = write_config(folder, model, fsdp=True, **changes)
    with pytest.raises(InputErrors) as told:
        make_plan(load_config(config, overrides))
    return str(told.value)


@pytest.mark.parametrize("method", ["ewc", "osf", "seqft", "oplora"])
def test_methods_that_need_the_weights(tmp_path: Path, tiny_model: TinyModel, method: str) -> None:
    assert told(tmp_path, tiny_model("llama"), method=method).endswith(
        f"fsdp: {method} needs the backbone's whole weights, or their gradients; leave fsdp out"
    )


def test_every_other_method_is_planned(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"), fsdp=True)
    skeleton = load_skeleton(str(tiny_model("llama")))
    refused = {
        name
        for name in method_names()
        if fsdp_problems(load_config(config, [f"method={name}"]).config, [build(name, {})], skeleton, [])
    }
    assert refused == {"ewc", "l2p", "oplora", "osf", "progprompt", "seqft"}
    make_plan(load_config(config))


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("t5", "an encoder-decoder model cannot be sharded"),
        ("gpt2", "transformers does not know how to shard the layers of GPT2LMHeadModel"),
    ],
)
def test_models_that_transformers_cannot_shard(
    tmp_path: Path, tiny_model: TinyModel, family: str, line: str
) -> None:
    (only,) = told(tmp_path, tiny_model(family)).splitlines()
    assert only.endswith(f"fsdp: {line}; leave fsdp out")


def test_quantized_weights(tmp_path: Path, tiny_model: TinyModel) -> None:
    line = "fsdp: quantized weights cannot be sharded; several processes can train them without it"
    assert line in told(tmp_path, tiny_model("llama"), quantize="4bit")
    # One that is quantized on the hub has a mark in its config.json.
    config = load_config(write_config(tmp_path, tiny_model("llama"), fsdp=True)).config
    skeleton: Any = load_skeleton(str(tiny_model("llama")))
    skeleton.config.quantization_config = {"quant_method": "bitsandbytes"}
    (problem,) = fsdp_problems(config, [], skeleton, [])
    assert "quantized weights" in problem.what


def test_a_gguf_file_and_adapters_of_experts(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = load_config(write_config(tmp_path, "model.gguf", fsdp=True)).config
    expert = ModuleShape("model.layers.0.mlp.experts.3.up_proj", 8, 8, 8)
    found = fsdp_problems(config, [], load_skeleton(str(tiny_model("llama"))), [expert])
    assert [problem.what.partition(",")[0] for problem in found] == [
        "a GGUF file cannot be loaded in parts; give a folder or hub id as model; leave fsdp out",
        "adapters of experts",
    ]


def test_one_process_is_told_before_the_data_is_read(
    tmp_path: Path, tiny_model: TinyModel, nlora: Callable[..., Any]
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), fsdp=True)
    (tmp_path / "colors-train.jsonl").unlink()
    found = nlora("run", config)
    assert found.status == 2
    assert found.err.rstrip().endswith(
        "fsdp: shards the model over several processes, but this is one; add --processes N, or set fsdp=false"
    )
    assert "colors" not in found.err
    assert not (tmp_path / "run").exists()


def test_a_process_needs_its_share_of_the_weights(tmp_path: Path, tiny_model: TinyModel) -> None:
    whole = estimate(tmp_path, tiny_model, processes=2)
    of_two, of_four = (estimate(tmp_path, tiny_model, "fsdp=true", processes=n) for n in (2, 4))
    # The head is whole during a pass, 400 x 32 numbers; the rest is divided.
    head = 4 * 400 * 32
    assert of_two.weights - head == whole.weights // 2
    assert of_four.weights - head == whole.weights // 4
    # The first stage's update, and once more for the passes of the second; whole weights are kept for merging.
    assert of_two.earlier == 2 * of_two.adapter
    assert estimate(tmp_path, tiny_model, "fsdp=true", processes=1).weights == whole.weights


def estimate(folder: Path, tiny_model: TinyModel, *overrides: str, processes: int) -> MemoryEstimate:
    plan = make_plan(load_config(write_config(folder, tiny_model("llama")), overrides))
    return estimate_memory(plan, device="cpu", processes=processes)


def test_quantization_is_not_advised_to_a_sharded_run(tmp_path: Path, tiny_model: TinyModel) -> None:
    plan = make_plan(load_config(write_config(tmp_path, tiny_model("llama")), ["fsdp=true"]))
    asked = []

    def too_much(plan: Any, config: Any = None, **how: Any) -> MemoryEstimate:
        asked.append(config)
        return MemoryEstimate("cpu", 2, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, free=0)

    memory_lines(plan, str, processes=2, estimate=too_much)
    assert len(asked) > 1
    assert all(config is None or config.quantize is None for config in asked)
