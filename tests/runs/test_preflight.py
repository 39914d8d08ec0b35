"""Before anything is trained, every way through a model is held against plain passes of transformers and PEFT."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import nlora
from helpers import without_checksums, write_config
from nlora.api.learn import learn
from nlora.config.load import load_config
from nlora.config.schema import LoraOptions
from nlora.data.task import TokenizedExample
from nlora.errors import AdapterError, ModelError
from nlora.kernels import elementwise
from nlora.models.backbone import Backbone, load_backbone
from nlora.models.fast_paths import FastPaths, default_paths
from nlora.models.positions import read_alike_up_to
from nlora.runs.events import Progress
from nlora.runs.preflight import preflight
from nlora.runs.reference_passes import kind
from nlora.training import fast_forwards

TinyModel = Callable[[str], Path]
BEGINNING = list(range(100, 130))
TASKS = [
    [
        TokenizedExample([*BEGINNING, 40, 41], [50, 60, 1]),
        TokenizedExample([*BEGINNING, 42, 43, 44, 45], [51, 1]),
    ],
    [TokenizedExample([7, 8, 9], [52, 1]), TokenizedExample([7, 8, 10, 11], [53, 61, 62, 1])],
]
LORA = LoraOptions(r=4, alpha=8, dropout=0.0)


def tiny(tiny_model: TinyModel, family: str) -> Backbone:
    return load_backbone(str(tiny_model(family)))


def forward_replaced(backbone: Backbone, change: Callable[..., Any]) -> None:
    """Lets `change(original, **inputs)` take the place of the model's forward, with the same signature."""
    model: Any = backbone.model
    original = model.forward

    @functools.wraps(original)
    def forward(*args: Any, **inputs: Any) -> Any:
        return change(original, *args, **inputs)

    model.forward = forward


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "mistral", "gpt2", "opt", "t5"])
def test_the_known_families_take_their_fastest_way(tiny_model: TinyModel, family: str) -> None:
    backbone = tiny(tiny_model, family)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    state = torch.random.get_rng_state()
    paths = preflight(backbone, TASKS, lora=LORA, generates=True)
    packs = family not in {"mistral", "t5"}  # a sliding window; an encoder
    assert paths.notes == ()
    assert (paths.training, paths.fast_modules, paths.prefill == "packed") == (
        "packed" if packs else "padded",
        True,
        packs,
    )
    assert torch.equal(state, torch.random.get_rng_state())
    after = backbone.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(p.requires_grad for p in backbone.model.parameters())


def test_a_model_that_padding_changes_trains_and_scores_one_row_at_a_time(tiny_model: TinyModel) -> None:
    backbone = tiny(tiny_model, "opt")

    def change(original: Any, *args: Any, **inputs: Any) -> Any:
        mask = inputs.get("attention_mask")
        if mask is not None and not mask.all():
            inputs["attention_mask"] = torch.ones_like(mask)  # as if the padding were text
        return original(*args, **inputs)

    forward_replaced(backbone, change)
    backbone.model._can_set_attn_implementation = lambda: False  # type: ignore[assignment] # no packing
    paths = preflight(backbone, TASKS, lora=LORA)
    assert (paths.training, paths.prefill) == ("single", "single")
    assert any(note.startswith("training in padded rows") for note in paths.notes)
    assert any(note.startswith("scoring in padded rows") for note in paths.notes)


def test_a_leaner_module_that_computes_something_else_is_left_out(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlora.training.fast_modules._if_equal", lambda kind, original, width: kind(original))
    real = elementwise.silu_mul
    monkeypatch.setattr(
        "nlora.training.fast_modules.silu_mul", lambda gate, up: real(gate, up).clamp(max=0.1)
    )
    paths = preflight(tiny(tiny_model, "llama"), TASKS, lora=LORA)
    assert (paths.training, paths.fast_modules) == ("packed", False)
    assert "with faster modules" in paths.notes[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_gradient_alone_is_found(
    tiny_model: TinyModel, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass is right, the backward pass gives one factor half of its gradient."""
    real = fast_forwards.lora_linear

    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients[0] / 2

    def wrong(x: Any, weight: Any, bias: Any, a: Any, b: Any, **more: Any) -> Any:
        return real(x, weight, bias, Half.apply(a), b, **more)

    monkeypatch.setattr("nlora.training.fast_forwards.lora_linear", wrong)
    paths = preflight(load_backbone(str(tiny_model("llama")), dtype=dtype), TASKS, lora=LORA)
    assert (paths.training, paths.fast_modules) == ("packed", False)
    assert "moves the gradient of" in paths.notes[0]


def test_targets_that_no_text_reaches_are_named(tiny_model: TinyModel) -> None:
    backbone = tiny(tiny_model, "llama")
    backbone.model.tower = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    lora = LORA.model_copy(update={"targets": ("q_proj", "tower.0", "tower.2")})
    with pytest.raises(ModelError, match=r"tower\.0 and 1 more layers get no gradient .* would stay 0"):
        preflight(backbone, TASKS, lora=lora)
    assert preflight(backbone, TASKS, lora=lora, needs_gradients=False).training == "packed"


def test_an_expert_that_two_texts_do_not_reach_is_no_mistake(tiny_model: TinyModel) -> None:
    assert kind("layers.0.experts.3.w1") == kind("layers.1.experts.0.w1") != kind("layers.0.w1")


def test_a_model_that_cannot_answer_is_refused_before_training(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = json.loads((tiny_model("t5") / "config.json").read_text())
    config["decoder_start_token_id"] = None
    folder = tmp_path / "no-start"
    folder.mkdir()
    for file in tiny_model("t5").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    loaded = load_config(str(write_config(tmp_path, folder)))
    with pytest.raises(
        ModelError, match=r"no-start: transformers' T5ForConditionalGeneration cannot .*decoder_start"
    ):
        learn(loaded, Progress())
    assert not list((tmp_path / "run").glob("outputs/*"))


def test_numbers_that_are_none_are_refused(tiny_model: TinyModel) -> None:
    backbone = tiny(tiny_model, "llama")
    with torch.no_grad():
        backbone.model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        preflight(backbone, TASKS)


def test_a_run_whose_model_takes_no_batches_learns_what_one_that_does_learns(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches of one example make the same step: the adapters agree but for the order of sums."""
    config = write_config(tmp_path, tiny_model("llama"))
    alone = FastPaths("single", False, "single", False, "single")
    for name in ("together", "alone"):
        if name == "alone":
            monkeypatch.setattr("nlora.runs.preflight.preflight", lambda *args, **kwargs: alone)
        learn(load_config(config, [f"output_dir={tmp_path / name}"]), Progress())
    for stage in ("1-colors", "2-animals"):
        file = Path("outputs", stage, "adapter", "adapter_model.safetensors")
        one, other = load_file(tmp_path / "together" / file), load_file(tmp_path / "alone" / file)
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-3, atol=1e-4)
        answers = Path("outputs", stage, "predict_eval_predictions.jsonl")
        assert (tmp_path / "together" / answers).read_text() == (tmp_path / "alone" / answers).read_text()


def test_an_adapter_that_lacks_a_layer_is_refused_by_name(tmp_path: Path, tiny_model: TinyModel) -> None:
    config = write_config(tmp_path, tiny_model("llama"))
    learn(load_config(config), Progress())
    file = tmp_path / "run/outputs/1-colors/adapter/adapter_model.safetensors"
    lost = {k: v for k, v in load_file(file).items() if "layers.1.self_attn.v_proj" not in k}
    save_file(lost, file)
    without_checksums(tmp_path / "run")
    with pytest.raises(
        AdapterError, match=r"1-colors/adapter: lacks the update of .*layers\.1\.self_attn\.v_proj; restore"
    ):
        nlora.open_run(tmp_path / "run").evaluate(["colors"], stage=1)


def test_an_update_that_stayed_0_is_said(tmp_path: Path, tiny_model: TinyModel) -> None:
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-50}  # nothing, in float32
    config = write_config(tmp_path, tiny_model("llama"), train=train)
    events: list[nlora.Event] = []
    learn(load_config(config), Progress(events.append))
    said = [event.text for event in events]
    assert any(
        "the update of model.layers.0.self_attn.q_proj and of 3 more layers is still 0" in s for s in said
    )


@pytest.mark.parametrize(("family", "changes"), [("bert", {"is_decoder": False}), ("xlm", {"causal": False})])
def test_a_model_that_sees_the_answer_is_refused(
    family: str, changes: dict[str, bool], tiny_model: TinyModel, tiny_family: Callable[..., Any]
) -> None:
    model = tiny_family(family, **changes)
    backbone = Backbone(model, tiny(tiny_model, "llama").tokenizer, False, family)
    with pytest.raises(ModelError, match=r"depend on the tokens that follow.*is_decoder"):
        preflight(backbone, TASKS, lora=LORA)


def test_a_cache_that_the_model_itself_gets_wrong_is_found(tiny_model: TinyModel) -> None:
    """`generate` answers with its own cache where nothing can follow here; its first token does not show the cache."""
    backbone = tiny(tiny_model, "mistral")

    def change(original: Callable[..., Any], *args: Any, **inputs: Any) -> Any:
        output = original(*args, **inputs)
        cache = inputs.get("cache", inputs.get("past_key_values"))  # before transformers 5.24
        if cache is not None and inputs["input_ids"].shape[1] == 1:
            output.logits = output.logits.roll(1, dims=-1)
        return output

    forward_replaced(backbone, change)
    preflight(backbone, TASKS, lora=LORA)
    with pytest.raises(ModelError, match=r"answers cannot be generated: moves the logits"):
        preflight(backbone, TASKS, lora=LORA, generates=True)


@pytest.mark.parametrize("rope_type", ["longrope", "dynamic"])
def test_where_one_long_text_changes_how_others_are_read_each_runs_alone(rope_type: str) -> None:
    """Its rotary positions have other frequencies in a pass that has a text beyond the original length."""
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0}
    if rope_type == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
        rope |= {"original_max_position_embeddings": 64, **factors}
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64 if rope_type == "dynamic" else 256, rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval()
    assert read_alike_up_to(model) == 64
    for longest in (0, 64):
        assert default_paths(model, longest=longest).prefill == "packed"
    paths = default_paths(model, longest=65)
    assert (paths.training, paths.prefill, paths.generation) == ("single", "single", "single")
    assert "beyond 64 tokens" in paths.notes[0]


def test_every_text_may_be_as_long_as_the_run_allows(tiny_model: TinyModel, monkeypatch: Any) -> None:
    """The paths of such a model are not tried in any other way."""
    monkeypatch.setattr("nlora.models.fast_paths.read_alike_up_to", lambda model: 64)
    backbone = tiny(tiny_model, "llama")
    paths = preflight(backbone, TASKS, lora=LORA, generates=True, longest=65)
    assert (paths.training, paths.prefill, paths.kv_cache) == ("single", "single", True)
    assert preflight(backbone, TASKS, lora=LORA, generates=True, longest=64).training == "packed"
