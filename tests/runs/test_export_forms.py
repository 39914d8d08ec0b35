"""What an export holds, loaded by stock libraries and compared with values computed from the run's files."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_values import assert_is_base_plus, auto, base_weights, oriented, summed, task_updates, weights_of

from nlora.config.load import load_config
from nlora.models.lora_factors import load_factors
from nlora.runs.export import work
from nlora.runs.export.export import export
from nlora.runs.export.options import FORMS, ExportOptions

Runs = Callable[..., Path]

TinyModel = Callable[[str], Path]
FAMILIES = ["llama", "gpt2", "t5"]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_the_base_plus_all_updates(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path, family: str
) -> None:
    from transformers import AutoTokenizer

    run = finished_run(family)
    found = export(run, tmp_path / "out", ExportOptions("merged"))
    model, info = auto(family).from_pretrained(tmp_path / "out", output_loading_info=True)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert modes == {
        stat.S_IMODE((tmp_path / "out/config.json").stat().st_mode)
    }  # safetensors would hide its own
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.float32
    base = base_weights(tiny_model(family))
    assert_is_base_plus(family, weights_of(model), base, summed(task_updates(run)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        tokenizer("the quick fox").input_ids
        == AutoTokenizer.from_pretrained(tiny_model(family))("the quick fox").input_ids
    )
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert found.scores == found.run
    assert set(found.different.values()) == {0}


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_is_one_stock_adapter_of_the_summed_rank(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path, family: str
) -> None:
    from peft import PeftModel

    run = finished_run(family)
    export(run, tmp_path / "out", ExportOptions("adapter"))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert config["base_model_name_or_path"] == str(tiny_model(family))
    assert config["task_type"] == ("SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM")
    assert config["fan_in_fan_out"] == (family == "gpt2")
    base = auto(family).from_pretrained(tiny_model(family))
    model = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    assert_is_base_plus(
        family, weights_of(model), base_weights(tiny_model(family)), summed(task_updates(run))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_the_runs_own_files(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path, family: str
) -> None:
    from peft import PeftModel

    run = finished_run(family)
    found = export(run, tmp_path / "out", ExportOptions("adapters"))
    assert found.adapters == ["colors", "animals"]
    for stage, name in enumerate(found.adapters, start=1):
        for file in (run / "outputs" / f"{stage}-{name}" / "adapter").iterdir():
            assert (tmp_path / "out" / name / file.name).read_bytes() == file.read_bytes()
    base = auto(family).from_pretrained(tiny_model(family))
    model = PeftModel.from_pretrained(base, tmp_path / "out" / "colors", adapter_name="colors")
    model.load_adapter(tmp_path / "out" / "animals", adapter_name="animals")
    model.base_model.set_adapter(["colors", "animals"])
    both = model.merge_and_unload(adapter_names=["colors", "animals"])
    assert_is_base_plus(family, weights_of(both), base_weights(tiny_model(family)), summed(task_updates(run)))


@pytest.mark.parametrize("family", FAMILIES)
def test_sparse_holds_the_entries_above_the_threshold(
    finished_run: Runs, tmp_path: Path, family: str
) -> None:
    from safetensors.numpy import load_file

    run = finished_run(family)
    found = export(run, tmp_path / "out", ExportOptions("sparse", threshold=0.02))
    tensors = load_file(tmp_path / "out" / "update.safetensors")
    config = json.loads((tmp_path / "out" / "sparse_config.json").read_text())
    whole = summed(task_updates(run))
    assert config["threshold"] == 0.02
    assert config["shapes"] == {name: list(update.shape) for name, update in whole.items()}
    entries = kept = 0
    for name, update in whole.items():
        indices, values = tensors[f"{name}.indices"], tensors[f"{name}.values"]
        assert indices.dtype == np.int32
        clear = np.abs(np.abs(update) - 0.02) > 1e-6  # entries that rounding does not decide about
        there = np.zeros(update.size, dtype=bool)
        there[indices] = True
        np.testing.assert_array_equal(there.reshape(update.shape)[clear], (np.abs(update) >= 0.02)[clear])
        np.testing.assert_allclose(values, update.reshape(-1)[indices], atol=1e-5)
        entries, kept = entries + update.size, kept + len(indices)
    (row,) = [row for row in found.thresholds if row.is_stored]
    assert (row.threshold, row.entries_kept, row.sparse_bytes) == (0.02, kept, 8 * kept)
    assert row.share_kept == kept / entries
    assert found.sizes is not None
    rms = np.sqrt(np.concatenate([u.reshape(-1) ** 2 for u in whole.values()]).mean())
    assert found.sizes.rms == pytest.approx(rms, rel=1e-4)
    assert found.sizes.dense_bytes == 4 * entries
    assert [r.factor for r in found.thresholds if not r.is_stored] == pytest.approx([0.01, 0.1, 0.3, 1, 3])
    shares = [r.share_kept for r in found.thresholds]
    assert shares == sorted(shares, reverse=True)
    assert set(row.scores) == {"colors", "animals"}


def test_sparse_without_a_threshold_takes_a_tenth_of_the_rms(finished_run: Runs, tmp_path: Path) -> None:
    found = export(finished_run(), tmp_path / "out", ExportOptions("sparse"))
    assert [r.factor for r in found.thresholds if r.is_stored] == pytest.approx([0.1])
    assert len(found.thresholds) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_rank_is_the_truncated_svd_and_says_what_it_loses(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path, family: str
) -> None:
    from peft import PeftModel

    run = finished_run(family)
    found = export(run, tmp_path / "out", ExportOptions("adapter", rank=3))
    truncated, lost = {}, {}
    for name, update in summed(task_updates(run)).items():
        u, s, vt = np.linalg.svd(update.astype(np.float64))
        truncated[name] = (u[:, :3] * s[:3]) @ vt[:3]
        lost[name] = (s[3:] ** 2).sum(), (s**2).sum()
    base = auto(family).from_pretrained(tiny_model(family))
    model = PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    assert_is_base_plus(family, weights_of(model), base_weights(tiny_model(family)), truncated)
    loss = found.rank_loss
    assert loss is not None
    assert loss.overall == pytest.approx(
        (sum(a for a, _ in lost.values()) / sum(b for _, b in lost.values())) ** 0.5, rel=1e-4
    )
    worst = max(lost, key=lambda name: lost[name][0] / lost[name][1])
    assert loss.worst_module == worst
    assert loss.worst == pytest.approx((lost[worst][0] / lost[worst][1]) ** 0.5, rel=1e-4)
    assert any("rank 3 loses" in note for note in found.notes)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_16_bits_hold_the_rounded_sum(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path, family: str, dtype: str
) -> None:
    from safetensors.torch import load_file

    run = finished_run(family)
    found = export(run, tmp_path / "out", ExportOptions("merged", dtype=dtype))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    rounding = 2.0 ** (-8 if dtype == "bfloat16" else -11)
    base, update = base_weights(tiny_model(family)), summed(task_updates(run))
    for name, tensor in tensors.items():
        original = base[name] if name in base else base[name.removeprefix("transformer.")]
        module = next(
            (m for m in update if name.removesuffix(".weight") in (m, m.removeprefix("transformer."))), None
        )
        exact = original if module is None else original + oriented(family, update[module])
        np.testing.assert_allclose(tensor.float().numpy(), exact, rtol=rounding, atol=1e-5)
    assert any(f"{dtype} rounds the updated layers by" in note for note in found.notes)


def test_a_bfloat16_run_is_merged_in_float32(finished_run: Runs, tmp_path: Path) -> None:
    run = finished_run("llama", "nlora", dtype="bfloat16")
    for form in FORMS:
        found = export(run, tmp_path / form, ExportOptions(form))
        if form in ("merged", "adapter"):
            assert any("the run answered in 16 bits" in note for note in found.notes)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("form", FORMS)
def test_the_model_that_is_compared_has_the_backbone_that_the_export_is_loaded_over(
    finished_run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A run in bfloat16 rounds stored weights of 32 bits; a merged model is the run's, and brings its own."""
    made = []
    original = work.UpdatedBackbone
    monkeypatch.setattr(work, "UpdatedBackbone", lambda *given: made.append(original(*given)) or made[-1])
    monkeypatch.setattr(work, "refuse", lambda *given: None)
    monkeypatch.setattr(original, "set", lambda self, update: None)
    run = finished_run("llama", "nlora", dtype="bfloat16")
    export(run, tmp_path / form, ExportOptions(form))
    config = load_config(str(run / "run.yaml")).config
    stored = auto("llama").from_pretrained(config.model).state_dict()
    for name, tensor in made[0].backbone.model.state_dict().items():
        key = name.replace(".base_layer", "")
        if key in stored:
            assert torch.equal(tensor, stored[key].bfloat16().float() if form == "merged" else stored[key]), (
                name
            )


def test_ranks_may_differ_from_module_to_module(tiny_model: TinyModel, tmp_path: Path) -> None:
    from peft import PeftModel

    from nlora.models.lora_factors import LoraFactors
    from nlora.runs.export.forms import write_adapter
    from nlora.runs.export.updates import StageUpdate

    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in ("q", "v")]
    state = {
        name: LoraFactors(torch.randn(r, 32), torch.randn(32 if "q_" in name else 16, r), 1.0)
        for name, r in zip(names, (2, 3, 2, 5), strict=True)
    }
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "adapter_config.json").write_text(
        '{"task_type": "CAUSAL_LM", "target_modules": "x"}'
    )
    write_adapter(state, [StageUpdate(1, "t", tmp_path / "source", {})], tmp_path / "out", "tiny")
    again = load_factors(tmp_path / "out")
    base = auto("llama").from_pretrained(tiny_model("llama"))
    model = PeftModel.from_pretrained(base, tmp_path / "out")
    for name, f in state.items():
        assert (again[name].A.shape[0], again[name].scaling) == (5, 1.0)
        torch.testing.assert_close(again[name].B @ again[name].A, f.B @ f.A)
        layer = model.get_base_model().get_submodule(name)
        torch.testing.assert_close(layer.get_delta_weight("default"), f.update())


@pytest.mark.parametrize("limit", [{"layers_to_transform": 0}, {"exclude_modules": "model.layers.1.*"}])
def test_an_adapter_of_some_layers_names_them(limit: dict[str, Any], tmp_path: Path) -> None:
    """PEFT would otherwise give the others an adapter, too."""
    from nlora.models.lora_factors import LoraFactors
    from nlora.runs.export.forms import write_adapter
    from nlora.runs.export.updates import StageUpdate

    name = "model.layers.0.self_attn.q_proj"
    state = {name: LoraFactors(torch.randn(2, 32), torch.randn(32, 2), 1.0)}
    (tmp_path / "source").mkdir()
    config = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "layers_pattern": None}
    for written, targets in ((config, ["q_proj"]), (config | limit, [name])):
        (tmp_path / "source" / "adapter_config.json").write_text(json.dumps(written))
        write_adapter(state, [StageUpdate(1, "t", tmp_path / "source", state)], tmp_path / "out", "tiny")
        assert json.loads((tmp_path / "out/adapter_config.json").read_text())["target_modules"] == targets
