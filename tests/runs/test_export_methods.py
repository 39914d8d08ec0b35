"""Every method and every way to merge: exported, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from export_values import assert_is_base_plus, auto, base_weights, task_updates, weights_of

from helpers import learn, write_config
from nlora.errors import InputErrors
from nlora.methods.registry import method_names
from nlora.runs.export.export import export
from nlora.runs.export.options import FORMS, MERGES, ExportOptions

Runs = Callable[..., Path]
TinyModel = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize(
    ("form", "how"), [*(("merged", how) for how in MERGES), ("adapter", "ties"), ("sparse", "magmax")]
)
def test_every_merge_and_a_merge_in_every_form(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path, how: str, form: str
) -> None:
    run = finished_run("gpt2")
    rank = 32 if form == "adapter" else None  # all that a 96 x 32 layer has
    export(run, tmp_path / "out", ExportOptions(form, rank=rank, merge=how))
    assert (tmp_path / "out" / "README.md").is_file()
    if how == "magmax" and form == "merged":
        updates = task_updates(run)
        largest = {
            name: np.where(
                np.abs(updates[0][name]) >= np.abs(updates[1][name]), updates[0][name], updates[1][name]
            )
            for name in updates[0]
        }
        weights = weights_of(auto("gpt2").from_pretrained(tmp_path / "out"))
        assert_is_base_plus("gpt2", weights, base_weights(tiny_model("gpt2")), largest)


PROMPTS = {"l2p", "progprompt"}  # refused: tests/runs/test_prompt_runs.py
# One of each kind: a sum, the last update alone, one for each task, one for all, weights, merges of low and full rank.
KINDS = ["nlora", "seqlora", "pertask", "mtl", "seqft", "osf", "slao", "magmax"]


@pytest.mark.parametrize(
    ("method", "form"),
    [(m, f) for m in method_names() if m not in PROMPTS for f in FORMS if f == "merged" or m in KINDS],
)
def test_every_method_is_exported_or_refused_by_name(
    finished_run: Runs, tmp_path: Path, method: str, form: str
) -> None:
    run = finished_run("llama", method)
    task = "animals" if method == "pertask" and form != "adapters" else None
    options = ExportOptions(form, task=task)
    if method in ("seqft", "osf") and form != "merged":
        with pytest.raises(InputErrors, match=f"--as: {method} trains the weights themselves"):
            export(run, tmp_path / "out", options)
        assert not list(tmp_path.iterdir())
        return
    if method in ("slao", "magmax") and form == "adapters":
        with pytest.raises(
            InputErrors, match=f"--as: {method} answers with a merge that no stage's adapter holds"
        ):
            export(run, tmp_path / "out", options)
        assert not list(tmp_path.iterdir())
        return
    found = export(run, tmp_path / "out", options)
    assert set(found.scores) == ({"animals"} if task else {"colors", "animals"})
    if form != "sparse":
        assert set(found.different.values()) == {0}


def test_the_last_adapter_of_seqlora_is_the_model(finished_run: Runs, tmp_path: Path) -> None:
    run = finished_run("llama", "seqlora")
    export(run, tmp_path / "out", ExportOptions("adapter"))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4
    found = export(run, tmp_path / "both", ExportOptions("adapters"))
    assert found.adapters == ["colors", "animals"]


def test_each_task_of_pertask_is_exported_with_its_own_update(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = finished_run("llama", "pertask")
    base = base_weights(tiny_model("llama"))
    for position, task in enumerate(("colors", "animals")):
        export(run, tmp_path / task, ExportOptions("merged", task=task))
        weights = weights_of(auto("llama").from_pretrained(tmp_path / task))
        assert_is_base_plus("llama", weights, base, task_updates(run)[position])


def test_an_earlier_stage_has_the_earlier_updates_only(
    finished_run: Runs, tiny_model: TinyModel, tmp_path: Path
) -> None:
    run = finished_run()
    found = export(run, tmp_path / "out", ExportOptions("merged"), stage=1)
    assert list(found.scores) == ["colors"]
    weights = weights_of(auto("llama").from_pretrained(tmp_path / "out"))
    assert_is_base_plus("llama", weights, base_weights(tiny_model("llama")), task_updates(run)[0])


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantized_backbone_keeps_its_adapters_apart(
    finished_run: Runs, tmp_path: Path, quantize: str
) -> None:
    pytest.importorskip("bitsandbytes")
    run = finished_run("llama", "nlora", quantize=quantize)
    for form in ("merged", "sparse"):
        with pytest.raises(InputErrors, match="are quantized or shared by several layers; use --as adapter"):
            export(run, tmp_path / "out", ExportOptions(form))
    assert not list(tmp_path.iterdir())
    for form in ("adapter", "adapters"):
        found = export(run, tmp_path / form, ExportOptions(form))
        assert any("with a quantized backbone" in note for note in found.notes)


def test_a_backbone_that_came_quantized_is_rounded_like_one_that_the_run_quantizes(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    """As the 4-bit models of the hub are: it computes in bfloat16."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    saved = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny_model("llama"), quantization_config=options).save_pretrained(
        saved
    )
    AutoTokenizer.from_pretrained(tiny_model("llama")).save_pretrained(saved)
    train = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "max_target_tokens": 8}
    evaluate = {"batch_size": 4, "decode": "generate"}
    learn(write_config(tmp_path, saved, method="inclora", train=train, evaluate=evaluate))
    for form in ("adapter", "adapters"):
        found = export(tmp_path / "run", tmp_path / form, ExportOptions(form))
        assert any("with a quantized backbone" in note for note in found.notes)
