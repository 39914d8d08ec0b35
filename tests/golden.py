"""Reads the golden numbers of the released code: tiny models, batches, adapters, losses and gradients.

    case = load_case(shared, "nlora_t5", "task2_nonzeroB")
    case.ce, case.new["encoder.block.0.layer.0.SelfAttention.q"].A, case.grads[...]

The released code trains `loranew_A/B` and keeps the earlier tasks in `lora_A/B`, side by side; here they are
`new` and `earlier`. What the files store once (see key_scheme in loss.json) is filled in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nlora.models.lora_factors import AdapterState, LoraFactors

CASES = ("task1_init", "task1_nonzeroB", "task2_init", "task2_nonzeroB")


@dataclass(frozen=True)
class GoldenCase:
    """One training step of the released code, in float32 without dropout.

    numbers: ce, total, penalties and per_module, as loss.json has them. grads: d total / d (A, B) by module.
    earlier: the first task's factors for the task2 cases, else None.
    """

    numbers: dict[str, Any]
    batch: dict[str, Tensor]
    new: AdapterState
    earlier: AdapterState | None
    grads: dict[str, tuple[Tensor, Tensor]]

    @property
    def ce(self) -> float:
        return float(self.numbers["ce"])

    def per_module(self, module: str) -> dict[str, Any]:
        numbers: dict[str, Any] = self.numbers["per_module"][f"{module}."]
        return numbers


def load_case(shared: Path, run: str, case: str) -> GoldenCase:
    """One of CASES of a run of loss.json: nlora_t5, olora_t5, nlora_llama or olora_llama."""
    summary = json.loads((shared / "golden/loss.json").read_text())["runs"][run]
    arch, scaling = summary["arch"], summary["scaling"]
    stored = load_file(
        shared / f"golden/loss/loss_nlora_{arch}.safetensors"
    )  # parameters and batches of both
    gradients = load_file(shared / f"golden/loss/loss_{run}.safetensors")
    task = case.partition("_")[0]
    batch = {
        key.rpartition("/")[2]: tensor if tensor.is_floating_point() else tensor.long()
        for key, tensor in stored.items()
        if key.startswith(f"{task}_init/batch/")
    }
    return GoldenCase(
        numbers=summary["cases"][case],
        batch=batch,
        new=_state(stored, case, scaling),
        earlier=_state(stored, "task1_nonzeroB", scaling) if task == "task2" else None,
        grads=_pairs(gradients, f"{case}/grad/"),
    )


def load_model(shared: Path, arch: str) -> Any:
    """The tiny t5 or llama with the golden weights, in transformers as installed, without dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(shared / f"golden/models/tiny-{arch}", dropout_rate=0.0)
    model = (AutoModelForSeq2SeqLM if arch == "t5" else AutoModelForCausalLM).from_config(config)
    weights = load_file(shared / f"golden/loss/base_{arch}.safetensors")
    weights = {key: tensor for key, tensor in weights.items() if "rotary_emb" not in key}  # now computed
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = json.loads((shared / f"golden/loss/base_{arch}_keys.json").read_text())["dropped_as_tied"]
    assert set(missing) <= set(tied), f"not in the golden file: {missing}"
    assert not unexpected
    model.tie_weights()
    return model.eval()


def _state(stored: dict[str, Tensor], case: str, scaling: float) -> AdapterState:
    """The new factors of a case; A lies with the task's initial case, and B is zero there."""
    task = case.partition("_")[0]
    As = _named(stored, f"{task}_init/param/", "A")
    Bs = _named(stored, f"{case}/param/", "B")
    return {
        name: LoraFactors(A, Bs.get(name, torch.zeros(A.shape[1], A.shape[0])), scaling)
        for name, A in As.items()
    }


def _pairs(stored: dict[str, Tensor], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
    As, Bs = _named(stored, prefix, "A"), _named(stored, prefix, "B")
    return {name: (A, Bs[name]) for name, A in As.items()}


def _named(stored: dict[str, Tensor], prefix: str, factor: str) -> dict[str, Tensor]:
    suffix = f".loranew_{factor}.default.weight"
    return {
        key[len(prefix) : -len(suffix)]: tensor
        for key, tensor in stored.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }
