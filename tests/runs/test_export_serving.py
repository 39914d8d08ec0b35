"""What servers ask of an export: vLLM's rules for adapters, and plain completion of the prompts on file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from nlora.models.backbone import load_backbone
from nlora.runs.export.export import export
from nlora.runs.export.forms import write_merged
from nlora.runs.export.options import ExportOptions

Runs = Callable[..., Path]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What --max-lora-rank of vLLM 0.33 may be."""
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""The layers of LLaMA that vLLM's LoRA knows, by their names in the file."""


def largest_rank(folder: Path) -> int:
    """The rank that vLLM compares with --max-lora-rank, after everything else that it asks of an adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["bias"] == "none"
    for feature in (
        "modules_to_save", "use_dora", "lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora",
    ):  # fmt: skip
        assert not config.get(feature), feature
    assert not isinstance(config["init_lora_weights"], str)  # PiSSA and its like change the base model
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            matched = re.fullmatch(r"base_model\.model\.[\w.]+\.(\w+)\.lora_[AB]\.weight", name)
            assert matched is not None, name
            assert matched[1] in LINEAR, name
    assert config["rank_pattern"] == config["alpha_pattern"] == {}  # which vLLM and llama.cpp do not read
    return int(config["r"])


@pytest.mark.parametrize(("rank", "expected"), [(None, 8), (3, 3)])
def test_an_adapter_is_what_vllm_takes(
    finished_run: Runs, tmp_path: Path, rank: int | None, expected: int
) -> None:
    """Two tasks of rank 4 are one adapter of rank 8."""
    export(finished_run(), tmp_path / "out", ExportOptions("adapter", rank=rank, examples=1))
    assert largest_rank(tmp_path / "out") == expected
    assert any(expected <= allowed for allowed in RANKS)


def test_adapters_of_pertask_are_what_vllm_takes(finished_run: Runs, tmp_path: Path) -> None:
    """One of them alone, as a request to vLLM has it, is the model of its task."""
    run = finished_run("llama", "pertask")
    export(run, tmp_path / "out", ExportOptions("adapters", examples=1))
    assert [largest_rank(tmp_path / "out" / name) for name in ("colors", "animals")] == [4, 4]
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = rows(run)[0]
    name = json.loads((tmp_path / "out/colors/adapter_config.json").read_text())["base_model_name_or_path"]
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(name), str(tmp_path / "out/colors")
    )
    assert completed(model, Path(name), base["Prompt"]) == base["Prediction"]


def test_a_merged_export_completes_the_prompts_on_file_with_the_runs_answers(
    finished_run: Runs, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    run = finished_run()
    export(run, tmp_path / "out", ExportOptions("merged", examples=1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for row in rows(run):
        assert completed(model, tmp_path / "out", row["Prompt"]) == row["Prediction"]


def rows(run: Path) -> list[dict[str, Any]]:
    file = run / "outputs/2-animals/predict_eval_predictions.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def completed(model: Any, tokenizer: Path, prompt: str) -> str:
    """As a server answers a request of /v1/completions with temperature 0."""
    from transformers import AutoTokenizer

    made: Any = AutoTokenizer.from_pretrained(tokenizer)
    ids = made(prompt, return_tensors="pt")
    out = model.generate(
        input_ids=ids.input_ids, attention_mask=ids.attention_mask, do_sample=False, max_new_tokens=8
    )
    text: str = made.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_a_model_that_also_sees_keeps_what_loads_it(
    tmp_path: Path, tiny_tokenizer: Callable[[bool], Any]
) -> None:
    """Servers load the processor, even for texts alone."""
    from transformers import AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    base, out = tmp_path / "base", tmp_path / "out"
    tokenizer = tiny_tokenizer(False)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    sight = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )  # fmt: skip
    image = tokenizer.convert_tokens_to_ids("<image>")
    model = Llava(LlavaConfig(vision_config=sight, text_config=text, image_token_id=image))
    model.generation_config.eos_token_id = 1
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
    (base / "preprocessor_config.json").write_text(json.dumps(settings))
    settings = {"processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 8}
    (base / "processor_config.json").write_text(json.dumps(settings))
    backbone = load_backbone(str(base))
    write_merged(replace(backbone, name="nobody/has-it"), tmp_path / "offline", "float32", [1])
    assert not (tmp_path / "offline" / "processor_config.json").exists()
    write_merged(backbone, out, "float32", [1])
    kinds = [type(AutoProcessor.from_pretrained(folder)).__name__ for folder in (base, out)]
    assert kinds == ["LlavaProcessor", "LlavaProcessor"]
