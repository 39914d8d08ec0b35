"""Quantized backbones: what is refused before anything starts, and that a real one trains as in float."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import nlora
from helpers import learn, write_config
from nlora.config.load import load_config
from nlora.errors import InputErrors, ModelError
from nlora.methods.registry import build, method_names
from nlora.models.backbone import load_backbone
from nlora.models.full_model import FullModel
from nlora.models.lora_adapter import AdapterState, LoraAdapter, LoraFactors, target_modules
from nlora.models.lora_factors import load_factors
from nlora.models.merged_updates import MergedUpdates
from nlora.models.packed_attention import packing_is_exact
from nlora.models.unmerged_updates import UnmergedUpdates
from nlora.runs.checks import quantize_problems
from nlora.runs.plan import make_plan
from nlora.runs.update_history import UpdateHistory
from tiny import LORA, load, logits, loss, spread

TinyModel = Callable[[str], Path]
installed = importlib.util.find_spec("bitsandbytes") is not None
with_bitsandbytes = pytest.mark.skipif(not installed, reason="needs the extra quant (bitsandbytes)")


class Int8Linear(nn.Linear):
    """A fake quantized layer: codes instead of the weight."""

    def __init__(self, original: nn.Linear) -> None:
        super().__init__(original.in_features, original.out_features, bias=False)
        scale = original.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        codes = (original.weight.detach() / scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * self.scale)


def quantize_targets(model: Any) -> list[str]:
    """Replaces the target modules by `Int8Linear`; returns their names."""
    names = [m.name for m in target_modules(model, LORA)]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, Int8Linear(model.get_submodule(name)))
    return names


def random_state(model: Any, seed: int) -> AdapterState:
    generator = torch.Generator().manual_seed(seed)
    return {
        m.name: LoraFactors(
            torch.randn(4, m.in_features, generator=generator) * 0.1,
            torch.randn(m.out_features, 4, generator=generator) * 0.1,
            2.0,
        )
        for m in target_modules(model, LORA)
    }


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of an adapter that is not zero, in training mode."""
    adapter = LoraAdapter.attach(model, LORA, seed=1)
    spread(adapter)
    loss(adapter.model.train()).backward()
    found = {f"{n}.{key}": getattr(f, key).grad for n, f in adapter.factors().items() for key in "AB"}
    adapter.detach().eval()
    return found


# What is refused


def problems(config: Path, *overrides: str) -> str:
    with pytest.raises(InputErrors) as told:
        make_plan(load_config(str(config), overrides))
    return str(told.value)


def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )


def test_a_missing_bitsandbytes_is_one_line_with_the_command(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model("llama"), quantize="4bit")
    without_bitsandbytes(monkeypatch)
    (line,) = problems(config).splitlines()
    assert line.endswith("quantize: bitsandbytes is not installed; pip install bitsandbytes")
    make_plan(load_config(str(config), ["quantize=null"]))


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path, tiny_model: TinyModel) -> None:
    assert "quantize=3bit: must be 4bit or 8bit, or null" in problems(
        write_config(tmp_path, tiny_model("llama")), "quantize=3bit"
    )


@pytest.mark.parametrize("method", ["ewc", "seqft", "osf", "oplora"])
def test_methods_that_need_float_weights_say_so_before_training(
    tmp_path: Path, tiny_model: TinyModel, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlora.models.quantization.importlib.util.find_spec", lambda name: object())
    config = write_config(tmp_path, tiny_model("llama"), quantize="8bit", method=method)
    expected = f"quantize: {method} needs the backbone's weights as numbers; leave quantize out"
    assert problems(config).endswith(expected)


def test_a_gguf_file_is_not_quantized_again(tmp_path: Path) -> None:
    loaded = load_config(str(write_config(tmp_path, "model.gguf", quantize="4bit")))
    assert "a GGUF file cannot be quantized again" in "\n".join(
        map(str, quantize_problems(loaded.config, []))
    )


def test_other_methods_need_no_float_weights() -> None:
    needing = {name for name in method_names() if build(name, {}).needs_float_weights}
    assert {"ewc", "seqft", "osf", "oplora"} <= needing
    assert not needing & {"nlora", "olora", "inclora", "seqlora", "replay", "lwf", "ella", "pertask", "mtl"}


def test_a_model_that_is_quantized_already_is_refused_by_methods_that_need_its_weights(
    tiny_model: TinyModel,
) -> None:
    """The configuration does not say that it is quantized."""
    model = load(tiny_model("llama"))
    learned = UpdateHistory(model, quantize_targets(model))
    learned.activate_for_training(build("inclora", {}))
    with pytest.raises(
        ModelError, match="ewc needs the backbone's weights as numbers, but they are quantized"
    ):
        learned.activate_for_training(build("ewc", {}))
    with pytest.raises(ModelError, match=r"q_proj\.weight is quantized and cannot be trained"):
        FullModel.attach(model)


def test_updates_of_quantized_layers_are_unmerged_and_an_adapter_trains_on_top(tiny_model: TinyModel) -> None:
    model, plain = load(tiny_model("llama")), load(tiny_model("llama"))
    names = quantize_targets(model)
    with torch.no_grad():
        for name in names:
            layer = model.get_submodule(name)
            plain.get_submodule(name).weight.copy_(layer.weight * layer.scale)
    states = [random_state(plain, seed) for seed in (1, 2)]
    learned = UpdateHistory(model, names)
    learned.updates = list(states)
    learned.activate_for_training(build("inclora", {}))
    MergedUpdates(plain, names).activate(states)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    mine, wanted = gradients(model), gradients(plain)
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-5)


# Real ones


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Callable[[bool], Any]) -> Path:
    """A tiny model whose rows are exactly one block of 4-bit codes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("wide-llama")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "embed" not in name:
                    parameter.mul_(3)
    model.save_pretrained(folder)
    tiny_tokenizer(False).save_pretrained(folder)
    return folder


def dequantized(model: Any, folder: Path) -> Any:
    """The same model in float32, with the numbers that the codes of `model` encode."""
    import bitsandbytes

    plain = load(folder).requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif isinstance(layer, bitsandbytes.nn.Linear8bitLt):
            weight = layer.weight.data * (layer.weight.SCB / 127)[:, None]
        else:
            continue
        plain.get_submodule(name).weight.copy_(weight)
    return plain


@with_bitsandbytes
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantized_backbone_trains_like_the_same_numbers_in_float(wide_llama: Path, quantize: Any) -> None:
    backbone: Any = load_backbone(str(wide_llama), quantize=quantize)
    model = backbone.model
    original = load(wide_llama)
    plain = dequantized(model, wide_llama)
    modules = target_modules(model, LORA)
    assert modules == target_modules(plain, LORA)
    error = (logits(plain) - logits(original)).abs().max()
    assert 1e-3 < error < 1.0, "the numbers of the codes are near the original's, and not the same"
    states = [random_state(plain, seed) for seed in (1, 2)]
    UnmergedUpdates(model, [m.name for m in modules]).activate(states)
    MergedUpdates(plain, [m.name for m in modules]).activate(states)
    # In evaluation, 8bit also rounds the activations to eight bits.
    tolerance = 1e-4 if quantize == "4bit" else 0.1
    torch.testing.assert_close(logits(model), logits(plain), rtol=tolerance, atol=tolerance)
    mine, wanted = gradients(model), gradients(plain)
    tolerance = 1e-4 if quantize == "4bit" else 2e-2
    for name, gradient in wanted.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(mine[name] / scale, gradient / scale, rtol=0, atol=tolerance)


@with_bitsandbytes
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_scoring_does_not_change_what_training_computes(wide_llama: Path, quantize: Any) -> None:
    """On some CPUs, bitsandbytes repacks 4-bit weights at the first evaluation, which lost the gradients."""
    model: Any = load_backbone(str(wide_llama), quantize=quantize).model
    before = gradients(model)
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    packing_is_exact(model)  # a trial on a few tokens, which must not fail
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, before[name]), name


@with_bitsandbytes
def test_a_quantized_model_of_ones_own_trains_after_it_has_answered(wide_llama: Path) -> None:
    def loaded() -> Any:
        format_ = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        return AutoModelForCausalLM.from_pretrained(wide_llama, quantization_config=format_).eval()

    def answered(model: Any) -> Any:
        with torch.no_grad():
            model(input_ids=torch.tensor([[5, 6, 7]]))
        return model

    with nlora.next_task(loaded(), method="inclora", lora={"r": 2, "targets": ["q_proj"]}) as task:
        loss(answered(task.model)).backward()
        assert all(f.B.grad is not None and f.B.grad.any() for f in task._adapter.factors().values())
    model = answered(loaded())
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight.quant_state.packing_format_for_cpu = True  # as where the CPU has AVX512-BF16
    with pytest.raises(
        ModelError, match=r"bitsandbytes has repacked model\.layers\.0\.\S+ .*load the model again"
    ):
        nlora.next_task(model)


@with_bitsandbytes
@pytest.mark.parametrize(("quantize", "method"), [("4bit", "nlora"), ("8bit", "lwf")])
def test_a_run_on_a_quantized_backbone(tmp_path: Path, wide_llama: Path, quantize: str, method: str) -> None:
    config = write_config(tmp_path, wide_llama, method=method, quantize=quantize)
    summary = learn(config)
    assert summary.status == "complete"
    again = learn(config, f"output_dir={tmp_path / 'again'}")
    assert again.R == summary.R
    for stage in ("1-colors", "2-animals"):
        one, other = (
            load_factors(tmp_path / run / "outputs" / stage / "adapter") for run in ("run", "again")
        )
        assert all(torch.equal(f.B, other[name].B) and f.B.any() for name, f in one.items())


@with_bitsandbytes
@pytest.mark.parametrize("saved", ["4bit", "8bit"])
def test_a_model_that_was_saved_quantized_is_known_by_its_configuration(
    tmp_path: Path, wide_llama: Path, monkeypatch: pytest.MonkeyPatch, saved: Any
) -> None:
    """It keeps its own format whatever `quantize` says."""
    backbone: Any = load_backbone(str(wide_llama), quantize=saved)
    backbone.model.save_pretrained(tmp_path / "model")
    backbone.tokenizer.save_pretrained(tmp_path / "model")
    config = write_config(tmp_path, tmp_path / "model")
    make_plan(load_config(config))
    again = "quantize=8bit: the model is quantized already; leave quantize out"
    assert problems(config, "quantize=8bit") == again
    for method in ("ewc", "seqft", "osf", "oplora"):
        needs = f"{method} needs the backbone's weights as numbers; take one that is not"
        assert problems(config, f"method={method}").endswith(f": model: is quantized already, and {needs}")
        assert problems(config, f"method={method}", "quantize=8bit").splitlines()[0] == again
    without_bitsandbytes(monkeypatch)
    install = "is quantized already; bitsandbytes is not installed; pip install bitsandbytes"
    assert problems(config).endswith(f": model: {install}")
