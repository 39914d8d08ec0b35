"""What an export of a small run must hold, computed by NumPy from the run's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nlora.models.lora_factors import load_factors


def base_weights(model: Path) -> dict[str, Any]:
    """The backbone's tensors, by name."""
    from safetensors.numpy import load_file

    return load_file(model / "model.safetensors")


def task_updates(run: Path) -> list[dict[str, Any]]:
    """For each stage, s·B·A of every module, (out, in), by NumPy."""
    folders = sorted(run.glob("outputs/*-*/adapter"))
    return [
        {name: f.scaling * (f.B.numpy() @ f.A.numpy()) for name, f in load_factors(folder).items()}
        for folder in folders
    ]


def summed(updates: list[dict[str, Any]]) -> dict[str, Any]:
    """Their sum."""
    return {name: np.sum([u[name] for u in updates], axis=0) for name in updates[0]}


def auto(family: str) -> Any:
    import transformers

    return transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM


def oriented(family: str, update: Any) -> Any:
    """ΔW (out, in) as the family stores its weights."""
    return update.T if family == "gpt2" else update


def weights_of(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def assert_is_base_plus(family: str, weights: dict[str, Any], base: dict[str, Any], update: Any) -> None:
    """Every weight is the base model's, plus the update where there is one. Tied weights are missing in `base`."""
    changed = set()
    for name, original in base.items():
        # T5 and GPT-2 have the names of the model's inside in their files.
        key = name if name in weights else f"transformer.{name}"
        module = key.removesuffix(".weight")
        if module in update:
            changed.add(module)
            np.testing.assert_allclose(weights[key], original + oriented(family, update[module]), atol=1e-5)
        else:
            np.testing.assert_array_equal(weights[key], original)
    assert changed == update.keys()
